"""Keys and values of the tokens run so far, and the tokens whose upper layers have yet to run.

Knows nothing of policies: it keeps what it is given, in order, layer by layer. Rotary positions
are already inside the keys, so a layer's rows are simply those it has seen, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class KVCache:
    """Static keys and values, one buffer a layer, filled from slot 0 upwards.

    Layers may hold different numbers of rows: after an early exit the upper ones hold fewer.

    Args:
        layers: number of layers.
        batch: number of sequences B; they share slots, so all rows are appended in step.
        kv_heads: key-value heads KV.
        head_dim: values a head.
        capacity: rows a layer can hold.
        dtype: of the stored values.
        device: where they live.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        # Keys are heads 0..KV-1 and values KV..2KV-1 of one buffer: a single copy appends both.
        self._buffer = torch.empty(
            layers, batch, 2 * kv_heads, capacity, head_dim, dtype=dtype, device=device
        )
        self._kv_heads = kv_heads
        self.capacity = capacity
        self.lengths = [0] * layers

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._buffer.shape[1]

    def extend(self, lo: int, hi: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Make room for `count` more rows in layers lo..hi-1.

        Returns:
            For each layer, views: the new slots (B, 2 KV, count, head_dim), keys first, which the
            caller fills; and all keys and all values, new slots included, each
            (B, KV, length, head_dim).

        Raises:
            ValueError: a layer is full.
        """
        self._check_room(lo, hi, count)
        views: list[tuple[Tensor, Tensor, Tensor]] = []
        for low, high, held in self._runs(lo, hi):  # layers of one length are sliced together
            end = held + count
            block = self._buffer[low:high, :, :, :end]
            new = block[..., held:, :].unbind(0)
            keys, values = block.split(self._kv_heads, dim=2)
            views += zip(new, keys.unbind(0), values.unbind(0), strict=True)
            self.lengths[low:high] = [end] * (high - low)
        return views

    def reserve(self, lo: int, hi: int, count: int) -> Tensor:
        """Count `count` more rows as held by layers lo..hi-1, for a caller that fills them itself.

        Returns:
            The whole buffer (layers, B, 2 KV, capacity, head_dim), keys first. A layer's new rows
            follow those that `lengths` gave before the call.

        Raises:
            ValueError: a layer is full.
        """
        self._check_room(lo, hi, count)
        self.lengths[lo:hi] = [held + count for held in self.lengths[lo:hi]]
        return self._buffer

    def opened(self, longest: int) -> Tensor:
        """The whole buffer, for a caller that fills rows and then sets `lengths` itself.

        Args:
            longest: the most rows that a layer will hold, more than any holds now.

        Raises:
            ValueError: there is no room for so many, or a layer holds as many already.
        """
        self._check_fits(longest)
        if max(self.lengths) >= longest:
            raise ValueError(f"a layer holds {max(self.lengths)} rows of {longest} already")
        return self._buffer

    def live_in(self, buffer: Tensor) -> None:
        """Keep the rows in another buffer from now on.

        Args:
            buffer: (layers, B, 2 KV, at least `capacity`, head_dim); 0 where no row is held yet,
                since neither new memory nor another cache's rows need be finite.
        """
        for low, high, held in self._runs(0, len(self.lengths)):
            buffer[low:high, ..., :held, :].copy_(self._buffer[low:high, ..., :held, :])
            buffer[low:high, ..., held:, :].zero_()
        self._buffer = buffer[:, :, :, : self.capacity]

    def live_alone(self) -> None:
        """Keep the rows in a buffer of their own from now on."""
        self.live_in(torch.empty_like(self._buffer, memory_format=torch.contiguous_format))

    def _runs(self, lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
        """Neighbours of one length among layers lo..hi-1: (first, one past the last, rows held)."""
        while lo < hi:
            held = self.lengths[lo]
            same = next((i for i in range(lo, hi) if self.lengths[i] != held), hi)
            yield lo, same, held
            lo = same

    def _check_room(self, lo: int, hi: int, count: int) -> None:
        if hi > lo:
            self._check_fits(max(self.lengths[lo:hi]) + count)

    def _check_fits(self, longest: int) -> None:
        if longest > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens and is full")

    def rows(self, layer: int) -> Tensor:
        """Keys and values of one layer, (B, 2 KV, length, head_dim), a view; keys come first."""
        return self._buffer[layer, :, :, : self.lengths[layer]]

    def truncate(self, length: int) -> None:
        """Forget all but the oldest `length` rows of each layer."""
        self.lengths = [min(held, length) for held in self.lengths]

    def fork(self, capacity: int) -> KVCache:
        """An independent copy of the rows held, with room for `capacity` rows."""
        layers, batch, _, _, head_dim = self._buffer.shape
        copy = KVCache(
            layers,
            batch,
            self._kv_heads,
            head_dim,
            capacity,
            self._buffer.dtype,
            self._buffer.device,
        )
        longest = max(self.lengths)
        if longest > capacity:
            raise ValueError(f"{longest} rows do not fit into a cache of {capacity}")
        copy._buffer[..., :longest, :].copy_(self._buffer[..., :longest, :])
        copy.lengths = list(self.lengths)
        return copy


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens in flight at the same layer: states (B, T, D), the first at `start`."""

    states: Tensor
    start: int

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.start + self.states.shape[1]

    def then(self, later: Rows) -> Rows:
        """These rows followed by the next ones."""
        assert later.start == self.end, "rows of a sequence follow each other"
        return Rows(torch.cat((self.states, later.states), dim=1), self.start)


@dataclass(frozen=True)
class Leg:
    """A part of a way up: layers low..high-1, over the last `count` rows of those on the way."""

    low: int
    high: int
    count: int


def at_leg(states: Tensor, leg: Leg, done: Tensor | None) -> Tensor:
    """The states (B, count, D) that a leg starts from.

    Args:
        states: (B, T, D) of all rows on the way, each where it joins.
        leg: to be run.
        done: (B, t, D) after the leg before; None where this is the first.
    """
    first = states.shape[1] - leg.count
    if done is None:
        return states[:, first:]
    joining = leg.count - done.shape[1]
    if not joining:
        return done
    return torch.cat((states[:, first : first + joining], done), dim=1)


class Levels:
    """How many tokens wait at which layer.

    A token that runs past a layer takes along every token that waits there (or its keys would
    lack theirs), so an older token never waits lower than a younger one. Groups therefore form a
    stack: oldest and deepest at the bottom.

    Args:
        groups: (layer, tokens), oldest first.
    """

    def __init__(self, groups: Iterable[tuple[int, int]] = ()) -> None:
        self._groups = list(groups)

    def __len__(self) -> int:
        return sum([count for _, count in self._groups])

    def fork(self) -> Levels:
        """The same, on its own from now on."""
        return Levels(self._groups)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(layer, tokens), oldest first."""
        return tuple(self._groups)

    @property
    def lowest(self) -> int | None:
        """The lowest layer at which a token waits, None where none does."""
        return self._groups[-1][0] if self._groups else None

    def push(self, layer: int, count: int) -> None:
        """Leave tokens waiting at `layer` (they have run layers 0..layer-1)."""
        count += self.pop(layer)
        assert not self._groups or self._groups[-1][0] > layer, "a younger token waits deeper"
        self._groups.append((layer, count))

    def pop(self, layer: int) -> int:
        """Take those that wait at `layer`; how many they are."""
        return self._groups.pop()[1] if self.lowest == layer else 0

    def drop(self, count: int) -> None:
        """Forget the youngest."""
        while count > 0:
            layer, held = self._groups.pop()
            if held > count:
                self._groups.append((layer, held - count))
            count -= held

    def joined(self, count: int, low: int, high: int) -> tuple[Leg, ...]:
        """The way from one layer to another, on which every token joins that waits there.

        Args:
            count: tokens that have run layers 0..low-1.
            low: the first layer to run.
            high: one past the last.
        """
        legs: list[Leg] = []
        while low < high:
            count += self.pop(low)
            stop = high if self.lowest is None else min(high, self.lowest)
            legs.append(Leg(low, stop, count))
            low = stop
        return tuple(legs)


class Pending:
    """Exited tokens and their states, at the layers they stopped at (`Levels`)."""

    def __init__(self) -> None:
        self._levels, self._rows = Levels(), Rows(torch.empty(1, 0, 0), 0)

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def lowest(self) -> int | None:
        """The lowest layer at which a token waits, None where none does."""
        return self._levels.lowest

    @property
    def levels(self) -> Levels:
        """At which layers tokens wait; a copy."""
        return self._levels.fork()

    def push(self, layer: int, rows: Rows) -> None:
        """Leave rows waiting at `layer` (they have run layers 0..layer-1)."""
        self._rows = rows if self.lowest is None else self._rows.then(rows)
        self._levels.push(layer, rows.states.shape[1])

    def hold(self, levels: Levels, rows: Rows) -> None:
        """Be these from now on: as many rows as `levels` counts, oldest first."""
        assert rows.states.shape[1] == len(levels)
        self._levels, self._rows = levels, rows

    def truncate(self, length: int) -> None:
        """Forget rows at position `length` and later."""
        if self.lowest is not None and self._rows.end > length:
            kept = max(length - self._rows.start, 0)
            self._levels.drop(len(self) - kept)
            self._rows = Rows(self._rows.states[:, :kept], self._rows.start)

    def joined(self, rows: Rows, low: int, high: int) -> tuple[Rows, tuple[Leg, ...]]:
        """The way from one layer to another, on which every row joins that waits there.

        Args:
            rows: that have run layers 0..low-1.
            low: the first layer to run.
            high: one past the last.

        Returns:
            All rows that are on the way in the end, each with its states where it joins; and the
            legs, at each of whose beginnings rows join in front.
        """
        before = len(self)
        legs = self._levels.joined(rows.states.shape[1], low, high)
        left = len(self)
        return (self._split(left).then(rows) if left < before else rows), legs

    def take(self, layer: int) -> Rows | None:
        """Remove and return the rows that wait at `layer`, None where there are none."""
        return self._split(len(self)) if self._levels.pop(layer) else None

    def _split(self, left: int) -> Rows:
        """Keep so many of the oldest rows and return the rest."""
        states, start = self._rows.states, self._rows.start
        self._rows = Rows(states[:, :left], start)
        return Rows(states[:, left:], start + left)

    def all(self) -> Rows | None:
        """All that wait, each with its states where it does; None where none does."""
        return None if self.lowest is None else self._rows
