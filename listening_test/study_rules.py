"""What the parts of a study mean together: a rule's breach says where it is, and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from listening_test.incomplete import session_lengths
from listening_test.methods import MID_ANCHOR, NEEDS_REFERENCE, SLIDER
from listening_test.methods import questions as standard_questions

if TYPE_CHECKING:
    from listening_test.study import Study
    from listening_test.study_parts import Exclusion, Platform

# Numbers of trials that a message lists, the longest sessions.
_LENGTHS = 8


class Breach(ValueError):
    """A rule is broken; `loc` leads to the key to blame, as in pydantic's errors."""

    def __init__(self, message: str, *loc: str | int) -> None:
        super().__init__(message)
        self.loc = loc


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
    """Raise Breach for the first rule that the study breaks."""
    for rule in (
        _check_ids, _check_method, _check_anchors, _check_margin, _check_wording, _check_practice,
        _check_prompts, _check_answers, _check_trials, _check_languages,
    ):  # fmt: skip
        rule(study)


def _check_ids(study: Study) -> None:
    known: set[str] = set()
    for key in ("items", "practice", "traps", "gold"):
        for number, part in enumerate(getattr(study, key)):
            if part.id in known:
                raise Breach(
                    f"{part.id} is listed under two of items, practice, traps and gold; take "
                    "another text for practice, and another id for a check",
                    key, number,
                )  # fmt: skip
            known.add(part.id)


def _check_method(study: Study) -> None:
    names = [system.name for system in study.systems]
    needed = study.method in NEEDS_REFERENCE
    if needed and study.reference is None:
        raise Breach(
            f"method {study.method} compares with a reference: name the system, `reference:`",
            "method",
        )
    if not needed and study.reference is not None:
        raise Breach(f"method {study.method} has no reference; leave `reference:` out", "reference")
    if study.reference is not None and study.reference not in names:
        raise Breach(f"{study.reference!r} is not one of {', '.join(names)}", "reference")
    if study.null_pairs and study.layout.conditions != "pair":
        raise Breach(
            "null_pairs belong to methods that compare pairs; leave them out", "null_pairs"
        )
    if study.layout.conditions != "each" and len(study.systems) < 2:
        raise Breach(f"method {study.method} compares systems; give two or more", "systems")


def _check_anchors(study: Study) -> None:
    systems = {system.name for system in study.systems}
    known = systems | {anchor.label for anchor in study.anchors if anchor.folder}
    if study.anchors and study.layout.conditions == "pair":
        raise Breach(
            f"method {study.method} has no anchors, since every system would be compared with "
            "them; leave `anchors:` out",
            "anchors",
        )
    for number, anchor in enumerate(study.anchors):
        if anchor.label in systems:
            raise Breach(
                f"system {anchor.label} has the name of an anchor; give one of them another name",
                "anchors", number,
            )  # fmt: skip
        if anchor.folder is None and study.origin(anchor) is None:
            raise Breach(
                f"{anchor.label} is made from which clips? Add `of:`, one of "
                f"{', '.join(sorted(known))}",
                "anchors", number,
            )  # fmt: skip
        if anchor.of is not None and anchor.of not in known:
            raise Breach(
                f"{anchor.of!r} is not one of {', '.join(sorted(known))}", "anchors", number, "of"
            )


def _check_wording(study: Study) -> None:
    questions = standard_questions(study.method, study.dimension)
    own = "question" if study.question else "labels"
    if (study.question or study.labels) and len(questions) > 1:
        raise Breach(f"method {study.method} asks {len(questions)} questions as they are", own)
    if study.labels and len(study.labels) != len(questions[0].options):
        raise Breach(
            f"labels must be {len(questions[0].options)}, not {len(study.labels)}", "labels"
        )


def _check_margin(study: Study) -> None:
    widest = {"mushra": SLIDER[1], "ccr": 3}.get(study.method, 4)
    margin = study.non_inferiority_margin
    if margin is not None and margin >= widest:
        raise Breach(
            f"two {study.method} scores differ by {widest} at most; give what would still be "
            "called no worse, or null",
            "non_inferiority_margin",
        )
    if study.exclusion.anchor_above is not None and study.mid_anchor is None:
        raise Breach(
            f"anchor_above needs the mid anchor; add {MID_ANCHOR} to `anchors:`",
            "exclusion", "anchor_above",
        )  # fmt: skip


def _check_practice(study: Study) -> None:
    one = study.layout.conditions in ("each", "reference")
    for number, clip in enumerate(study.practice):
        if one and clip.system is None:
            raise Breach(
                f"practice clip {clip.id} needs a `system:`, whose clip it is", "practice", number
            )
        if not one and clip.system is not None:
            raise Breach(
                f"practice {clip.id} takes all systems; leave `system:` out",
                "practice", number, "system",
            )  # fmt: skip
        if clip.system is not None and clip.system not in study.names:
            raise Breach(
                f"practice clip {clip.id} names system {clip.system!r}, which is not one of "
                f"{', '.join(sorted(study.names))}",
                "practice", number, "system",
            )  # fmt: skip


def _check_prompts(study: Study) -> None:
    policies = {system.name for system in study.systems if system.policy}
    for number, item in enumerate(study.items):
        if policies and item.prompt is None:
            raise Breach(
                f"item {item.id} needs a `prompt:`, since a system is decoded", "items", number
            )
    for number, clip in enumerate(study.practice):
        heard = study.names if clip.system is None else [clip.system]
        made_from = {study.origin(a) for a in study.anchors if a.label in heard}
        if clip.prompt is None and policies & {*heard, *made_from, study.reference}:
            raise Breach(
                f"practice clip {clip.id} needs a `prompt:`, it is decoded", "practice", number
            )


def _check_answers(study: Study) -> None:
    wanted = max(len(study.layout.names), 1)
    asked = study.questions[-1]  # P.835's overall score, or the only question
    for key in ("traps", "gold"):
        checks = getattr(study, key)
        if checks and study.method in ("mushra", "abx"):
            raise Breach(f"{study.method} has checks of its own; leave traps and gold out", key)
        for number, check in enumerate(checks):
            if len(check.files) != wanted:
                raise Breach(
                    f"{check.id} has {len(check.files)} files; a trial has {wanted} clips",
                    key, number, "files",
                )  # fmt: skip
            if not asked.allows(check.answer):
                known = ", ".join(str(value) for value, _ in asked.options)
                raise Breach(
                    f"{check.id}: answer {check.answer!r} is none of {known}",
                    key, number, "answer",
                )  # fmt: skip


def _check_trials(study: Study) -> None:
    n, per, items = study.conditions, study.trials_per_rater, len(study.items)
    if study.same_text == "once":
        _check_once(study)
    elif per is not None and (per % n or per > n * items):
        each = "systems and anchors" if study.anchors else "systems"
        what = f"{n} {each}" if study.layout.conditions == "each" else f"{n} trials of a text"
        raise Breach(
            f"trials_per_rater is {per}; it must be a multiple of the {what} and at most "
            f"{n * items} (every rater hears each of their texts under all of them; "
            "`same_text: once` spreads them over raters)",
            "trials_per_rater",
        )
    elif study.same_text == "apart" and n > 1 and study.items_per_rater < 2:
        raise Breach(
            "one text per rater would be heard back to back under every system; "
            "give two items or more per rater, or `same_text: together`",
            "items" if per is None else "trials_per_rater",
        )
    if study.repeats > study.trials // 2:
        raise Breach(
            f"repeats is {study.repeats}; at most half the trials can come again", "repeats"
        )


def _check_once(study: Study) -> None:
    n, items = study.conditions, len(study.items)
    lengths = session_lengths(items, n)
    if study.trials_per_rater not in lengths:
        many = len(lengths) > _LENGTHS
        listed = ", ".join(map(str, lengths[-_LENGTHS:]))
        raise Breach(
            "with `same_text: once`, give `trials_per_rater:`, at most one for each of the "
            f"{items} texts, and a multiple or a whole share of the {n} conditions: "
            f"{'for example ' if many else ''}{listed}",
            "same_text" if study.trials_per_rater is None else "trials_per_rater",
        )


def _check_languages(study: Study) -> None:
    """A further language has all of the study's own words, or a rater would read two."""
    if study.language in study.languages:
        raise Breach(
            f"{study.language} is the study's `language:` already; leave it out of `languages:`",
            "languages", study.language,
        )  # fmt: skip
    for name, words in study.languages.items():
        for key in ("consent", "instructions", "question", "labels", "payment"):
            own, theirs = getattr(study, key), getattr(words, key)
            # By value: a study read from its record has every key given.
            standard = own == type(study).model_fields[key].default
            if own is None and theirs is not None:
                raise Breach(
                    f"{key} stands in languages: {name}: only; give it above as well",
                    "languages", name, key,
                )  # fmt: skip
            if not standard and own is not None and theirs is None:
                raise Breach(
                    f"{key} is the study's own; give it under languages: {name}: too",
                    "languages", name,
                )  # fmt: skip
        if study.labels and words.labels and len(words.labels) != len(study.labels):
            raise Breach(
                f"labels under languages: {name}: must be {len(study.labels)}",
                "languages", name, "labels",
            )  # fmt: skip
        _check_translated(study, name)


def _check_translated(study: Study, name: str) -> None:
    given, where = study.languages[name].questionnaire, ("languages", name, "questionnaire")
    asked = {question.id: question for question in study.questionnaire}
    if unknown := set(given) - set(asked):
        raise Breach(
            f"{', '.join(sorted(unknown))} under languages: {name}: is no question of the "
            "questionnaire",
            *where,
        )
    for question in study.questionnaire:
        own, theirs = question.choices, given.get(question.id)
        if theirs is None:
            raise Breach(f"question {question.id} is missing under languages: {name}:", *where)
        if len(own or ()) != len(theirs.choices or ()):
            raise Breach(
                f"question {question.id} has {len(own or ())} choices, and under languages: "
                f"{name}: {len(theirs.choices or ())}; give as many, in the same order",
                *where, question.id,
            )  # fmt: skip
