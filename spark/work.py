"""What a reply asks of the model while it is decoded.

A reply is written as if it were alone: a generator that yields a piece of work and is sent its
result. Says what work there is and how a large piece falls into small ones; `worker.py` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from spark.cache import KVCache, Leg, Levels, Rows, at_leg
from spark.foresight import Course
from spark.sampling import SamplingSettings
from spark.schedule import Measure


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
class How:
    """How tokens are drawn.

    Attributes:
        ids: (R,) of the logits' columns, None where column = id.
        sampling: how.
        positions: of the tokens.
        seen: (n, V) bool, or None without a repetition penalty.
        seeds: of the noise, one a row, in place of the settings'.
    """

    ids: Tensor | None
    sampling: SamplingSettings
    positions: tuple[int, ...]
    seen: Tensor | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """A token from each row of logits (n, R) -> (n,)."""

    logits: Tensor
    how: How


@dataclass(frozen=True)
class Drawn:
    """What came of `Token`.

    Attributes:
        states: (1, T, D) after the last leg; where that ends at the top, of the last row only.
        logits: (1, R) of the last row.
        read: the token drawn from them, their largest probability, and whether the token is that
            in `ids`; waits for the device.
        ids: (1,) the token where it was drawn, to go on with before it is read; None where it is
            read at once.
    """

    states: Tensor
    logits: Tensor
    read: Callable[[], tuple[int, float, bool]]
    ids: Tensor | None = None


@dataclass(frozen=True)
class Token:
    """All that a token takes where nothing on the way decides anything -> `Drawn`.

    Attributes:
        rows: of one sequence, as `Pending.joined` gives them.
        legs: up which they go.
        cache: that they join.
        head: asked about the last row.
        how: one token is drawn.
    """

    rows: Rows
    legs: tuple[Leg, ...]
    cache: KVCache
    head: str
    how: How


@dataclass(frozen=True)
class Seen:
    """What came of `Look`: states (1, T, D), logits (1, R) of the last row, how sure they are."""

    states: Tensor
    logits: Tensor
    sureness: float


@dataclass(frozen=True)
class Look:
    """All that it takes to know whether a token may be drawn at a layer -> `Seen`.

    Attributes:
        rows: of one sequence, as `Pending.joined` gives them.
        legs: up which they go.
        cache: that they join.
        head: asked about the last row.
        measure: of its logits.
    """

    rows: Rows
    legs: tuple[Leg, ...]
    cache: KVCache
    head: str
    measure: Measure


@dataclass(frozen=True)
class Said:
    """What came of `Stretch`.

    Attributes:
        tokens: as far as each filled its slot, the first that did not included.
        sureness: the largest probability of each.
        ms: that each took.
        stops: the way that each took, by its number.
        pending: rows that waited after each.
        levels: where they wait in the end.
        states: (1, T, D) of the rows given and of those drawn from after them, each where it
            stopped; those that lent their keys and values before that.
        last: (n, D) from which each was drawn, at least as many as tokens, if watched.
        logits: (n, R) from which each was drawn, with more columns than some had, if watched.
    """

    tokens: Sequence[int]
    sureness: Sequence[float]
    ms: Sequence[float]
    stops: Sequence[int]
    pending: Sequence[int]
    levels: Levels
    states: Tensor
    last: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Stretch:
    """Tokens one after the other, each if the one before fills its slot -> `Said`.

    Attributes:
        rows: of one sequence: those that wait, oldest first, and that of the first token.
        levels: where they wait; not so many that with one more they are more than the course has.
        course: what each takes.
        most: tokens, not more than the course has.
        thresholds: how sure each must be to stop before the last of its ways.
        most_pending: with so many waiting, it goes the last of its ways.
        defers: whether rows that stop wait.
        watched: whether more is to be looked at than the tokens.
        lends: whether rows that come along to the top lend its last layer their keys and values and
            go no further.
        slots: (V,) uint8, `Vocabulary.slots`.
        cache: that the rows join.
        sampling: how tokens are drawn, without a repetition penalty.
    """

    rows: Rows
    levels: Levels
    course: Course
    most: int
    thresholds: Sequence[float]
    most_pending: int
    defers: bool
    watched: bool
    lends: bool
    slots: Tensor
    cache: KVCache
    sampling: SamplingSettings


Part = Run | Ask | Sure | Draw
Whole = Look | Token
Work = Part | Whole | Stretch
T = TypeVar("T")
# Yields work and is sent what that gives: `Seen`, `Drawn`, `Said`, else a tensor.
Task = Generator[Work, Any, T]


def climb(rows: Rows, legs: Sequence[Leg], cache: KVCache) -> Task[Rows]:
    """Rows up their legs, one `Run` each."""
    done: Tensor | None = None
    for leg in legs:
        begun = Rows(at_leg(rows.states, leg, done), rows.end - leg.count)
        done = yield Run(leg.low, leg.high, begun, cache)
    return rows if done is None else Rows(done, rows.start)


def by_parts(work: Whole) -> Task[Seen | Drawn]:
    """The same in pieces, which can be done together with those of other replies."""
    rows = yield from climb(work.rows, work.legs, work.cache)
    logits = yield Ask(work.head, rows.states[:, -1])
    if isinstance(work, Look):
        return Seen(rows.states, logits, float((yield Sure(work.measure, logits))))
    sureness = yield Sure("max_prob", logits)
    token = yield Draw(logits, work.how)
    return Drawn(rows.states, logits, lambda: (int(token), float(sureness), True))


def unfolded(task: Task[T]) -> Task[T]:
    """A task with its larger pieces in parts."""
    try:
        wanted = next(task)
        while True:
            if isinstance(wanted, Look | Token):
                answer: object = yield from by_parts(wanted)
            else:
                answer = yield wanted
            wanted = task.send(answer)
    except StopIteration as end:
        return end.value
