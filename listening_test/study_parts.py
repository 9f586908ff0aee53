"""The parts of a study file: systems, items, practice, checks, exclusion rules.

Each is a validated value; what they mean together is checked in `study.py`.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from listening_test.methods import Value

# Patterns of names, and what they ask for in words.
_SLUG, _NAME = r"^[a-z0-9][a-z0-9-]{0,39}$", r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,59}$"
_CODE, _COLUMN = r"^[A-Za-z0-9_-]{4,40}$", r"^[a-z][a-z0-9_]{0,29}$"
_LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$"
PATTERNS = {
    _SLUG: "small letters, digits and hyphens, 40 at most, such as my-study",
    _NAME: "letters, digits, spaces and . _ -, 60 at most, the first a letter or digit",
    _CODE: "4 to 40 letters, digits, - and _",
    _COLUMN: "small letters, digits and _, 30 at most, the first a letter",
    _LANGUAGE: "a language tag, such as en or pt-BR",
}
Slug = Annotated[str, StringConstraints(pattern=_SLUG)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Language = Annotated[str, StringConstraints(pattern=_LANGUAGE)]
Code = Annotated[str, StringConstraints(pattern=_CODE)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True)]
Passage = Annotated[str, StringConstraints(min_length=1, max_length=4000, strip_whitespace=True)]
ScoreAndShare = tuple[Annotated[int, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=1)]]
# Fewer answers than this are easily all the same: `same_answer_share` judges nobody by them.
FEWEST_ANSWERS = 5
# A correlation over fewer stimuli says nothing: `correlation_below` judges nobody by it.
FEWEST_STIMULI = 3
# Stands for every code of a platform in a study that is passed on.
WITHHELD = "withheld"
PolicyName = Literal["full", "spark", "confidence"]
# How the hearings of one text by one rater lie: kept apart, one after the other, or only one.
SameText = Literal["apart", "together", "once"]
MOST_SYSTEMS = 26
MOST_ANCHORS = 8


class Part(BaseModel):
    """A strict, frozen piece of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's true is no number 1."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("is a yes or no; the key asks for something else")
        return value


class System(Part):
    """One condition under test: a folder of `<item id>.wav`, or a depth policy to decode with."""

    name: Name
    folder: Path | None = None
    policy: PolicyName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> System:
        if (self.folder is None) == (self.policy is None):
            raise ValueError(
                "give exactly one source: `folder:` (WAV files named <item id>.wav) "
                "or `policy:` (full, spark or confidence)"
            )
        return self

    @property
    def label(self) -> str:
        """What the key and the tables call it."""
        return self.name


class Anchor(Part):
    """A condition of known quality that spans the scale: no system under test.

    Made from the clips of `of`, by a low-pass (`low_pass`, Hz) or modulated noise (`mnru`, Q in
    dB); or a folder of `<item id>.wav`. A bare number is a low-pass.
    """

    name: Name | None = None
    of: Name | None = None
    low_pass: Annotated[int, Field(ge=500, le=20_000)] | None = None
    mnru: Annotated[float, Field(ge=0, le=50)] | None = None
    folder: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        return {"low_pass": given} if isinstance(given, int | float | str) else given

    @model_validator(mode="after")
    def _one_source(self) -> Anchor:
        sources = (self.low_pass, self.mnru, self.folder)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "give exactly one of `low_pass:` (Hz), `mnru:` (Q in dB) and `folder:` (WAV files "
                "named <item id>.wav)"
            )
        if self.folder is not None and self.name is None:
            raise ValueError("an anchor from a folder needs a `name:`")
        if self.folder is not None and self.of is not None:
            raise ValueError("an anchor from a folder is made from no system; leave `of:` out")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, whole: SerializerFunctionWrapHandler) -> Any:
        # A study of before there were other anchors keeps the hash that is on its ratings.
        bare = (self.name, self.of, self.low_pass) == (None, None, self.low_pass)
        return self.low_pass if bare and self.low_pass is not None else whole(self)

    @property
    def label(self) -> str:
        """What the key and the tables call it."""
        if self.name is not None:
            return self.name
        return f"anchor-{self.low_pass}" if self.low_pass else f"anchor-mnru-{self.mnru:g}"


class Item(Part):
    """One text. `prompt` is what the model is asked when a system is a policy.

    `talker` says whose voice it is in every system; it goes into the key and the report.
    """

    id: Name
    prompt: Line | None = None
    talker: Name | None = None

    @model_serializer(mode="wrap")
    def _as_written(self, whole: SerializerFunctionWrapHandler) -> Any:
        # A study of before there were talkers keeps the hash that is on its ratings.
        given = whole(self)
        return given if self.talker else {k: v for k, v in given.items() if k != "talker"}


class Practice(Part):
    """A text heard before the test; its answers are stored but never analysed.

    `system` says whose clip it is, a system's or an anchor's, where a trial holds one such clip;
    the other methods take all clips of the text.
    """

    id: Name
    system: Name | None = None
    prompt: Line | None = None


class Check(Part):
    """A trial whose right answer is known: an instruction (trap) or an obvious case (gold).

    `files` are WAVs, one for each clip of a trial. An answer passes if it is `answer`, or for
    numbers if it is at most `tolerance` away. The browser is never told either.
    """

    id: Name
    files: Annotated[tuple[Path, ...], Field(min_length=1, max_length=2)]
    answer: Value
    tolerance: Annotated[int, Field(ge=0, le=50)] = 0


class Exclusion(Part):
    """Who is left out of the analysis, fixed before the first rating; counted by rule.

    The defaults leave nobody out. `reference_below` and `anchor_above` are the post-screening of
    BS.1534-3: a rater who scores the hidden reference below, or the mid anchor (7 kHz) above, the
    first number in more than the second share of the texts.
    """

    trap_errors: Annotated[int, Field(ge=0)] | None = None
    gold_errors: Annotated[int, Field(ge=0)] | None = None
    same_answer_share: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_difference: Annotated[float, Field(gt=0)] | None = None
    correlation_below: Annotated[float, Field(ge=-1, le=1)] | None = None
    reference_below: ScoreAndShare | None = None
    anchor_above: ScoreAndShare | None = None
    incomplete_sessions: bool = False


OnFail = Literal["screen_out", "note"]


class RoomCheck(Part):
    """Four pairs of a voice under noise: who sits in a noisy room cannot tell them apart."""

    passes: Annotated[int, Field(ge=1, le=4)] = 3
    on_fail: OnFail = "note"


class Screening(Part):
    """Checks of headphones and room before the practice, by sounds made by code.

    A headphone screen has six sounds, of which `passes` must be told right, `both` two such screens
    one after the other, each to be passed. `screen_out` ends the session of who fails; `note` lets
    them go on and writes it down.
    """

    headphones: Literal["woods", "huggins", "both"] | None = None
    passes: Annotated[int, Field(ge=1, le=6)] = 5
    on_fail: OnFail = "note"
    environment: RoomCheck | None = None

    @model_validator(mode="after")
    def _some(self) -> Screening:
        if self.headphones is None and self.environment is None:
            raise ValueError(
                "give `headphones:` (woods, huggins or both), or `environment:` (`{passes: 3}`)"
            )
        if self.headphones is None and (self.passes, self.on_fail) != (5, "note"):
            raise ValueError(
                "`passes` and `on_fail` belong to `headphones:`; those of the room check go into "
                "`environment: {}`"
            )
        return self

    @property
    def screens(self) -> tuple[Literal["woods", "huggins"], ...]:
        """The headphone screens, in the order taken."""
        if self.headphones is None:
            return ()
        return ("woods", "huggins") if self.headphones == "both" else (self.headphones,)


class PersonalQuestion(Part):
    """A question about the rater: `choices` to pick one from, or else a short free text.

    Nobody has to answer. `id` names its column, `about_<id>`.
    """

    id: Annotated[str, StringConstraints(pattern=_COLUMN)]
    question: Line
    choices: Annotated[tuple[Line, ...], Field(min_length=2, max_length=20)] | None = None

    @model_validator(mode="after")
    def _distinct(self) -> PersonalQuestion:
        if self.choices and len(set(self.choices)) < len(self.choices):
            raise ValueError(f"{self.id} lists a choice twice; each must be different")
        return self


class TranslatedQuestion(Part):
    """A question about the rater in another language; as many choices as the original has."""

    question: Line
    choices: tuple[Line, ...] | None = None


class Words(Part):
    """The study's own words in a further language: all that it has in its first one."""

    title: Line
    consent: Passage | None = None
    instructions: Passage | None = None
    question: Line | None = None
    labels: tuple[Line, ...] | None = None
    payment: Line | None = None
    questionnaire: dict[str, TranslatedQuestion] = {}


class Stop(Part):
    """When the study closes by itself: its end is fixed, whatever the scores say.

    `planned`: with the last planned session; `until`: at the end of that day (UTC).
    """

    planned: bool = False
    # Days after the last that Python knows have no end.
    until: Annotated[date, Field(lt=date(3000, 1, 1))] | None = None

    @model_validator(mode="after")
    def _some(self) -> Stop:
        if not self.planned and self.until is None:
            raise ValueError("give `planned: true`, `until: 2027-01-31`, or both")
        return self


class Platform(Part):
    """Where raters come from, and the codes that the platform gave for their way back.

    `failed_check` is for who came to the end with more wrong traps than `exclusion:` forgives;
    without it they get `completed` as everybody.
    """

    name: Literal["prolific", "mturk", "lab"]
    completed: Code | None = None
    screened_out: Code | None = None
    failed_check: Code | None = None

    @field_validator("completed", "screened_out", "failed_check")
    @classmethod
    def _own_code(cls, code: Code | None, info: ValidationInfo) -> Code | None:
        name = info.data.get("name", "prolific")
        if code is not None and name != "prolific":
            raise ValueError(f"{name} takes no codes; leave `{info.field_name}:` out")
        for other in ("completed", "screened_out"):
            if code not in (None, WITHHELD) and info.data.get(other) == code:
                raise ValueError(f"is the code of `{other}:` too; Prolific made one for each")
        return code

    @model_validator(mode="after")
    def _completed(self) -> Platform:
        if self.name == "prolific" and self.completed is None:
            raise ValueError(
                "give `completed:`, the completion code that Prolific made for this study"
            )
        return self


class Reporting(Part):
    """What a report must tell and no rating can: each is a sentence or more, printed as it is.

    Chiang, Huang & Lee (Interspeech 2023) found most papers silent on these. What is left out is
    marked as missing in the report.
    """

    recruitment: Passage | None = None
    raters: Passage | None = None
    qualification: Passage | None = None
    payment: Passage | None = None
    systems: Passage | None = None
    materials: Passage | None = None
    stop_rule: Passage | None = None
    availability: Passage | None = None
