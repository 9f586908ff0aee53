"""A study that is ready to be served: what `prepare` wrote and the server reads.

STUDY_DIR/serve/  design.json and audio/<stimulus id>.wav: opaque ids only, read by the server.
STUDY_DIR/key/    stimuli.csv (the key), study.json and secret: system names, read by export only.
STUDY_DIR/data/   ratings.sqlite3 and ratings.csv, written by the store.

Systems appear here as numbered arms, in an order that the names do not tell.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from listening_test.methods import LAYOUTS, Layout, Question, Value, conditions
from listening_test.screening import Kind as ScreenKind
from listening_test.study_parts import PersonalQuestion, Platform, SameText

# Seconds, to foretell how long a session takes: for an answer, and between two clips.
_ANSWER_S, _BETWEEN_S = 4.0, 1.0
# In STUDY_DIR/serve: the same for every rater and of no system.
VOLUME_FILE = "volume.wav"


class NotPrepared(ValueError):
    """The folder holds no prepared study."""


@dataclass(frozen=True)
class Stimulus:
    """One WAV as the server knows it.

    `arm` is the anonymous system, `duration_s` seconds; two stimuli of one item that are the same
    samples have the same `sound`.
    """

    stimulus_id: str
    item_id: str
    arm: int
    duration_s: float
    kind: Literal["practice", "rating", "check", "screen"]
    sound: int


@dataclass(frozen=True)
class Check:
    """A trial with a known answer: its clips (stimulus ids), the answer and what passes."""

    trial_type: Literal["trap", "gold"]
    clips: tuple[str, ...]
    answer: Value
    tolerance: int


@dataclass(frozen=True)
class Screen:
    """A screen: each trial's clip and right answer, and how many must be right."""

    kind: ScreenKind
    trials: tuple[tuple[str, int], ...]
    passes: int
    screens_out: bool


@dataclass(frozen=True)
class Texts:
    """What the rater's page says of the study in one language."""

    language: str
    title: str
    consent: str
    instructions: str
    questions: tuple[Question, ...]
    questionnaire: tuple[PersonalQuestion, ...]
    payment: str | None


@dataclass(frozen=True)
class PreparedStudy:
    """Everything the server may know of a study. It names no system, but knows the checks."""

    study_id: str
    config_sha256: str
    title: str
    method: str
    questions: tuple[Question, ...]
    consent: str
    instructions: str
    language: str
    seed: int
    arms: int
    reference_arm: int | None
    items_per_rater: int
    planned_sessions: int
    repeats: int
    null_pairs: int
    stimuli: tuple[Stimulus, ...]
    checks: tuple[Check, ...]
    screens: tuple[Screen, ...] = ()
    platform: Platform | None = None
    questionnaire: tuple[PersonalQuestion, ...] = ()
    payment: str | None = None
    further: tuple[Texts, ...] = ()
    stops_when_planned: bool = False
    stops_at: float | None = None  # seconds since 1970
    traps_forgiven: int = 0  # so many may be answered wrong
    same_text: SameText = "apart"

    @cached_property
    def texts(self) -> dict[str, Texts]:
        """The study's words by language, its first language first."""
        first = Texts(
            self.language, self.title, self.consent, self.instructions, self.questions,
            self.questionnaire, self.payment,
        )  # fmt: skip
        return {texts.language: texts for texts in (first, *self.further)}

    def texts_in(self, language: str) -> Texts:
        """The words that a page in this language shows."""
        return self.texts.get(language) or self.texts[self.language]

    @property
    def layout(self) -> Layout:
        """How a trial of the method is made of clips."""
        return LAYOUTS[self.method]

    @property
    def trials_per_session(self) -> int:
        """Trials of one session, practice left out."""
        extras = len(self.checks) + self.repeats + min(self.null_pairs, self.items_per_rater)
        each = 1 if self.same_text == "once" else self.conditions
        return each * self.items_per_rater + extras

    @property
    def conditions(self) -> int:
        """Trials of one text."""
        return conditions(self.layout, self.arms)

    @property
    def clips_per_trial(self) -> int:
        """Clips on one page, the reference among them."""
        kinds = {"each": 1, "reference": 2, "pair": len(self.layout.names), "all": self.arms + 1}
        return kinds[self.layout.conditions]

    @cached_property
    def minutes(self) -> int:
        """How long a session takes, about, where each clip is heard once."""
        rated = [s.duration_s for s in self.stimuli if s.kind == "rating"]
        answers = self.arms if self.layout.conditions == "all" else len(self.questions)
        page = self.clips_per_trial * (sum(rated) / len(rated) + _BETWEEN_S) + answers * _ANSWER_S
        seconds = page * (self.trials_per_session + len(self.items("practice")))
        for screen in self.screens:
            seconds += sum(self.by_id[clip].duration_s + _ANSWER_S for clip, _ in screen.trials)
        return max(1, round(seconds / 60))

    @cached_property
    def by_id(self) -> dict[str, Stimulus]:
        """The stimuli by their ids."""
        return {stimulus.stimulus_id: stimulus for stimulus in self.stimuli}

    @cached_property
    def places(self) -> dict[tuple[str, int], str]:
        """Stimulus id of each (item, arm), of practice too."""
        return {
            (s.item_id, s.arm): s.stimulus_id
            for s in self.stimuli
            if s.kind in ("practice", "rating")
        }

    def items(self, kind: Literal["practice", "rating"]) -> list[str]:
        """The items of a kind, in the study's order."""
        return list(dict.fromkeys(s.item_id for s in self.stimuli if s.kind == kind))

    def save(self, serve: Path) -> None:
        """Write `design.json` into the folder `serve`."""
        data = asdict(self)
        data["platform"] = self.platform and self.platform.model_dump()
        for part in (data, *data["further"]):
            part["questionnaire"] = [one.model_dump() for one in part["questionnaire"]]
        text = json.dumps(data, ensure_ascii=False, indent=1)
        (serve / "design.json").write_text(text + "\n", encoding="utf-8")


def load_prepared(study_dir: Path) -> PreparedStudy:
    """Read STUDY_DIR/serve/design.json.

    Raises:
        NotPrepared: it is absent or not ours.
    """
    path = study_dir / "serve" / "design.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["stimuli"] = tuple(Stimulus(**stimulus) for stimulus in data["stimuli"])
        further = data.setdefault("further", [])  # designs of earlier versions lack it
        for part in (data, *further):
            part["questions"] = tuple(_question(**question) for question in part["questions"])
            part["questionnaire"] = tuple(
                PersonalQuestion.model_validate(question)
                for question in part.get("questionnaire", ())
            )
        data["further"] = tuple(Texts(**texts) for texts in further)
        data["checks"] = tuple(
            Check(**{**check, "clips": tuple(check["clips"])}) for check in data["checks"]
        )
        data["screens"] = tuple(_screen(**screen) for screen in data.get("screens", ()))
        if data["platform"] is not None:
            data["platform"] = Platform.model_validate(data["platform"])
        return PreparedStudy(**data)
    except FileNotFoundError:
        raise NotPrepared(
            f"{study_dir} holds no prepared study. Make one with "
            "`python -m listening_test.prepare STUDY.yaml --out STUDY_DIR`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotPrepared(
            f"{path} cannot be used ({error}). Prepare the study again into a new folder."
        ) from None


def _screen(trials: list[list[Any]], **rest: Any) -> Screen:
    return Screen(trials=tuple((clip, answer) for clip, answer in trials), **rest)


def _question(options: list[list[Any]], **rest: str) -> Question:
    return Question(options=tuple((value, label) for value, label in options), **rest)
