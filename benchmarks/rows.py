"""What timed replies come to: rows of a table, by policy and by kind of step.

Knows traces and clocks; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from spark.metrics.cost import traffic_bytes
from spark.modality import Modality
from spark.trace import Step, Trace


@dataclass(frozen=True)
class Run:
    """One reply of a contender.

    Attributes:
        trace: of `tokens` steps.
        ms: wall-clock of the loop over all of them, prefill apart.
    """

    trace: Trace
    ms: float


@dataclass
class Measured:
    """What one repetition after the other gave."""

    ms: dict[str, list[float]]
    runs: dict[str, list[Run]]

    def middle(self, name: str) -> float | None:
        """Median milliseconds, None where that was not measured."""
        return median(self.ms[name]) if name in self.ms else None

    def speed(self, name: str, nbytes: int) -> float | None:
        """GB/s of so many bytes, None where that was not measured."""
        ms = self.middle(name)
        return None if ms is None else nbytes / ms / 1e6


def ratio(got: Measured, name: str, over: str) -> float | None:
    """Median over repetitions of the ratio of two times, None where one was not measured."""
    if name not in got.ms or over not in got.ms:
        return None
    return median(a / b for a, b in zip(got.ms[name], got.ms[over], strict=True))


def rows(got: Measured, layers: int) -> list[dict[str, Any]]:
    """One row a policy, the contract's keys and more.

    Both ratios are over full depth's reply of the same repetition, which has as many tokens, so
    that a cut in traffic and one in time have the same base.

    Args:
        got: with replies of `full`.
        layers: of the model.
    """
    table = []
    base = [traffic_bytes(run.trace) for run in got.runs["full"]]
    for name, runs in got.runs.items():
        read = [traffic_bytes(run.trace) for run in runs]
        depths = [run.trace.mean_depth(Modality.SPEECH) for run in runs]
        ms = median(got.ms[name])
        traffic = median(a / b for a, b in zip(read, base, strict=True))
        time = ratio(got, name, "full")
        table.append(
            {
                "policy": name,
                "ms_per_token": ms,
                "lowest": min(got.ms[name]),
                "highest": max(got.ms[name]),
                "tokens_per_s": 1e3 / ms,
                "real_time_factor": _middle(map(real_time_factor, runs)),
                "gb_per_s": sum(read) / sum(run.ms for run in runs) / 1e6,
                "mean_depth_speech": _mean(depths),
                "traffic_ratio": traffic,
                "time_ratio": time,
                "cut_realised": realised(traffic, time),
                "kinds": kinds((step for run in runs for step in run.trace.steps), layers),
            }
        )
    return table


def real_time_factor(run: Run) -> float | None:
    """Time spent on the tokens over the time their speech takes; None without speech or its rate.

    The vocoder is not in it.
    """
    seconds = run.trace.audio_s()
    return run.ms / 1e3 / seconds if seconds else None


def kinds(steps: Iterable[Step], layers: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and number of steps by kind: what the slot was for, and how deep it went.

    A `refresh` runs to the top and takes along rows that waited; `full` had none to take.
    """
    took: dict[str, list[float]] = {}
    for step in steps:
        how = "exit" if step.depth < layers else "refresh" if step.refresh else "full"
        took.setdefault(f"{step.slot.value}, {how}", []).append(step.elapsed_ms)
    return {
        name: {"ms": median(took[name]), "steps": len(took[name])} for name in sorted(took)
    }


def realised(traffic: float, time: float | None) -> float | None:
    """The share of a cut in traffic that became time, None where there was hardly a cut.

    Args:
        traffic: over full depth's.
        time: over full depth's.
    """
    cut = 1 - traffic
    return (1 - time) / cut if time is not None and cut > 0.005 else None


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
