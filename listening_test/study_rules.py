"""What the parts of a study mean together: each rule's breach is a ValueError with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from listening_test.methods import NEEDS_REFERENCE, anchor_name
from listening_test.methods import questions as standard_questions

if TYPE_CHECKING:
    from listening_test.study import Study
    from listening_test.study_parts import Exclusion, Platform


def twice_in(names: list[str]) -> str:
    """The names that are listed more than once, for a message."""
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def check_codes(platform: Platform | None, traps: int, exclusion: Exclusion) -> None:
    """Raise ValueError for a code that nobody could ever get."""
    if platform is None or platform.failed_check is None:
        return
    if not traps:
        raise ValueError(
            "`failed_check:` is for who gets traps wrong, and the study has none; add `traps:`, or "
            "leave the code out"
        )
    if (exclusion.trap_errors or 0) >= traps:
        raise ValueError(
            f"`failed_check:` would never be given: `trap_errors: {exclusion.trap_errors}` "
            "forgives as many wrong traps as there are; lower it, or leave the code out"
        )


def check_consistent(study: Study) -> None:
    """Raise ValueError for the first rule that the study breaks."""
    ids = [clip.id for clip in study.practice] + [item.id for item in study.items]
    ids += [check.id for check in (*study.traps, *study.gold)]
    if twice := twice_in(ids):
        raise ValueError(
            f"{twice} is listed under two of items, practice, traps and gold; take another "
            "text for practice, and another id for a check"
        )
    for rule in (
        _check_method, _check_practice, _check_prompts, _check_answers, _check_trials,
        _check_languages,
    ):  # fmt: skip
        rule(study)


def _check_method(study: Study) -> None:
    names = {system.name for system in study.systems}
    needed = study.method in NEEDS_REFERENCE
    if needed != (study.reference is not None):
        raise ValueError(
            f"method {study.method} compares with a reference: name the system, `reference:`"
            if needed
            else f"method {study.method} has no reference; leave `reference:` out"
        )
    if study.reference is not None and study.reference not in names:
        raise ValueError(f"reference {study.reference!r} is not one of {', '.join(sorted(names))}")
    if study.anchors and study.method != "mushra":
        raise ValueError("anchors belong to method mushra; leave `anchors:` out")
    if taken := names & {anchor_name(cutoff) for cutoff in study.anchors}:
        raise ValueError(f"system {taken.pop()} has the name of an anchor; take another name")
    if twice := twice_in([anchor_name(cutoff) for cutoff in study.anchors]):
        raise ValueError(f"{twice} is listed twice under anchors")
    if study.null_pairs and study.layout.conditions != "pair":
        raise ValueError("null_pairs belong to methods that compare pairs; leave them out")
    if study.layout.conditions != "each" and len(study.systems) < 2:
        raise ValueError(f"method {study.method} compares systems; give two or more")
    questions = standard_questions(study.method, study.dimension)
    if (study.question or study.labels) and len(questions) > 1:
        raise ValueError(f"method {study.method} asks {len(questions)} questions as they are")
    if study.labels and len(study.labels) != len(questions[0].options):
        raise ValueError(f"labels must be {len(questions[0].options)}, not {len(study.labels)}")


def _check_practice(study: Study) -> None:
    names = {system.name for system in study.systems}
    one = study.layout.conditions in ("each", "reference")
    for clip in study.practice:
        if one and clip.system is None:
            raise ValueError(f"practice clip {clip.id} needs a `system:`, whose clip it is")
        if not one and clip.system is not None:
            raise ValueError(f"practice {clip.id} takes all systems; leave `system:` out")
        if clip.system is not None and clip.system not in names:
            raise ValueError(
                f"practice clip {clip.id} names system {clip.system!r}, which is not one of "
                f"{', '.join(sorted(names))}"
            )


def _check_prompts(study: Study) -> None:
    policies = {system.name for system in study.systems if system.policy}
    for item in study.items:
        if policies and item.prompt is None:
            raise ValueError(f"item {item.id} needs a `prompt:`, since a system is decoded")
    for clip in study.practice:
        decoded = bool(policies) if clip.system is None else clip.system in policies
        if decoded and clip.prompt is None:
            raise ValueError(f"practice clip {clip.id} needs a `prompt:`, it is decoded")


def _check_answers(study: Study) -> None:
    checks = (*study.traps, *study.gold)
    if not checks:
        return
    if study.method in ("mushra", "abx"):
        raise ValueError(f"{study.method} has checks of its own; leave traps and gold out")
    wanted = max(len(study.layout.names), 1)
    asked = study.questions[-1]  # P.835's overall score, or the only question
    for check in checks:
        if len(check.files) != wanted:
            raise ValueError(f"{check.id} has {len(check.files)} files; a trial has {wanted} clips")
        if not asked.allows(check.answer):
            known = ", ".join(str(value) for value, _ in asked.options)
            raise ValueError(f"{check.id}: answer {check.answer!r} is none of {known}")


def _check_trials(study: Study) -> None:
    n, per = study.conditions, study.trials_per_rater
    if per is not None and (per % n or per > n * len(study.items)):
        what = f"{n} systems" if study.layout.conditions == "each" else f"{n} trials of a text"
        raise ValueError(
            f"trials_per_rater is {per}; it must be a multiple of the {what} and at most "
            f"{n * len(study.items)} (every rater hears each of their texts under all systems)"
        )
    if n > 1 and study.items_per_rater < 2:
        raise ValueError(
            "one text per rater would be heard back to back under every system; "
            "give two items or more per rater"
        )
    if study.repeats > study.items_per_rater * n // 2:
        raise ValueError(f"repeats is {study.repeats}; at most half the trials can come again")


def _check_languages(study: Study) -> None:
    """A further language has all of the study's own words, or a rater would read two."""
    if study.language in study.languages:
        raise ValueError(
            f"{study.language} is the study's `language:` already; leave it out of `languages:`"
        )
    for name, words in study.languages.items():
        for key in ("consent", "instructions", "question", "labels", "payment"):
            own, theirs = getattr(study, key), getattr(words, key)
            # By value: a study read from its record has every key given.
            standard = own == type(study).model_fields[key].default
            if own is None and theirs is not None:
                raise ValueError(f"{key} stands in languages: {name}: only; give it above as well")
            if not standard and own is not None and theirs is None:
                raise ValueError(f"{key} is the study's own; give it under languages: {name}: too")
        if study.labels and words.labels and len(words.labels) != len(study.labels):
            raise ValueError(f"labels under languages: {name}: must be {len(study.labels)}")
        _check_translated(study, name)


def _check_translated(study: Study, name: str) -> None:
    given = study.languages[name].questionnaire
    asked = {question.id: question for question in study.questionnaire}
    if unknown := set(given) - set(asked):
        raise ValueError(
            f"{', '.join(sorted(unknown))} under languages: {name}: is no question of the "
            "questionnaire"
        )
    for question in study.questionnaire:
        own, theirs = question.choices, given.get(question.id)
        if theirs is None:
            raise ValueError(f"question {question.id} is missing under languages: {name}:")
        if len(own or ()) != len(theirs.choices or ()):
            raise ValueError(
                f"question {question.id} has {len(own or ())} choices, and under languages: "
                f"{name}: {len(theirs.choices or ())}; give as many, in the same order"
            )
