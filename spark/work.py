"""What a reply asks of the model while it is decoded, and the doing of it.

A reply is written as if it were alone: a generator that yields a piece of work and is sent its
result. Knows weights, heads and noise; knows no policy, no layout and no reply.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from spark.cache import KVCache, Rows
from spark.confidence import confidence
from spark.heads import HeadBank
from spark.sampling import SamplingSettings, draw
from spark.schedule import Measure
from spark.transformer import Transformer


@dataclass(frozen=True)
class Run:
    """Layers low..high-1 over rows of one sequence -> states (1, T, D)."""

    low: int
    high: int
    rows: Rows
    cache: KVCache


@dataclass(frozen=True)
class Ask:
    """A head about states (n, D) -> logits (n, R)."""

    head: str
    states: Tensor


@dataclass(frozen=True)
class Sure:
    """How sure logits (n, R) are -> (n,)."""

    measure: Measure
    logits: Tensor


@dataclass(frozen=True)
class Draw:
    """A token from each row of logits (n, R) -> (n,).

    Attributes:
        logits: one row a token.
        ids: (R,) of the columns, None where column = id.
        sampling: how.
        positions: of the tokens.
        seen: (n, V) bool, or None without a repetition penalty.
    """

    logits: Tensor
    ids: Tensor | None
    sampling: SamplingSettings
    positions: tuple[int, ...]
    seen: Tensor | None = None


Work = Run | Ask | Sure | Draw
T = TypeVar("T")
Task = Generator[Work, Tensor, T]


class Worker:
    """Does work on one model's weights.

    Args:
        body: the transformer.
        bank: its heads; looked up at each call.
    """

    def __init__(self, body: Transformer, bank: HeadBank) -> None:
        self._body, self._bank = body, bank
        self._positions = torch.arange(body.config.max_position_embeddings, device=body.device)

    @torch.inference_mode()
    def alone(self, task: Task[T]) -> T:
        """Run a task to its end; returns what it returns."""
        try:
            wanted = next(task)
            while True:
                wanted = task.send(self._do(wanted))
        except StopIteration as end:
            return end.value

    def run(self, work: Run) -> Tensor:
        """Layers over rows, whose keys and values join the cache."""
        rows = work.rows
        positions = self._positions[rows.start : rows.end]
        return self._body.run_layers(work.low, work.high, rows.states, positions, work.cache)

    def _do(self, work: Work) -> Tensor:
        match work:
            case Run():
                return self.run(work)
            case Ask(head, states):
                return self._bank.heads[head].logits(states)
            case Sure(measure, logits):
                return confidence(measure, logits)
            case Draw(logits, ids, sampling, positions, seen):
                return draw(logits, ids, sampling, positions, seen)
