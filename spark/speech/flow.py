"""Flow matching: from noise to a mel in ten guided Euler steps (arXiv 2210.02747, 2207.12598).

Knows the path through time and the guidance; what gives the velocity is the caller's network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 10
GUIDANCE = 0.7
Velocity = Callable[[int, Tensor, Tensor], Tensor]


def times(steps: int = STEPS) -> list[float]:
    """Points of time from 0 to 1, dense at the beginning: 1 - cos(pi i / 2n)."""
    return [1 - math.cos(0.5 * math.pi * step / steps) for step in range(steps + 1)]


def solve(velocity: Velocity, noise: Tensor) -> Tensor:
    """The end of the path that begins at `noise` (1, C, T).

    Args:
        velocity: (number of the step, states (2, C, T), times (2,)) -> (2, C, T): with the
            conditions in the first row and without any in the second.
        noise: where the path begins.
    """
    x = noise
    for step, (now, later) in enumerate(pairwise(times())):
        both = velocity(step, x.expand(2, -1, -1), torch.full((2,), now).to(x))
        guided = (1 + GUIDANCE) * both[:1] - GUIDANCE * both[1:]
        x = x + (later - now) * guided
    return x


def noise_table(frames: int, bins: int) -> Tensor:
    """The noise (bins, frames) that every path begins at: fixed, so that codes fix the sound."""
    made = torch.Generator().manual_seed(0)
    return torch.randn(frames, bins, generator=made).t().contiguous()
