"""Probability that speech-row heads leave out, over a reply: what their speed could have cost.

Knows traces only. The engine measures it at single steps, outside the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spark.trace import Trace


@dataclass(frozen=True)
class OutsideMass:
    """Full-vocabulary probability of the ids without a row, over the steps where it was measured.

    Attributes:
        n: those steps.
        mean: None where there are none.
        largest: None where there are none.
    """

    n: int
    mean: float | None
    largest: float | None


def outside_mass(trace: Trace) -> OutsideMass:
    """Mean and maximum over a reply's steps, with their number."""
    found = [step.outside_mass for step in trace.steps if not math.isnan(step.outside_mass)]
    if not found:
        return OutsideMass(0, None, None)
    return OutsideMass(len(found), sum(found) / len(found), max(found))
