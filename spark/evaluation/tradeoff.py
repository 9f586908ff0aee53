"""What a policy's weights buy: each measure of an evaluation beside the share of weights read.

Knows a summary; draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark.pareto import unbeaten

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    Attributes:
        title: for people.
        scale: from the summary's unit to the one that is shown.
        up: whether more is better.
    """

    title: str
    scale: float
    up: bool


# By the figure's name in the summary.
MEASURES = {
    "sets": Measure("Mean of sets, %", 100, True),
    "correct_heard": Measure("Right as heard, %", 100, True),
    "wer": Measure("WER of speech against own text, %", 100, False),
    "mos_predicted": Measure("Predicted MOS (DNSMOS)", 1, True),
}
# What every policy of every suite has.
SOUND = ("correct_heard", "wer", "mos_predicted")


def placed(summary: Summary, name: str) -> dict[str, tuple[float, float]]:
    """(share of the weights read, the measure's value) of each policy that has both."""
    found = {}
    for policy, of in summary["policies"].items():
        value, traffic = of.get(name), of.get("traffic_ratio")
        if traffic is not None and value is not None:
            found[policy] = (traffic, value["value"] if isinstance(value, Mapping) else value)
    return found


def front(summary: Summary, name: str) -> list[str]:
    """Policies that none beats which reads no more weights, from fewest weights to most."""
    sign = -1 if MEASURES[name].up else 1
    return unbeaten({n: (cost, sign * value) for n, (cost, value) in placed(summary, name).items()})
