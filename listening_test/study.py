"""The study file: what is tested, on whom and how, checked before anything else happens.

One YAML file is the whole study; `Study.sha256` goes on every rating. This module knows nothing
of audio, of the server or of raters; it only turns text into a validated `Study`, or into a
`StudyError` that names the line and says what to write instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from listening_test.methods import (
    LAYOUTS,
    MID_ANCHOR,
    SLIDER,
    Dimension,
    Layout,
    MethodName,
    Question,
    conditions,
)
from listening_test.methods import questions as standard_questions
from listening_test.never import check_exclusion
from listening_test.study_parts import (
    MOST_ANCHORS,
    MOST_SYSTEMS,
    PATTERNS,
    Anchor,
    Check,
    Exclusion,
    Item,
    Language,
    Line,
    Name,
    Part,
    Passage,
    PersonalQuestion,
    Platform,
    Practice,
    Reporting,
    SameText,
    Screening,
    Slug,
    Stop,
    System,
    Words,
)
from listening_test.study_rules import check_codes, check_consistent, twice_in
from listening_test.wording import CONSENT, INSTRUCTIONS, in_language

DEFAULT_CONSENT = CONSENT["en"]
DEFAULT_INSTRUCTIONS = INSTRUCTIONS["en"]
# The longest study (2,000 texts with prompts of 300 letters) has 0.7 MB.
MOST_BYTES = 1_000_000
# Of non-inferiority, on a scale from 1 to 5: the size of gap that listening tests are planned for.
USUAL_MARGIN = 0.2
# Keys that came later: left out of the hash where they say nothing, so that a study without them
# keeps the hash that is on its ratings.
_LATER = ("report", "languages", "raters", "stop_rule", "payment", "same_text")

# Context of validation: a study file that is read anew, and no study on record.
NEW = "new"


class StudyError(ValueError):
    """The study file cannot be used; the message names file, line and remedy."""


class Study(Part):
    """A validated study. Field names are the keys of the YAML file."""

    id: Slug
    title: Line
    method: MethodName = "acr"
    dimension: Dimension = "naturalness"
    question: Line | None = None
    labels: tuple[Line, ...] | None = None
    consent: Passage = DEFAULT_CONSENT
    instructions: Passage = DEFAULT_INSTRUCTIONS
    language: Language = "en"
    languages: dict[Language, Words] = Field(default_factory=dict)
    payment: Line | None = None
    systems: Annotated[tuple[System, ...], Field(min_length=1, max_length=MOST_SYSTEMS)]
    reference: Name | None = None
    anchors: Annotated[tuple[Anchor, ...], Field(max_length=MOST_ANCHORS)] = ()
    items: Annotated[tuple[Item, ...], Field(min_length=1, max_length=2000)]
    practice: Annotated[tuple[Practice, ...], Field(max_length=10)] = ()
    traps: Annotated[tuple[Check, ...], Field(max_length=10)] = ()
    gold: Annotated[tuple[Check, ...], Field(max_length=10)] = ()
    repeats: Annotated[int, Field(ge=0, le=10)] = 0
    null_pairs: Annotated[int, Field(ge=0, le=10)] = 0
    trials_per_rater: Annotated[int, Field(ge=1, le=500)] | None = None
    same_text: SameText = "apart"
    ratings_per_stimulus: Annotated[int, Field(ge=1, le=1000)] = 8
    raters: Annotated[int, Field(ge=1, le=100_000)] | None = None
    stop_rule: Stop | None = None
    exclusion: Exclusion = Exclusion()
    questionnaire: Annotated[tuple[PersonalQuestion, ...], Field(max_length=12)] = ()
    screening: Screening | None = None
    platform: Platform | None = None
    model: Name = "embedded"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    loudness_lufs: Annotated[float, Field(ge=-40, le=-14)] = -26.0
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] | None = None
    # In points of the method's scale; where it is not given, see `_usual_margin`.
    non_inferiority_margin: Annotated[float, Field(gt=0)] | None = USUAL_MARGIN
    report: Reporting = Reporting()

    @field_validator("systems", "anchors", "items", "practice", "traps", "gold", "questionnaire")
    @classmethod
    def _unique(cls, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [part.label if isinstance(part, System | Anchor) else part.id for part in parts]
        if twice := twice_in(names):
            raise ValueError(f"{twice} is listed twice; give each its own name")
        return parts

    @field_validator("platform")
    @classmethod
    def _codes(cls, platform: Platform | None, info: ValidationInfo) -> Platform | None:
        if "traps" in info.data and "exclusion" in info.data:  # else told already
            check_codes(platform, len(info.data["traps"]), info.data["exclusion"])
        return platform

    @model_validator(mode="before")
    @classmethod
    def _usual_margin(cls, given: Any) -> Any:
        """The same share of a MUSHRA test's longer scale."""
        if isinstance(given, dict) and given.get("method") == "mushra":
            return {"non_inferiority_margin": USUAL_MARGIN * SLIDER[1] / 4, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Study:
        check_consistent(self)
        if info.context == NEW:
            check_exclusion(self)
        return self

    # Folder of the study file. Not a field: moving the study does not change its hash.
    _base: Path = PrivateAttr(default=Path("."))

    def file(self, path: Path) -> Path:
        """Where a file named in the study lies."""
        return self._base / path

    @property
    def layout(self) -> Layout:
        """How a trial of the study's method is made of clips."""
        return LAYOUTS[self.method]

    @property
    def heard(self) -> list[System | Anchor]:
        """What each text is heard under: the systems, then the anchors."""
        return [*self.systems, *self.anchors]

    @property
    def names(self) -> list[str]:
        """The names of `heard`."""
        return [part.label for part in self.heard]

    @property
    def mid_anchor(self) -> str | None:
        """The name of BS.1534's mid anchor, if it is there."""
        return next((a.label for a in self.anchors if a.low_pass == MID_ANCHOR), None)

    def origin(self, anchor: Anchor) -> str | None:
        """Whose clips an anchor is made from; None if it has its own."""
        return None if anchor.folder else anchor.of or self.reference

    @property
    def conditions(self) -> int:
        """Trials of one text: one a system or anchor, one a pair of systems, or one in all."""
        return conditions(self.layout, len(self.names))

    @property
    def trials(self) -> int:
        """Trials of one rater, without practice, checks, repeats and null pairs."""
        return self.trials_per_rater or len(self.items) * self.conditions

    @property
    def items_per_rater(self) -> int:
        """Texts one rater hears, each under every condition, or under one (`same_text: once`)."""
        return self.trials // (1 if self.same_text == "once" else self.conditions)

    @property
    def planned_sessions(self) -> int:
        """Sessions for `ratings_per_stimulus` ratings of every stimulus or pair, or `raters`.

        The larger of the two: both are wanted at least.
        """
        wanted = self.ratings_per_stimulus * len(self.items) * self.conditions
        return max(self.raters or 1, -(-wanted // self.trials))

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the rater is asked in each trial: the standard's words, or the study's own."""
        return self.questions_in(self.language, self.question, self.labels)

    def questions_in(
        self, language: str, question: str | None, labels: tuple[str, ...] | None
    ) -> tuple[Question, ...]:
        """What is asked in a language, with the study's own words for it where there are any."""
        asked = standard_questions(self.method, self.dimension)
        asked = tuple(in_language(one, language) for one in asked)
        if question is None and labels is None:
            return asked
        (one,) = asked
        scale_id = one.scale_id if labels is None else self._own_scale(language, labels)
        labels = labels or tuple(label for _, label in one.options)
        options = tuple(zip((value for value, _ in one.options), labels, strict=True))
        return (replace(one, text=question or one.text, options=options, scale_id=scale_id),)

    def _own_scale(self, language: str, labels: tuple[str, ...]) -> str:
        further = "" if language == self.language else f"-{language}"
        return f"{self.id}-{len(labels)}{further}"

    @property
    def sha256(self) -> str:
        """Hash of the study's content: comments and layout of the YAML do not change it."""
        fields = type(self).model_fields
        unused: dict[str, Any] = {
            name: True for name in _LATER
            if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }  # fmt: skip
        if self.platform and self.platform.failed_check is None:
            unused["platform"] = {"failed_check"}  # came later too
        if self.exclusion.anchor_above is None:  # came later too
            unused["exclusion"] = {"anchor_above"}
        content = self.model_dump(mode="json", exclude=unused)
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_study(path: Path) -> Study:
    """Read and check a study file; folders in it are relative to the file itself.

    Raises:
        StudyError: the file is missing, is not YAML, or says something impossible.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}). Give a UTF-8 YAML file.") from error
    if len(data) > MOST_BYTES:
        raise StudyError(
            f"{path.name}: {len(data) / 1e6:.1f} MB is no study file; it has at most "
            f"{MOST_BYTES / 1e6:g} MB."
        )
    tree = _tree(path.name, text)
    if not isinstance(tree, dict):
        raise StudyError(f"{path.name} line 1: a study file is a list of `key: value` lines.")
    try:
        study = Study.model_validate(_plain(tree), context=NEW)
    except ValidationError as error:
        raise StudyError(_explain(path, tree, error)) from None
    study._base = path.resolve().parent
    for key in ("systems", "anchors"):
        for number, part in enumerate(getattr(study, key)):
            if part.folder and not study.file(part.folder).is_dir():
                where = _line(tree, (key, number, "folder"))
                raise StudyError(
                    f"{path.name} line {where}: {part.label}: there is no folder "
                    f"{study.file(part.folder)}. Write a path relative to the study file."
                )
    return study


def _tree(name: str, text: str) -> Any:
    """The YAML of a study file, with its lines; nothing in it stands for another part of it."""
    try:
        for event in YAML(typ="rt").parse(text):
            if isinstance(event, AliasEvent):
                raise StudyError(
                    f"{name} line {event.start_mark.line + 1}: `*{event.anchor}` stands for "
                    "another part of the file; write it out."
                )
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = re.sub(r"\s+", " ", str(error.problem or error.context))
        problem += "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise StudyError(f"{name}{line}: not valid YAML: {problem}.") from error
    except RecursionError:
        raise StudyError(f"{name}: not valid YAML: brackets within brackets without end.") from None
    except StudyError:
        raise
    except (YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        problem = re.sub(r"\s+", " ", str(error))
        raise StudyError(f"{name}: not valid YAML: {problem}.") from error


def _plain(node: Any) -> Any:
    """ruamel's annotated containers as plain ones, so that pydantic sees only data."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _explain(path: Path, tree: Any, error: ValidationError) -> str:
    problems = error.errors()
    lines = []
    for problem in problems:
        # What a rule across the keys blames is in its exception.
        loc = problem["loc"] or getattr(problem.get("ctx", {}).get("error"), "loc", ())
        within = [other for other in problems if other["loc"][: len(loc)] == loc != other["loc"]]
        if problem["type"] == "too_short" and within:
            continue  # its parts do not count since they are wrong, as is said
        where = ".".join(map(str, loc)) or "study"
        lines.append(f"{path.name} line {_line(tree, loc)}: {where}: {_what(problem, loc)}.")
    return "\n".join(lines)


def _what(problem: ErrorDetails, loc: tuple[int | str, ...]) -> str:
    """What is wrong, and what to write instead."""
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        known = list(_part_at(loc).model_fields)
        close = get_close_matches(str(loc[-1]), known, 1)
        meant = f" (did you mean `{close[0]}`?)" if close else ""
        return f"unknown key{meant}; known keys: {', '.join(known)}"
    if kind == "missing":
        return "is missing; add it"
    if given is None:
        return "is empty; give a value, or leave the key out"
    if kind == "model_type":
        keys = ", ".join(_part_at((*loc, "")).model_fields)
        return f"must be `key: value` pairs; known keys: {keys} (found {given!r})"
    if kind == "string_type" and isinstance(given, int | float | date):
        return f"must be text: write it in quotes (found {given})"
    what = problem["msg"].removeprefix("Value error, ")
    if kind == "tuple_type":
        what = "must be a list: `[...]`, or lines that begin with `-`"
    elif kind == "too_short":
        least = problem["ctx"]["min_length"]
        what = f"needs at least {least}" if least > 1 else "must not be an empty list"
    elif kind == "string_pattern_mismatch":
        what = f"must be {PATTERNS[problem['ctx']['pattern']]}"
    found = isinstance(given, str | int | float) and bool(loc)
    return f"{what} (found {given!r})" if found else what


def _part_at(loc: tuple[int | str, ...]) -> type[Part]:
    """The part of a study that holds the last key of `loc`."""
    part: type[Part] = Study
    for key in loc[:-1]:
        if isinstance(key, str) and key in part.model_fields:
            part = _part_in(part.model_fields[key].annotation) or part
    return part


def _part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next(filter(None, map(_part_in, get_args(annotation))), None)


def _line(tree: Any, loc: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of `loc` that the file holds."""
    node: Any = tree
    line: int = tree.lc.line
    for part in loc:
        lines = getattr(getattr(node, "lc", None), "data", None) or {}
        if part not in lines:
            break
        line = lines[part][0]
        node = node[part]
    return line + 1
