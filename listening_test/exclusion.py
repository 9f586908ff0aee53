"""Who is left out, by the rules that the study file fixed before the first rating.

A rule looks at a rater's answers to checks, repeats and scored trials and takes out all of the
rater's rows. Rules are applied in the order of `RULES`; a rater falls to the first that fits, and
the last, agreement with the others, is judged among those who are left. Nothing is deleted: rows
get the status `exclude` and the rule as reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from listening_test.agreement import rater_correlations
from listening_test.columns import SCORED_TRIALS
from listening_test.study import Study
from listening_test.study_parts import FEWEST_ANSWERS, Exclusion

# BS.1534-3: with more of the raters than this, the anchor is to blame and not they.
_TOO_GOOD = 0.25
_INCOMPLETE = "incomplete session"


@dataclass(frozen=True)
class Ends:
    """What a rater should tell from the others: the hidden reference, and BS.1534's mid anchor."""

    reference: str | None = None
    mid_anchor: str | None = None

    @classmethod
    def of(cls, study: Study) -> Ends:
        """Those of a study file."""
        return cls(study.reference, study.mid_anchor)


Rule = Callable[[pd.DataFrame, Exclusion, Ends], set[str]]


def apply_rules(
    frame: pd.DataFrame,
    rules: Exclusion,
    ends: Ends = Ends(),
    incomplete: frozenset[str] = frozenset(),
) -> pd.DataFrame:
    """The ratings with the excluded raters' rows marked; the given frame stays as it is.

    Rules judge anew whom they marked before, so marking twice is marking once, though the last
    rule looks at those who are left.

    Args:
        frame: rows of ratings with `system`; without the columns that a rule needs (`check_passed`,
            `choice`) nobody falls to it.
        ends: names of the conditions that two of the rules ask for.
        incomplete: ids of sessions that did not come to their end.
    """
    frame = frame.copy()
    if "status_reason" not in frame:
        frame["status_reason"] = ""
    again = (frame["status"] == "exclude") & frame["status_reason"].isin(_judging(rules))
    frame.loc[again, "status"], frame.loc[again, "status_reason"] = "use", ""
    if rules.incomplete_sessions:
        _mark(frame, frame["session_id"].isin(incomplete), _INCOMPLETE)
    for name, rule in RULES:
        used = frame[frame["status"] == "use"]
        if getattr(rules, name) is not None and len(used):
            out = rule(used, rules, ends)
            _mark(frame, frame["rater_id"].isin(out), name.replace("_", " "))
    return frame


def rules_of(rules: Exclusion) -> list[str]:
    """The reasons that the rules in force can give, in the order of their application."""
    return [_INCOMPLETE] * rules.incomplete_sessions + _judging(rules)


def _judging(rules: Exclusion) -> list[str]:
    """The reasons of the rules in force that look at answers, and need nothing else."""
    return [name.replace("_", " ") for name, _ in RULES if getattr(rules, name) is not None]


def _mark(frame: pd.DataFrame, rows: pd.Series, reason: str) -> None:
    rows = rows & (frame["status"] == "use")
    frame.loc[rows, "status_reason"] = reason
    frame.loc[rows, "status"] = "exclude"


def _failed(frame: pd.DataFrame, kind: str, allowed: int) -> set[str]:
    if "check_passed" not in frame:
        return set()
    checks = frame[frame["trial_type"] == kind]
    wrong = pd.to_numeric(checks["check_passed"], errors="coerce").eq(0)
    errors = wrong.groupby(checks["rater_id"]).sum()
    return set(errors[errors > allowed].index)


def _trap_errors(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    assert rules.trap_errors is not None
    return _failed(frame, "trap", rules.trap_errors)


def _gold_errors(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    assert rules.gold_errors is not None
    return _failed(frame, "gold", rules.gold_errors)


def _same_answer(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    assert rules.same_answer_share is not None
    scored = frame[frame["trial_type"].isin(SCORED_TRIALS)]
    answers = scored["score"].astype(object)
    if "choice" in scored:
        answers = answers.where(scored["score"].notna(), scored["choice"])
    by_rater = answers.groupby(scored["rater_id"])
    share = by_rater.agg(lambda given: given.value_counts(normalize=True).max())
    judged = by_rater.count() >= FEWEST_ANSWERS
    return set(share[judged & (share >= rules.same_answer_share)].index)


def _repeats(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    """Mean distance between the two scores of a repeated trial, per rater."""
    assert rules.repeat_difference is not None
    keys = ["rater_id", "stimulus_id"] + [c for c in ("stimulus_b_id", "dimension") if c in frame]
    filled = frame.assign(**{key: frame[key].fillna("") for key in keys})
    first = filled[filled["trial_type"].isin(SCORED_TRIALS)][[*keys, "score"]]
    again = filled[filled["trial_type"] == "repeat"][[*keys, "score"]]
    both = again.merge(first, on=keys, suffixes=("_again", "_first"))
    distance = (both["score_again"] - both["score_first"]).abs().groupby(both["rater_id"]).mean()
    return set(distance[distance > rules.repeat_difference].index)


def _scores(frame: pd.DataFrame, system: str | None) -> pd.DataFrame:
    kept = frame["trial_type"].isin(SCORED_TRIALS) & frame["score"].notna()
    return frame[kept & (frame["system"] == system)]


def _reference(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    """BS.1534-3: who scores the hidden reference too low in too many of the texts."""
    assert rules.reference_below is not None
    lowest, allowed = rules.reference_below
    scored = _scores(frame, ends.reference)
    share = (scored["score"] < lowest).groupby(scored["rater_id"]).mean()
    return set(share[share > allowed].index)


def _anchor(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    """BS.1534-3: who scores the mid anchor too high in too many of the texts.

    A text whose anchor more than a quarter of the raters score so high was not degraded enough by
    it, and does not count.
    """
    assert rules.anchor_above is not None
    highest, allowed = rules.anchor_above
    scored = _scores(frame, ends.mid_anchor)
    high = scored["score"] > highest
    told = high.groupby(scored["item_id"]).mean() <= _TOO_GOOD
    counted = scored["item_id"].map(told).astype(bool)
    share = high[counted].groupby(scored["rater_id"][counted]).mean()
    return set(share[share > allowed].index)


def _correlation(frame: pd.DataFrame, rules: Exclusion, ends: Ends) -> set[str]:
    assert rules.correlation_below is not None
    scored = frame[frame["trial_type"].isin(SCORED_TRIALS) & frame["score"].notna()]
    if "stimulus_b_id" in scored:  # a comparison is of both its clips, in the order heard
        both = scored["stimulus_id"] + "\0" + scored["stimulus_b_id"].fillna("")
        scored = scored.assign(stimulus_id=both)
    found = rater_correlations(scored)
    return {rater for rater, r in found.items() if r is not None and r < rules.correlation_below}


RULES: tuple[tuple[str, Rule], ...] = (
    ("trap_errors", _trap_errors),
    ("gold_errors", _gold_errors),
    ("same_answer_share", _same_answer),
    ("repeat_difference", _repeats),
    ("reference_below", _reference),
    ("anchor_above", _anchor),
    ("correlation_below", _correlation),
)
