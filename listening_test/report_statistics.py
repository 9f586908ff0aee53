"""How an analysis was made, in words: the part of the methods that the analysis alone decides.

Knows an analysis, no study and no rating.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from listening_test.preference import BOOTSTRAP


def told_statistics(result: Mapping[str, Any], fixed: bool) -> str:
    """How the figures of an analysis were made.

    Args:
        fixed: whether a study file fixed the margin of non-inferiority beforehand.
    """
    told = [
        "Intervals are 95 % and take raters and texts both as random (two-way analysis of "
        "variance, Henderson's method I, Satterthwaite's degrees of freedom)."
    ]
    pairs = len(result["pairs"])
    pairs_told = f"{pairs} pair{'s' * (pairs > 1)}"
    if pairs:
        compared = any("order_bias" in pair for pair in result["pairs"])
        told.append(
            "Comparison scores have the sign turned back where the order was, and both orders "
            "count alike."
            if compared
            else "Differences are paired within rater and text; where ratings lack their partner, "
            "their error is that of crossed parts of raters and texts, shared by both systems and "
            "not (minimum norm quadratic unbiased estimation, Rao 1971)."
        )
        told.append(
            "Two-sided Wilcoxon signed-rank tests are over the raters' mean differences, with "
            f"Holm's correction over {pairs_told}; effect size: Cohen's dz. The test takes the "
            "texts as given: its p alone is too small to speak of other texts, for which the "
            "interval allows. A difference is called shown only where its interval leaves nought "
            "out and the corrected test is below 5 %."
        )
    if result["anchors"]:
        told.append("Anchors have a mean, and take part in no comparison and no correction.")
    told += _of_choices(result)
    if (margin := result["margin"]) is not None and pairs:
        when = "fixed in the study file" if fixed else "given with the analysis"
        told.append(
            f"Non-inferiority: the interval's lower end above -{margin:g} ({when}); "
            "equivalence: two one-sided tests at 5 %."
        )
    if (result.get("agreement") or {}).get("krippendorff_alpha") is not None:
        told.append(f"Agreement: Krippendorff's alpha ({result['agreement']['level']}).")
    return " ".join(told)


def _of_choices(result: Mapping[str, Any]) -> list[str]:
    told = []
    if "preferences" in result:
        told.append(
            "Shares are of the untied votes, ties are counted apart; exact binomial tests with "
            "Holm's correction take the votes as independent, the intervals do not. A preference "
            "is called shown only where its interval leaves one half out and the corrected test "
            "is below 5 %."
        )
    if result.get("bradley_terry"):
        told.append(
            "Strengths are Bradley-Terry's, in log-odds with mean 0, their intervals from a "
            f"bootstrap of {BOOTSTRAP:,} draws of whole raters."
        )
    if "identification" in result:
        told.append(
            "Whether X was told right is tested by an exact binomial test against 0.5, which takes "
            "the answers as independent; the interval does not."
        )
    return told
