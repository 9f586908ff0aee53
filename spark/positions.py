"""Schedules that say for every position of a chunk how deep it runs, in speech and in text.

SPAR-K's own are a special case: Triple on a chunk of four, exit layer 11, is "f-11-11-f". Pure
rules over a place in the layout; knows no tensors and no files (`schedule_file` does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from spark.modality import Slot
from spark.schedule import KVPolicy, Place

Exits = tuple[int | None, ...]  # exit layer by position; None runs every layer

_PART = r"(?:f|\d{1,3})(?:-(?:f|\d{1,3}))*"
_NOTATION = re.compile(rf"({_PART})(?:/({_PART}))?")


@dataclass(frozen=True)
class PositionSchedule:
    """Each position of a chunk has an exit layer of its own, or runs in full.

    Positions are counted anew in each chunk, text and speech by themselves; a chunk longer than
    its list begins the list again. Once as many rows wait as the two lists have positions, the
    next step runs in full: speech that goes on without text would else never be made good.

    Attributes:
        speech: exit layer by speech position, None for full depth.
        text: the same for text positions; the paper finds that text must stay deep.
        name: for tables and file names.
    """

    speech: Exits
    text: Exits = (None,)
    name: str = "spark"
    kv_policy: ClassVar[KVPolicy] = "deferred"
    measure: ClassVar[None] = None

    def __post_init__(self) -> None:
        for what, exits in (("speech", self.speech), ("text", self.text)):
            if not exits:
                raise ValueError(f"a schedule needs at least one {what} position")
            for layer in exits:
                if layer is not None and (type(layer) is not int or layer < 1):
                    raise ValueError(f"{what} exit {layer!r} is no layer: use 1 or more, or null")
        if None not in (*self.speech, *self.text):
            raise ValueError("at least one position must run in full, so that exits are made good")

    @property
    def notation(self) -> str:
        """Speech positions, then text's where one exits: "f-11-11-9", "f-11-11-9/f-12"."""
        speech, text = (
            "-".join("f" if layer is None else str(layer) for layer in exits)
            for exits in (self.speech, self.text)
        )
        return speech if set(self.text) == {None} else f"{speech}/{text}"

    def exits(self, place: Place) -> tuple[int, ...]:
        """The position's exit layer, or none where it runs in full."""
        if place.pending >= len(self.speech) + len(self.text):
            return ()
        exits = self.text if place.slot is Slot.TEXT else self.speech
        layer = exits[place.position % len(exits)]
        return () if layer is None else (layer,)

    def stops(self, confidence: float, place: Place) -> bool:
        """Always: the schedule alone decides."""
        return True

    def exit_layers(self) -> tuple[int, ...]:
        """Every exit layer it names, ascending."""
        return tuple(sorted({layer for layer in (*self.speech, *self.text) if layer is not None}))


def parse(notation: str) -> PositionSchedule | None:
    """A schedule from its notation; None where the text is none.

    Raises:
        ValueError: it is one, and impossible.
    """
    found = _NOTATION.fullmatch(notation)
    if found is None:
        return None
    speech, text = (_exits(part) for part in (found[1], found[2] or "f"))
    return PositionSchedule(speech, text)


def _exits(part: str) -> Exits:
    return tuple(None if layer == "f" else int(layer) for layer in part.split("-"))
