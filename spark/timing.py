"""Whether one policy really takes less time than another, from runs made in turn.

Knows numbers only. Single runs on a shared machine differ by more than the policies do, so a
difference is worth saying only with its spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Timing:
    """A relative change in time a token, paired over replays.

    Attributes:
        replays: pairs.
        change: mean of (time / full depth's time - 1).
        half_width: of its 95 % interval (Student's t over the replays).
    """

    replays: int
    change: float
    half_width: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out no change at all."""
        return abs(self.change) > self.half_width


def timed_change(full: Sequence[float], other: Sequence[float]) -> Timing | None:
    """Change of `other` against `full`, times of the same replays; None for fewer than 3."""
    if len(full) != len(other):
        raise ValueError("times must come in pairs")
    if len(full) < 3:
        return None
    ratios = np.asarray(other, dtype=float) / np.asarray(full, dtype=float) - 1
    spread = ratios.std(ddof=1) / np.sqrt(len(ratios))
    half_width = stats.t.ppf(0.975, len(ratios) - 1) * spread
    return Timing(len(ratios), float(ratios.mean()), float(half_width))
