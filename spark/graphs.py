"""Layers recorded as graphs: a GPU is handed one piece of work instead of some hundreds.

At batch 1 a GPU reads a layer's weights in less time than a program takes to ask for its dozen
operations one by one. What runs again and again is recorded once and replayed: up so many legs,
over so many rows, beside so many slots of the cache, and what is made of the last row. All records
share one cache's slots (a reply's cache moves in when it is decoded and out when another one is)
and one pool of memory. What has not been recorded yet makes the same calls one by one, so that a
reply does not hang on what was decoded before it; what a device cannot record, prompts, and rows
that do not follow each other run as they do without. Knows layers and caches; knows no tokens and
policies.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from spark.cache import KVCache, Leg, Rows, at_leg
from spark.transformer import Transformer

MOST_ROWS = 16  # of one call: more are a prompt's, which takes its time anyway
_FEWEST_SLOTS = 256  # beside which a graph attends; further ones have twice as many
_OFTEN = 2  # calls of a kind after which it is worth recording
_AT_ONCE, _MOST = 12, 96  # records made before one reply, and in all
_REMEMBERED = 500  # kinds whose calls are counted
_LONG = 24  # replies without a record, after which another may take its place
_WARM = 3  # runs before a record, in which libraries choose and allocate (PyTorch's own advice)
# Of the largest value, between a record and the calls it was made of: states and logits. What is
# drawn of them may fall either way.
_TOLERANCE, _COMPARED = 1e-2, 2

_RECORDING = threading.Lock()  # of two models on one device one at a time
# Makes of a call that takes and returns nothing one that does the same again.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]


class Ending(Protocol):
    """What follows the last layer; equal where it is the same work."""

    def __hash__(self) -> int: ...

    def __call__(self, state: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Of a state (1, D) and a key of noise (1,), on the device and without waiting for it.

        Returns:
            Logits, then what is drawn of them, in fixed shapes.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """What one graph does: rows up their legs, attending to `slots` slots, and the ending."""

    legs: tuple[Leg, ...]
    slots: int
    ending: Ending | None

    @property
    def rows(self) -> int:
        """How many come to the end."""
        return self.legs[-1].count


@dataclass(frozen=True)
class _Record:
    """A graph with the tensors that it reads and writes."""

    states: Tensor  # (1, T, D)
    positions: Tensor  # (T,)
    key: Tensor  # (1,)
    made: tuple[Tensor, ...]  # states (1, T, D), and what the ending gave
    replay: Callable[[], None]
    used: list[int]  # the last reply that ran it, by number


class Graphs:
    """The records of one transformer.

    Whoever runs steps of the transformer, or looks at a cache of its replies, holds `turn`: records
    have one set of tensors, and caches move.

    Args:
        body: on one device.
        recorder: makes a recorder, whose records share memory; asked at the first record, and again
            when all are forgotten.

    Attributes:
        turn: to be held.
        trouble: why nothing is recorded any more; None where all is well.
    """

    def __init__(self, body: Transformer, recorder: Callable[[], Recorder]) -> None:
        self._body, self._recorder = body, recorder
        self._record: Recorder | None = None  # at the first record: a GPU may only be lent later
        self._positions = torch.arange(body.config.max_position_embeddings, device=body.device)
        self._buffer: Tensor | None = None
        self._resident: weakref.ref[KVCache] | None = None
        self._records: dict[Kind, _Record] = {}
        self._calls: Counter[Kind] = Counter()
        self._replies = 0
        self.turn = threading.RLock()
        self.trouble: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What has been recorded."""
        return tuple(self._records)

    @torch.inference_mode()
    def prepare(self, capacity: int) -> None:
        """Make room for a reply, and record what earlier ones ran often, a dozen kinds at a time.

        Takes a moment, so not while a token of this reply is awaited.

        Args:
            capacity: of the cache of the reply to come.
        """
        with self.turn:
            if self.trouble:
                return
            self._replies += 1
            try:
                buffer = self._room(capacity)
                for kind in self._due(buffer.shape[3]):
                    self._move_out()
                    self._records[kind] = self._checked(kind, buffer)
            except RuntimeError as error:  # out of memory, or not to be recorded
                self._give_up(str(error))

    @torch.inference_mode()
    def run(
        self,
        legs: tuple[Leg, ...],
        rows: Rows,
        cache: KVCache,
        ending: Ending | None = None,
        key: int = 0,
    ) -> tuple[Tensor, ...] | None:
        """Rows up their legs, in fixed shapes, from a record if there is.

        Args:
            legs: see `Pending.joined`.
            rows: of batch size 1, left untouched.
            cache: of batch size 1.
            ending: of the last row.
            key: of its noise.

        Returns:
            States (1, T, D) after the last leg, then what the ending gives; None where it cannot
            be, and nothing was done.

        Raises:
            ValueError: the cache is full.
        """
        buffer = self._buffer
        if buffer is None or legs[-1].count > MOST_ROWS or cache.capacity > buffer.shape[3]:
            return None
        for leg in legs:
            if any(held != rows.end - leg.count for held in cache.lengths[leg.low : leg.high]):
                return None  # where layers lack rows, a slot is no position
        try:
            self._move_in(cache, buffer)
        except RuntimeError as error:  # no memory for the cache that was there
            self._give_up(str(error))
            return None
        for leg in legs:
            cache.reserve(leg.low, leg.high, leg.count)
        kind = Kind(legs, _slots(rows.end), ending)
        self._count(kind)
        positions = self._positions[rows.start : rows.end]
        record = self._records.get(kind)
        if record is None:
            noise = torch.full((1,), key, device=positions.device)
            return _made(self._body, kind, rows.states, positions, noise, buffer)
        record.states.copy_(rows.states)
        record.positions.copy_(positions)
        record.key.fill_(key)
        record.replay()
        record.used[0] = self._replies
        return tuple(made.clone() for made in record.made)

    def _count(self, kind: Kind) -> None:
        if kind not in self._calls and len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[kind] += 1

    def _due(self, slots: int) -> list[Kind]:
        """What is to be recorded now, beside so many slots.

        Of what is called most; those that need most memory first: the others then fit into it.
        """
        often = [kind for kind, calls in self._calls.most_common() if calls >= _OFTEN]
        fresh = [kind for kind in often if kind not in self._records and kind.slots <= slots]
        if len(self._records) + len(fresh) > _MOST:
            self._retire()
        free = min(_AT_ONCE, _MOST - len(self._records))
        return sorted(fresh[:free], key=lambda kind: (-kind.rows, -kind.slots, kind.legs[0].low))

    def _retire(self) -> None:
        """Forget what no reply has run for long: other heads and ways to draw are asked for now."""
        for kind, record in list(self._records.items()):
            if self._replies - record.used[0] > _LONG:
                del self._records[kind], self._calls[kind]
        if not self._records:
            self._record = None  # its pool went with them

    def _room(self, capacity: int) -> Tensor:
        """Slots for a cache of that capacity; records of a smaller buffer are forgotten."""
        if self._buffer is None or self._buffer.shape[3] < capacity:
            self._move_out()
            self._forget()  # before the next is made: there may be no room for two
            shape = self._body.config
            self._buffer = torch.zeros(
                self._body.num_layers, 1, 2 * shape.num_key_value_heads, _slots(capacity),
                shape.head_dim, dtype=self._body.dtype, device=self._body.device,
            )  # fmt: skip
        return self._buffer

    def _forget(self) -> None:
        self._records.clear()
        # A pool that nothing uses any more cannot be used.
        self._buffer = self._record = None

    def _move_in(self, cache: KVCache, buffer: Tensor) -> None:
        if self._resident is None or self._resident() is not cache:
            self._move_out()
            cache.live_in(buffer)
            self._resident = weakref.ref(cache)

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
        body = self._body
        noise = torch.Generator().manual_seed(0)
        states = torch.randn(1, kind.rows, body.config.hidden_size, generator=noise)
        states = states.to(body.device, body.dtype)
        last = min(kind.slots, len(self._positions))
        positions = self._positions[last - kind.rows : last].clone()
        key = torch.ones(1, dtype=torch.int64, device=body.device)
        # Of these tensors only: a record that it belonged to would live until it is collected.
        calls = partial(_made, body, kind, states, positions, key, buffer)
        wanted = calls()
        made = tuple(torch.zeros_like(value) for value in wanted)

        def step() -> None:
            for to, value in zip(made, calls(), strict=True):
                to.copy_(value)

        self._record = self._record or self._recorder()
        with _RECORDING:
            replay = self._record(step)
        for to in made:
            to.zero_()
        replay()
        for got, value in list(zip(made, wanted, strict=True))[:_COMPARED]:
            far = float((got - value).abs().max() / value.abs().max().clamp_min(1e-9))
            if not far <= _TOLERANCE:
                raise RuntimeError(f"a recorded step differs by {far:.1e} of the largest value")
        return _Record(states, positions, key, made, replay, [self._replies])

    def _give_up(self, why: str) -> None:
        self._forget()
        self._resident, self.trouble = None, why


def _made(
    body: Transformer,
    kind: Kind,
    states: Tensor,
    positions: Tensor,
    key: Tensor,
    buffer: Tensor,
) -> tuple[Tensor, ...]:
    """The calls that a record of a kind is made of."""
    slots, done = buffer[:, :, :, : kind.slots], None
    for leg in kind.legs:
        where = positions[-leg.count :]
        done = body.run_fixed(leg.low, leg.high, at_leg(states, leg, done), where, slots)
    assert done is not None, "a way up has legs"
    return (done,) if kind.ending is None else (done, *kind.ending(done[:, -1], key))


def _slots(end: int) -> int:
    """How many slots a graph attends to where rows end before `end`."""
    slots = _FEWEST_SLOTS
    while slots < end:
        slots *= 2
    return slots


def prepare(body: Transformer) -> None:
    """Give a transformer on a CUDA device its graphs; others run as they are."""
    if body.device.type == "cuda" and body.graphs is None:
        device = body.device
        body.graphs = Graphs(body, lambda: _cuda_recorder(device))


def _cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs, all into one pool of memory.

    Streams are few and kept, since libraries keep memory for each; that for warming up is another
    than that of the records, whose memory lies in their pool. Errors count in this thread only:
    others may load, hear and speak meanwhile.
    """
    with torch.cuda.device(device):
        pool, warming, own = (
            torch.cuda.graph_pool_handle(), torch.cuda.Stream(device), torch.cuda.Stream(device),
        )  # fmt: skip

    def record(call: Callable[[], None]) -> Callable[[], None]:
        now = torch.cuda.current_stream(device)
        warming.wait_stream(now)
        with torch.cuda.stream(warming):
            for _ in range(_WARM):
                call()
        now.wait_stream(warming)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(own),  # gives the stream back also where a record fails
            torch.cuda.graph(graph, pool=pool, stream=own, capture_error_mode="thread_local"),
        ):
            call()
        return graph.replay

    return record
