"""Schedules and acceptances by the names that forms, links and command lines give them.

Names in, rules out, a clear error for a name that is none. Knows the rules' bounds; runs nothing.
"""

from __future__ import annotations

import math
import re

from spark import positions
from spark.acceptance import ALWAYS, EXACT, Acceptance
from spark.modality import Interleave
from spark.positions import PositionSchedule
from spark.schedule import DriftSpark, Spark

SCHEDULES = ("triple", "even", "odd", "k4", "k6", "drift")  # on offer; others can be named
_PLAIN_K = re.compile(r"k(\d{1,2})")
_BY_DRIFT = re.compile(r"drift(?:(\d{1,2})-(\d{1,2}))?")
_LONGEST_K = 6


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


def acceptance(name: str) -> Acceptance:
    """An acceptance: "always", "exact", or the tolerance of a relaxed one in nats, as "0.5".

    Raises:
        ValueError: none of these.
    """
    if name in ("always", "exact"):
        return ALWAYS if name == "always" else EXACT
    try:
        tolerance = float(name)
    except ValueError:
        raise ValueError(
            f"unknown acceptance {name!r}: use always, exact, or a tolerance in nats such as 0.5"
        ) from None
    return Acceptance("relaxed", tolerance) if tolerance else EXACT


DIAL_END = 5.0  # nats; few logits of likely tokens lie further apart


def at_dial(value: float) -> str:
    """The acceptance where a dial from lossless, 0, to fast, DIAL_END, stands."""
    if value <= 0:
        return "exact"
    return "always" if value >= DIAL_END else f"{value:g}"


def dial_of(name: str) -> float:
    """Where a dial stands for an acceptance; inf for a tolerance that is past its end.

    Raises:
        ValueError: no such acceptance.
    """
    rule = acceptance(name)
    if rule.mode == "relaxed":
        return rule.tolerance if rule.tolerance < DIAL_END else math.inf
    return 0.0 if rule.mode == "exact" else DIAL_END
