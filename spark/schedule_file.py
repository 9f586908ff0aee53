"""A depth schedule as a file: for which model, each position's exit, where from, what it measured.

JSON, written by `python -m spark.calibrate` or by hand; compare, the page, the benchmark and
whoever else takes a schedule read it here. A schedule found on one model means nothing on another,
so the file names its model and carries the hash of its base head. Runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spark import jsonl
from spark.heads import HeadKind, base_hash
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule

MOST_BYTES = 1_000_000  # a schedule takes a few thousand
Layer = Annotated[int, Field(ge=1, strict=True)]


class Layout(BaseModel):
    """Text and speech slots of a group."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_text: int = Field(ge=1)
    n_speech: int = Field(ge=1)


class ScheduleFile(BaseModel):
    """What the file holds.

    Attributes:
        format: of the file.
        model: its name.
        base_head: SHA-256 of its final norm and output rows (`spark.heads.base_hash`).
        layout: of its groups.
        speech: exit layer by speech position, null for full depth.
        text: the same for text positions.
        head: the exit heads that it was measured with.
        provenance: how it was found; for people.
        measured: figures of it; for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["spark-schedule-1"] = "spark-schedule-1"
    model: str
    base_head: str = Field(pattern="^[0-9a-f]{64}$")
    layout: Layout
    speech: tuple[Layer | None, ...]
    text: tuple[Layer | None, ...] = (None,)
    head: HeadKind = "fitted"
    provenance: dict[str, Any] = {}
    measured: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        lm: SpokenLM,
        schedule: PositionSchedule,
        head: HeadKind = "fitted",
        provenance: dict[str, Any] | None = None,
        measured: dict[str, Any] | None = None,
    ) -> ScheduleFile:
        """A model's schedule with what is known of it."""
        return cls(
            model=lm.name,
            base_head=_base_head(lm),
            layout=Layout(n_text=lm.layout.n_text, n_speech=lm.layout.n_speech),
            speech=schedule.speech,
            text=schedule.text,
            head=head,
            provenance=provenance or {},
            measured=measured or {},
        )

    def schedule(self, lm: SpokenLM) -> PositionSchedule:
        """The schedule, for the model it was made for.

        Raises:
            ValueError: another model, other weights or layout, or exits that it does not have.
        """
        if self.model != lm.name:
            raise ValueError(
                f"the schedule was made for the model {self.model}, not for {lm.name}: load that "
                f"one, or calibrate anew with `python -m spark.calibrate --model {lm.name}`"
            )
        if self.base_head != _base_head(lm):
            raise ValueError(
                f"the schedule was made for other weights of {lm.name}: calibrate anew with "
                f"`python -m spark.calibrate --model {lm.name}`"
            )
        if (self.layout.n_text, self.layout.n_speech) != (lm.layout.n_text, lm.layout.n_speech):
            raise ValueError(
                f"the schedule is for groups of {self.layout.n_text} text and "
                f"{self.layout.n_speech} speech tokens; {lm.title} has {lm.layout.n_text} and "
                f"{lm.layout.n_speech}"
            )
        made = PositionSchedule(self.speech, self.text)
        if unknown := sorted(set(made.exit_layers()) - set(lm.candidate_exits)):
            offered = ", ".join(map(str, lm.candidate_exits))
            raise ValueError(f"the schedule exits at layer {unknown[0]}: {lm.title} has {offered}")
        return made

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        jsonl.replace(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def read(path: Path) -> ScheduleFile:
    """Read a schedule's file.

    Raises:
        ValueError: there is none, or it is no schedule; the message says where it goes wrong.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} is too large for a schedule: give the schedule.json")
        content = path.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no schedule: it is no UTF-8 text") from error
    try:
        return ScheduleFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"{path} is no schedule of this lab: {told}") from error


def named(schedule: str, lm: SpokenLM) -> str:
    """What was asked for on a command line as settings hold it: a file becomes its positions.

    Raises:
        ValueError: a file that cannot be used with this model.
    """
    if not schedule.endswith(".json"):
        return schedule
    return read(Path(schedule)).schedule(lm).notation


def _base_head(lm: SpokenLM) -> str:
    return base_hash(lm.transformer.final_gain, lm.transformer.unembedding)
