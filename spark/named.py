"""Schedules and acceptances by the names that forms, links and command lines give them.

Names in, rules out, a clear error for a name that is none. Knows the rules' bounds; runs nothing.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from spark import positions
from spark.acceptance import ALWAYS, EXACT, Acceptance, sound_groups
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule
from spark.schedule import DriftSpark, Spark

SCHEDULES = ("triple", "even", "odd", "k4", "k6", "drift")  # on offer; others can be named
_PLAIN_K = re.compile(r"k(\d{1,2})")
_BY_DRIFT = re.compile(r"drift(?:(\d{1,2})-(\d{1,2}))?")
_LONGEST_K = 6

# What makes a draft a near miss: full depth's likelihood of it, or a code that sounds alike.
Nearness = Literal["nats", "sound"]


def spark_policy(
    schedule: str, exit_layer: int, layout: Interleave, drift_target: float
) -> Spark | DriftSpark | PositionSchedule:
    """SPAR-K by the name of its schedule, or a schedule by position with exits of its own.

    Args:
        schedule: "triple", "even", "odd"; "k4" for one full position in every 4; "drift" for a K
            that follows the drift from 2 up, "drift3-8" within bounds of one's own; every
            position's exit layer, as "f-11-11-9" (`spark.positions`).
        exit_layer: where speech stops.
        layout: of the model; plain "drift" goes no higher than makes a difference to its chunks.
        drift_target: of schedules by drift.

    Raises:
        ValueError: a name that is none, or bounds or a target that mean nothing.
    """
    match schedule:
        case "triple" | "even" | "odd":
            return Spark(exit_layer, variant=schedule)
    if plain := _PLAIN_K.fullmatch(schedule):
        return Spark(exit_layer, k=int(plain[1]))
    if bounds := _BY_DRIFT.fullmatch(schedule):
        chunk = _LONGEST_K if layout.speech_tail else layout.n_speech
        low, high = bounds[1] or 2, bounds[2] or max(2, min(_LONGEST_K, chunk))
        return DriftSpark(exit_layer, int(low), int(high), drift_target)
    if placed := positions.parse(schedule):
        return placed
    raise ValueError(
        f"unknown schedule {schedule!r}: use triple, even, odd, k4, k5, ..., drift, drift3-8 for "
        "bounds of K, or each position's exit layer, such as f-11-11-9"
    )


def acceptance(name: str, lm: SpokenLM) -> Acceptance:
    """An acceptance: "always", "exact", or how near a miss of a relaxed one may be.

    Args:
        name: of the two, or nats as "0.5", or as "sound:1.5" the spread of `sound_groups`.
        lm: the model, whose codes are grouped where they are to sound alike.

    Raises:
        ValueError: none of these, or a model that does not say how its codes sound.
    """
    if name in ("always", "exact"):
        return ALWAYS if name == "always" else EXACT
    amount = _amount(name)
    if not amount:
        return EXACT
    if nearness_of(name) == "sound":
        return Acceptance("relaxed", groups=sound_groups(lm, amount))
    return Acceptance("relaxed", amount)


def _amount(name: str) -> float:
    """How near a miss may be, of a relaxed acceptance's name."""
    try:
        amount = float(name.removeprefix(_BY_SOUND))
    except ValueError:
        raise ValueError(
            f"unknown acceptance {name!r}: use always, exact, a tolerance in nats such as 0.5, or "
            f"{_BY_SOUND}1.5 for codes that sound alike"
        ) from None
    if not 0 <= amount < math.inf:
        raise ValueError(f"acceptance {name!r}: use 0 or more, and a finite number")
    return amount


def nearness_of(name: str) -> Nearness:
    """What makes a near miss, by an acceptance's name."""
    return "sound" if name.startswith(_BY_SOUND) else "nats"


_BY_SOUND = "sound:"
# Few logits of likely tokens lie further apart, in nats; and at five times the distance of
# neighbours most codes of the embedded codec sound alike.
DIAL_END = 5.0


def at_dial(value: float, nearness: Nearness = "nats") -> str:
    """The acceptance where a dial from lossless, 0, to fast, DIAL_END, stands."""
    if value <= 0:
        return "exact"
    if value >= DIAL_END:
        return "always"
    return f"{_BY_SOUND if nearness == 'sound' else ''}{value:g}"


def dial_of(name: str) -> float:
    """Where a dial stands for an acceptance; inf for a near miss that is past its end.

    Raises:
        ValueError: no such acceptance.
    """
    if name in ("always", "exact"):
        return DIAL_END if name == "always" else 0.0
    amount = _amount(name)
    return amount if amount < DIAL_END else math.inf
