"""Rules of exclusion that could leave nobody out, whatever the raters do: refused before the test.

A report would tell of a rule that never judged anyone. Asked of a study file that is read anew
only: a study on record keeps what was fixed for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from listening_test.methods import CHOICE_METHODS, SLIDER
from listening_test.study_parts import FEWEST_ANSWERS, FEWEST_STIMULI
from listening_test.study_rules import Breach

if TYPE_CHECKING:
    from listening_test.study import Study


def check_exclusion(study: Study) -> None:
    """Raise Breach for the first rule of `exclusion:` that can never fit."""
    for key, why in _never(study).items():
        if why is not None and getattr(study.exclusion, key) is not None:
            raise Breach(f"could never leave anybody out: {why}", "exclusion", key)


def _never(study: Study) -> dict[str, str | None]:
    """By rule, why it cannot fit and the remedy; None where it can."""
    rules = study.exclusion
    return {
        "trap_errors": _checks("trap", "traps", len(study.traps), rules.trap_errors),
        "gold_errors": _checks("gold clip", "gold", len(study.gold), rules.gold_errors),
        "same_answer_share": _same_answer(study),
        "repeat_difference": _repeats(study),
        "correlation_below": _correlation(study),
        "reference_below": _reference(study),
        "anchor_above": _anchor(study),
    }


def _checks(name: str, key: str, there: int, forgiven: int | None) -> str | None:
    if not there:
        return f"the study has no {name}; add `{key}:`, or leave the rule out"
    if forgiven is not None and forgiven >= there:
        return (
            f"{forgiven} wrong are forgiven, and the study has {there} under `{key}:`; give less "
            f"than {there}, or leave the rule out"
        )
    return None


def _correlation(study: Study) -> str | None:
    if (study.exclusion.correlation_below or 0) <= -1:
        return "no correlation is below -1; give more, or leave the rule out"
    if (scored := _scored(study)) < FEWEST_STIMULI:
        return (
            f"a rater scores {scored}, and {FEWEST_STIMULI} are the fewest that it judges; give a "
            "rater more trials, or leave the rule out"
        )
    return _unscored(study)


def _unscored(study: Study) -> str | None:
    if study.method in CHOICE_METHODS:
        return f"the answers of method {study.method} are no scores; leave the rule out"
    return None


def _scored(study: Study) -> int:
    """Stimuli, or pairs of them, that a rater scores."""
    return study.trials * (len(study.names) if study.layout.conditions == "all" else 1)


def _same_answer(study: Study) -> str | None:
    answers = (_scored(study) + study.null_pairs) * len(study.questions)
    if answers < FEWEST_ANSWERS:
        return (
            f"a rater gives {answers} answers, and {FEWEST_ANSWERS} are the fewest that it judges; "
            "give a rater more trials, or leave the rule out"
        )
    return None


def _repeats(study: Study) -> str | None:
    if not study.repeats:
        return "no trial comes again; add `repeats:`, such as 2, or leave the rule out"
    furthest = {"mushra": SLIDER[1], "ccr": 6}.get(study.method, 4)
    if (study.exclusion.repeat_difference or 0) >= furthest:
        return f"two answers differ by {furthest} at most; give less, or leave the rule out"
    return _unscored(study)


def _reference(study: Study) -> str | None:
    if study.method != "mushra":
        return (
            f"method {study.method} has no hidden reference that is scored, as mushra has; leave "
            "the rule out"
        )
    lowest, share = study.exclusion.reference_below or (1, 0.0)
    if lowest <= SLIDER[0] or share >= 1:
        return "no score is below 0, and no share above 1; give such as [90, 0.15]"
    return None


def _anchor(study: Study) -> str | None:
    highest = SLIDER[1] if study.method == "mushra" else 5
    most, share = study.exclusion.anchor_above or (0, 0.0)
    if most >= highest or share >= 1:
        return (
            f"no {study.method} score is above {highest}, and no share above 1; give a lower "
            "number, or leave the rule out"
        )
    return None
