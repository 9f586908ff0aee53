"""Layers recorded as graphs: a GPU is handed one piece of work instead of some hundreds.

At batch 1 a GPU reads a layer's weights in less time than a program takes to ask for its dozen
operations one by one. What runs again and again is recorded once and replayed: from one layer to
another, over so many rows, beside so many slots of the cache. All records share one cache's slots
(a reply's cache moves in when it is decoded and out when another one is) and one pool of memory.
What has not been recorded, what a device cannot record, and rows that do not follow each other
run as they do without. Knows layers and caches; knows no heads, tokens and policies.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spark.cache import KVCache
from spark.transformer import Transformer

MOST_ROWS = 16  # of one call: more are a prompt's, which takes its time anyway
_FEWEST_SLOTS = 256  # beside which a graph attends; further ones have twice as many
_OFTEN = 2  # calls of a kind after which it is worth recording
_WARM = 3  # runs before a record, in which libraries choose and allocate (PyTorch's own advice)
# Of the largest value, between a record and the calls it was made of.
_TOLERANCE = 1e-2

Recorder = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True)
class Kind:
    """What one graph does: layers low..high-1 over `rows` rows, attending to `slots` slots."""

    low: int
    high: int
    rows: int
    slots: int


class _Record:
    """A graph with the tensors that it reads and writes."""

    def __init__(self, body: Transformer, kind: Kind, buffer: Tensor, record: Recorder) -> None:
        width = body.config.hidden_size
        self.states = torch.zeros(1, kind.rows, width, dtype=body.dtype, device=body.device)
        self.positions = torch.arange(kind.rows, device=body.device)
        self.out = torch.empty_like(self.states)
        slots = buffer[:, :, :, : kind.slots]

        def step() -> None:
            made = body.run_fixed(kind.low, kind.high, self.states, self.positions, slots)
            self.out.copy_(made)

        self.plain, self.replay = step, record(step)


class Graphs:
    """The records of one transformer.

    Args:
        body: on one device.
        record: makes of a call that takes and returns nothing one that does the same again.
    """

    def __init__(self, body: Transformer, record: Recorder) -> None:
        self._body, self._record = body, record
        self._positions = torch.arange(body.config.max_position_embeddings, device=body.device)
        self._buffer: Tensor | None = None
        self._resident: weakref.ref[KVCache] | None = None
        self._records: dict[Kind, _Record] = {}
        self._calls: Counter[Kind] = Counter()
        # Records have one set of tensors, and a cache that moves must not be looked at: whoever
        # runs steps of this transformer holds it, a step at a time.
        self.turn = threading.RLock()
        self.trouble: str | None = None  # why nothing is recorded any more

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What has been recorded."""
        return tuple(self._records)

    @torch.inference_mode()
    def prepare(self, capacity: int) -> None:
        """Record what earlier replies ran often. Takes a moment, so not while a token is awaited.

        Args:
            capacity: of the cache of the reply to come.
        """
        often = [kind for kind, calls in self._calls.items() if calls >= _OFTEN]
        if self.trouble or not often:
            return
        with self.turn:
            buffer = self._room(capacity)
            fresh = [kind for kind in often
                     if kind not in self._records and kind.slots <= buffer.shape[3]]  # fmt: skip
            if not fresh:
                return
            self._move_out()
            try:
                # Those that need most first: the others then fit into the pool's memory.
                for kind in sorted(fresh, key=lambda kind: (-kind.rows, -kind.slots, kind.low)):
                    self._records[kind] = self._checked(kind, buffer)
            except RuntimeError as error:
                self._give_up(str(error))

    @torch.inference_mode()
    def run(self, low: int, high: int, states: Tensor, start: int, cache: KVCache) -> Tensor | None:
        """As `Transformer.run_layers` of one sequence, from a record.

        Args:
            low: first layer.
            high: one past the last layer.
            states: (1, T, D), left untouched.
            start: position of the first row; the others follow.
            cache: of batch size 1.

        Returns:
            States (1, T, D); None where there is no such record (yet), and nothing was done.

        Raises:
            ValueError: the cache is full.
        """
        rows = states.shape[1]
        if self.trouble or rows > MOST_ROWS or any(
            held != start for held in cache.lengths[low:high]
        ):  # where layers lack rows, a slot is no position
            return None
        kind = Kind(low, high, rows, _slots(start + rows))
        self._calls[kind] += 1
        record, buffer = self._records.get(kind), self._buffer
        if record is None or buffer is None or cache.capacity > buffer.shape[3]:
            return None
        cache.reserve(low, high, rows)
        if self._resident is None or self._resident() is not cache:
            self._move_out()
            cache.live_in(buffer)
            self._resident = weakref.ref(cache)
        record.states.copy_(states)
        record.positions.copy_(self._positions[start : start + rows])
        record.replay()
        return record.out.clone()

    def _room(self, capacity: int) -> Tensor:
        """Slots for a cache of that capacity; records of a smaller buffer are forgotten."""
        if self._buffer is None or self._buffer.shape[3] < capacity:
            self._move_out()
            self._records.clear()
            self._buffer = None  # before the next is made: there may be no room for two
            shape = self._body.config
            self._buffer = torch.zeros(
                self._body.num_layers, 1, 2 * shape.num_key_value_heads, _slots(capacity),
                shape.head_dim, dtype=self._body.dtype, device=self._body.device,
            )  # fmt: skip
        return self._buffer

    def _move_out(self) -> None:
        resident = self._resident() if self._resident else None
        if resident is not None:
            resident.live_alone()
        self._resident = None

    def _checked(self, kind: Kind, buffer: Tensor) -> _Record:
        """A new record that gave what the calls it was made of give.

        Raises:
            RuntimeError: it did not, or could not be made.
        """
        made = _Record(self._body, kind, buffer, self._record)
        noise = torch.Generator().manual_seed(0)
        made.states.copy_(torch.randn(made.states.shape, generator=noise))
        made.positions.add_(min(kind.slots, len(self._positions)) - kind.rows)
        made.plain()
        wanted = made.out.clone()
        made.out.zero_()
        made.replay()
        far = float((made.out - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9))
        if not far <= _TOLERANCE:
            raise RuntimeError(f"a recorded step differs by {far:.1e} of the largest value")
        return made

    def _give_up(self, why: str) -> None:
        self._records.clear()
        self._buffer, self.trouble = None, why


def _slots(end: int) -> int:
    """How many slots a graph attends to where rows end before `end`."""
    slots = _FEWEST_SLOTS
    while slots < end:
        slots *= 2
    return slots


def prepare(body: Transformer) -> None:
    """Give a transformer on a CUDA device its graphs; others run as they are."""
    if body.device.type == "cuda" and body.graphs is None:
        body.graphs = Graphs(body, _cuda_recorder(body.device))


def _cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs, all into one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(call: Callable[[], None]) -> Callable[[], None]:
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM):
                call()
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            call()
        return graph.replay

    return record
