"""Comparison category rating (P.800 Annex E): CMOS with the order of playing taken out.

Input is one row a vote: `system` heard first, `system_b` second, `score` from -3 to 3 as clicked,
that is the second compared with the first. Null pairs are the same sound twice.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from listening_test.agreement import krippendorff_alpha
from listening_test.statistics import Values, crossed_mean, holm, pair_entry


def comparison_pairs(
    frame: pd.DataFrame, names: list[str], reference_first: bool, margin: float | None = None
) -> list[dict[str, Any]]:
    """One entry a pair of systems: CMOS(a relative to b), positive where a is better.

    `order_bias` is how much better the clip heard second is rated, whichever it is: the mean of
    the two orders' means, so that it does not lean on how often each order was heard.
    """
    pairs = []
    for first, second in combinations(names, 2):
        a, b = (second, first) if reference_first else (first, second)
        votes = signed(frame, a, b)
        if votes.empty:
            continue
        gaps = _balanced(votes, "gap")
        estimate = crossed_mean(gaps, votes["rater_id"], votes["item_id"])
        by_rater = votes.assign(gap=gaps).groupby("rater_id")["gap"].mean().to_numpy()
        entry = pair_entry(a, b, estimate, by_rater, margin)
        pairs.append({**entry, "n": len(votes), "order_bias": _order_bias(votes)})
    return holm(pairs, "p_wilcoxon")


def signed(frame: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The votes on one pair, with `a_second` and `gap`, the score of a relative to b."""
    a_second = (frame["system"] == b) & (frame["system_b"] == a)
    a_first = (frame["system"] == a) & (frame["system_b"] == b)
    votes = frame[a_second | a_first]
    second = a_second[votes.index]
    return votes.assign(a_second=second, gap=votes["score"].where(second, -votes["score"]))


def _balanced(votes: pd.DataFrame, column: str) -> Values:
    """Values whose mean is the mean of the two orders' means, however often each was heard.

    Only what a vote differs from its own order's mean is weighted, so that unequal numbers make
    no spread of their own. With one order only, the values as they are.
    """
    values = votes[column].to_numpy(dtype=float)
    second = votes["a_second"].to_numpy(dtype=bool)
    n, n_second = len(values), int(second.sum())
    if n_second in (0, n):
        return values
    means = values[second].mean(), values[~second].mean()
    weights = np.where(second, n / (2 * n_second), n / (2 * (n - n_second)))
    rest = values - np.where(second, *means)
    balanced: Values = sum(means) / 2 + weights * rest
    return balanced


def _order_bias(votes: pd.DataFrame) -> dict[str, Any] | None:
    if votes["a_second"].nunique() < 2:
        return None
    values = _balanced(votes, "score")
    return crossed_mean(values, votes["rater_id"], votes["item_id"]).as_json()


def comparison_agreement(frame: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """Krippendorff's alpha of the scores with the order taken out; a text and pair is a unit."""
    parts = [
        signed(frame, a, b).assign(unit=lambda votes, n=number: f"{n} " + votes["item_id"])
        for number, (a, b) in enumerate(combinations(names, 2))
    ]
    votes = pd.concat(parts) if parts else frame.assign(unit="", gap=np.nan)
    alpha = krippendorff_alpha(votes["unit"], votes["rater_id"], votes["gap"])
    return {"krippendorff_alpha": alpha, "level": "ordinal"}


def null_pair_bias(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Mean score of null pairs: what the order alone does, since both clips are the same."""
    if frame.empty:
        return None
    scores = frame["score"].to_numpy(dtype=float)
    return crossed_mean(scores, frame["rater_id"], frame["item_id"]).as_json()
