"""The whole analysis of a study's ratings, by method, as plain JSON values.

Absolute scales (ACR, DCR, MUSHRA, P.835) give a mean opinion score a system and differences; CCR
gives differences only (CMOS); AB and ABX give shares. What an estimate is and where it comes from
is in `statistics.py`, `differences.py`, `comparison_rating.py`, `preference.py` and
`agreement.py`; files are read in `analyse.py`. Null values were not estimable, and are never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from listening_test.agreement import agreement, choice_agreement
from listening_test.columns import SCORED_TRIALS
from listening_test.comparison_rating import (
    comparison_agreement,
    comparison_pairs,
    null_pair_bias,
)
from listening_test.differences import difference
from listening_test.exclusion import Ends, apply_rules, rules_of
from listening_test.methods import CHOICE_METHODS
from listening_test.mixed_model import NotFitted, mixed_model
from listening_test.preference import CHOICES, bradley_terry, identification, preferences
from listening_test.statistics import (
    CONFIDENCE,
    crossed_mean,
    holm,
    naive_mean,
    pair_entry,
    rater_gaps,
)
from listening_test.study import Study
from listening_test.study_parts import Exclusion

# P.835's overall score comes first, whatever the alphabet says.
FIRST_DIMENSIONS = ("ovrl", "overall")


@dataclass(frozen=True)
class Plan:
    """What was fixed beforehand.

    Args:
        margin: non-inferiority margin in points of the scale; None leaves those answers null.
        order: systems, the reference first; a pair's `b` is the earlier one. Alphabetical, with
            the pair (a, b) in that order, where it is not known.
        exclusion, ends: rules for raters, and conditions that they ask for.
        anchors: conditions that span the scale; they have a mean and take part in no comparison.
    """

    margin: float | None = None
    order: tuple[str, ...] = ()
    exclusion: Exclusion = field(default_factory=Exclusion)
    ends: Ends = field(default_factory=Ends)
    anchors: tuple[str, ...] = ()

    @classmethod
    def of(cls, study: Study) -> Plan:
        """What a study file fixed."""
        order = tuple(system.name for system in study.systems)
        anchors = tuple(anchor.label for anchor in study.anchors)
        margin = study.non_inferiority_margin
        return cls(margin, order, study.exclusion, Ends.of(study), anchors)

    def names(self, frame: pd.DataFrame) -> list[str]:
        """The systems of `frame`, those of `order` first and in its order."""
        found = set(frame["system"].dropna())
        if "system_b" in frame:
            found |= set(frame["system_b"].dropna()) - {""}
        known = [name for name in self.order if name in found]
        return known + sorted(found - set(known))


def analyse(
    frame: pd.DataFrame, plan: Plan | None = None, incomplete: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Everything the contract asks of ratings; `systems` is empty where the method has no MOS.

    Args:
        frame: the columns rater_id, item_id, system, score, trial_type, status; one row a rating.
            Methods other than ACR are told by `method`, several questions by `dimension`.
        plan: nothing fixed beforehand, where it is None.
        incomplete: ids of sessions that did not come to their end.
    """
    plan = plan or Plan()
    scored, excluded = counted(frame, plan, incomplete)
    method = scored["method"] if "method" in scored else pd.Series("acr", index=scored.index)
    result: dict[str, Any] = {
        "systems": {},
        "anchors": {},
        "pairs": [],
        "excluded": excluded,
        "margin": plan.margin,
        "confidence": CONFIDENCE,
        "interval": "two-way crossed random effects (rater, item), Satterthwaite t",
        "n": len(scored),
        "raters": int(scored["rater_id"].nunique()),
        "items": int(scored["item_id"].nunique()),
        "methods": sorted(set(method.dropna()) - {""}),
    }
    absolute = scored[~method.isin(("ccr", *CHOICE_METHODS))]
    if len(absolute):
        result |= _absolute(absolute, plan)
    if (method == "ccr").any():
        result |= _comparison(scored[method == "ccr"], plan)
    if (method == "ab").any():
        votes = scored[method == "ab"]
        names = plan.names(votes)
        result["preferences"] = preferences(votes, names)
        result["bradley_terry"] = bradley_terry(votes, names) if len(names) > 2 else None
        result["agreement"] = choice_agreement(votes[votes["system"] != votes["system_b"]])
    if (method == "abx").any():
        result["identification"] = identification(scored[method == "abx"])
    return result


def counted(
    frame: pd.DataFrame, plan: Plan, incomplete: frozenset[str] = frozenset()
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The ratings that count under a plan, and how many rows each rule took out.

    A rule that was fixed and took out nobody is listed with 0.
    """
    frame = frame.reset_index(drop=True)
    used, counts = _exclude(apply_rules(frame, plan.exclusion, plan.ends, incomplete))
    fixed = dict.fromkeys(rules_of(plan.exclusion), 0)
    return used, {**fixed, **counts}


def told_counts(excluded: dict[str, int]) -> str:
    """How many rows each rule took out, in words; rules that took out nobody are not told."""
    told = [f"{n} row{'s' * (n > 1)} ({rule})" for rule, n in excluded.items() if n]
    return ", ".join(told) or "there are none"


def _exclude(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Ratings that count, and how many rows each rule took out (a row falls to one rule)."""
    reason = pd.Series("", index=frame.index, dtype=object)
    other = ~frame["trial_type"].isin(SCORED_TRIALS)
    reason[other] = "trial_type: " + frame.loc[other, "trial_type"].astype(str)
    out = (frame["status"] != "use") & ~other
    why = frame["status"].astype(str)
    if "status_reason" in frame:
        given = frame["status_reason"].notna() & (frame["status_reason"] != "")
        why = why.where(~given, frame["status_reason"].astype(str))
    reason[out] = why[out]
    answered = frame["score"].notna()
    if "choice" in frame and "method" in frame:
        chosen = frame["method"].isin(CHOICE_METHODS)
        answered = answered.where(~chosen, frame["choice"].isin(CHOICES))
    reason[(reason == "") & ~answered] = "no score"
    counts = reason[reason != ""].value_counts().sort_index()
    return frame[reason == ""], {str(rule): int(n) for rule, n in counts.items()}


def _absolute(scored: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    """MOS and differences of the first dimension; of all of them where there are several."""
    dimension = scored["dimension"].fillna("") if "dimension" in scored else None
    if dimension is None or dimension.nunique() < 2:
        return _one_dimension(scored, plan)
    found = sorted(set(dimension), key=lambda name: (name not in FIRST_DIMENSIONS, name))
    each = {name: _one_dimension(scored[dimension == name], plan) for name in found}
    return {**each[found[0]], "dimension": found[0], "dimensions": each}


def _one_dimension(scored: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    anchors = scored["system"].isin(plan.anchors)
    tested = scored[~anchors]
    names = plan.names(tested[["system"]])  # the other clip of a DCR trial is not rated
    spanned = [name for name in plan.anchors if (scored["system"] == name).any()]
    scale = set(scored["method"].dropna()) if "method" in scored else set()
    return {
        "systems": {name: _system(scored[scored["system"] == name]) for name in names},
        "anchors": {name: _system(scored[scored["system"] == name]) for name in spanned},
        "pairs": _pairs(tested, names, plan),
        "null_pair_gap": _null_pair_gap(scored),
        "agreement": agreement(tested, "interval" if scale == {"mushra"} else "ordinal"),
        **_checked(tested, names),
    }


def _checked(scored: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """The mixed model, or None and why it says nothing."""
    try:
        return {"mixed_model": mixed_model(scored, names), "mixed_model_note": None}
    except NotFitted as error:
        return {"mixed_model": None, "mixed_model_note": str(error)}


def _system(rows: pd.DataFrame) -> dict[str, Any]:
    scores = rows["score"].to_numpy(dtype=float)
    estimate = crossed_mean(scores, rows["rater_id"], rows["item_id"])
    return {
        "mos": estimate.mean,
        "ci95": estimate.listed(),
        "no_spread": estimate.no_spread,
        "ci95_naive": naive_mean(scores).listed(),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "quartiles": [float(q) for q in np.percentile(scores, [25, 50, 75])],
        "n": len(scores),
        "raters": int(rows["rater_id"].nunique()),
        "items": int(rows["item_id"].nunique()),
    }


def _pairs(scored: pd.DataFrame, names: list[str], plan: Plan) -> list[dict[str, Any]]:
    pairs = []
    for first, second in combinations(names, 2):
        a, b = (second, first) if plan.order else (first, second)
        both = scored[scored["system"].isin((a, b))]
        pairs.append(pair_entry(a, b, difference(both, a, b), rater_gaps(both, a, b), plan.margin))
    return holm(pairs, "p_wilcoxon")


def _comparison(votes: pd.DataFrame, plan: Plan) -> dict[str, Any]:
    null = votes["trial_type"] == "null_pair"
    names = plan.names(votes)
    return {
        "pairs": comparison_pairs(votes, names, bool(plan.order), plan.margin),
        "null_pair_bias": null_pair_bias(votes[null]),
        "agreement": comparison_agreement(votes, names),
    }


def _null_pair_gap(scored: pd.DataFrame) -> float | None:
    """Mean absolute gap of one rater's scores of the same sound: the raters' own noise."""
    twins = scored[scored["trial_type"] == "null_pair"]
    grouped = twins.groupby(["rater_id", "item_id"])["score"]
    spans = (grouped.max() - grouped.min())[grouped.size() > 1]
    return float(spans.mean()) if len(spans) else None
