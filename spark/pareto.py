"""What nothing undercuts: the Pareto front of anything that has several costs.

Knows numbers only, not what they are of.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def unbeaten(costs: Mapping[Name, Sequence[float]]) -> list[Name]:
    """Names that no other undercuts (as little in each cost, and less in one), cheapest first.

    Args:
        costs: of each name, in one order; a thing to have much of comes with its sign turned.
    """

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x <= y for x, y in zip(a, b, strict=True))

    kept = [name for name in costs if not any(beats(c, costs[name]) for c in costs.values())]
    return sorted(kept, key=lambda name: costs[name][0])
