"""Tokens in one call: rows up through layers, a head about the last one, a draw, and so on.

A step of a small model takes a tenth of a millisecond. Four calls from Python, with what each of
them needs, would take as long again, and one still a third of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spark.cache import KVCache, Leg, Levels, Rows
from spark.compiled.draw import DrawStruct, described
from spark.compiled.heads import CompiledHeads, HeadStruct
from spark.compiled.step import Call, CompiledStep
from spark.foresight import Course
from spark.heads import Head
from spark.remembered import Remembered
from spark.sampling import SamplingSettings, noise_key, noise_keys
from spark.work import Said, Stretch

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_ROOM = 16  # as in stretch.c
_MOST_KNOWN = 64  # courses that are kept


class _Way(ctypes.Structure):
    _fields_ = [("head", _POINTER), ("draw", _POINTER), ("layer", ctypes.c_int64)]


class _Plan(ctypes.Structure):
    _fields_ = [("ways", _POINTER), ("ways_n", _INT), ("slot", _INT)]


class _Level(ctypes.Structure):
    _fields_ = [("layer", _INT), ("rows", _INT)]


class _Stretch(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("plans", "keys", "thresholds", "embedding", "slots")),
        *((name, _POINTER) for name in ("lengths", "logits", "last", "waiting", "ids", "sureness")),
        *((name, _POINTER) for name in ("ms", "stops", "pending")),
        *((name, _INT) for name in ("most", "far", "draws", "defers", "lends", "top")),
        *((name, _INT) for name in ("most_pending", "low", "rows", "waiting_n", "done")),
    ]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A head and a way to draw, as the library takes them, and what they point to."""

    head: HeadStruct
    draw: DrawStruct
    held: Head


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the library writes, of each token."""

    ids: list[int]
    sureness: list[float]
    ms: list[float]
    stops: list[int]
    pending: list[int]
    levels: Levels


@dataclass(frozen=True, slots=True)
class _Course:
    """A course as the library takes it.

    Attributes:
        plans: one a step.
        held: what they point to.
        columns: the most that are drawn from.
        outputs: the most of any head.
    """

    plans: ctypes.Array[_Plan]
    held: tuple[ctypes.Array[_Way], ...]
    columns: int
    outputs: int


class CompiledTokens:
    """Draws tokens of one model.

    Args:
        step: runs the layers.
        heads: on the same library.
        bank: heads by name; one name is always the same head.
        embedding: (V, D) float32, states of ids before layer 0.
    """

    def __init__(
        self, step: CompiledStep, heads: CompiledHeads, bank: Mapping[str, Head], embedding: Tensor
    ) -> None:
        self._step, self._heads, self._bank = step, heads, bank
        self._embedding, self._top = embedding.contiguous(), len(step.layer_bytes)
        self._kinds: dict[tuple[str, float, float, int], _Kind] = {}
        self._courses = Remembered[tuple[Course, float, float, int], _Course](_MOST_KNOWN)

    def draw(
        self,
        legs: Sequence[Leg],
        rows: Rows,
        cache: KVCache,
        name: str,
        sampling: SamplingSettings,
        seed: int,
        position: int,
    ) -> tuple[Tensor, Tensor, int, float]:
        """As `CompiledStep.run_layers`, `CompiledHeads.logits` and `compiled.draw` in turn.

        Args:
            legs: the way up; hashable.
            rows: at most `MOST_ROWS` of batch size 1, left untouched.
            cache: of batch size 1.
            name: of the head asked about the last row.
            sampling: how, without a repetition penalty.
            seed: of the noise, in place of the settings'.
            position: of the token.

        Returns:
            States (1, T, D) after the last leg, at the top of the last row only; logits (1, R), the
            token, and the largest probability at temperature 1.

        Raises:
            ValueError: the cache is full.
        """
        key = noise_key(seed, position)
        states, logits, ids, sureness = self._one(legs, rows, cache, name, sampling, key)
        return states, logits, ids[0], sureness

    def look(
        self, legs: Sequence[Leg], rows: Rows, cache: KVCache, name: str
    ) -> tuple[Tensor, Tensor, float]:
        """As `draw` up to where it draws: states, logits and the largest probability."""
        states, logits, _, sureness = self._one(legs, rows, cache, name, SamplingSettings(), None)
        return states, logits, sureness

    def stretch(self, work: Stretch) -> Said:
        """Tokens as `draw` gives them one after the other, as far as each fills its slot.

        Args:
            work: of the same bank's heads.

        Raises:
            ValueError: the cache is full.
        """
        laid, most = self._laid_out(work.course, work.sampling), work.most
        given = work.rows.states.shape[1]
        states = torch.empty(1, given + most - 1, self._embedding.shape[1], dtype=torch.float32)
        states[:, :given] = work.rows.states
        rows, lengths = Rows(states, work.rows.start), self._step.lengths(work.cache)
        buffer = work.cache.opened(rows.end)
        made = self._step.told(rows, work.course.rows, buffer, lengths, laid.columns)
        keys = noise_keys(work.sampling.seed, range(work.rows.end, work.rows.end + most))
        kept = most if work.watched else 0
        logits = torch.empty(max(kept, 1), laid.outputs, dtype=torch.float32)
        last = torch.empty(kept, states.shape[2], dtype=torch.float32)
        told = self._told(laid.plans, most, lengths, logits, given - 1)
        keys_held = (ctypes.c_int64 * most)(*keys)
        thresholds = (ctypes.c_double * most)(*work.thresholds)
        told.keys, told.draws = ctypes.addressof(keys_held), 1
        told.thresholds, told.slots = ctypes.addressof(thresholds), work.slots.data_ptr()
        told.most_pending, told.defers, told.lends = work.most_pending, work.defers, work.lends
        if work.watched:
            told.far, told.last = laid.outputs, last.data_ptr()
        got = self._call(made, told, work.levels)
        work.cache.lengths = list(lengths)
        return Said(
            got.ids, got.sureness, got.ms, got.stops, got.pending, got.levels,
            states[:, : given + len(got.ids) - 1], last, logits,
        )  # fmt: skip

    def _one(
        self,
        legs: Sequence[Leg],
        rows: Rows,
        cache: KVCache,
        name: str,
        sampling: SamplingSettings,
        key: int | None,
    ) -> tuple[Tensor, Tensor, list[int], float]:
        """One token, or a look where there is no key: states, logits, its id, how sure they are."""
        kind = self._kind(name, sampling)
        made = self._step.call(legs, rows, cache, kind.draw.columns)
        logits = torch.empty(1, kind.head.outputs, dtype=torch.float32)
        ways = (_Way * 1)(self._way(kind, legs[-1].high))
        plans, lengths = (_Plan * 1)(_Plan(ctypes.addressof(ways), 1)), self._step.lengths(cache)
        told = self._told(plans, 1, lengths, logits, legs[-1].count - 1)
        told.low = legs[0].low
        keys = ctypes.c_int64(key or 0)
        told.keys, told.draws = ctypes.addressof(keys), key is not None
        got = self._call(made, told, _joining(legs))
        return made.states, logits[:, : kind.draw.columns], got.ids, got.sureness[0]

    def _told(
        self,
        plans: ctypes.Array[_Plan],
        most: int,
        lengths: ctypes.Array[ctypes.c_int64],
        logits: Tensor,
        before: int,
    ) -> _Stretch:
        """What both ways of calling have in common.

        Args:
            plans: of the tokens.
            most: tokens.
            lengths: rows that the cache's layers hold; kept up.
            logits: room for one row.
            before: rows before the first token's own.
        """
        return _Stretch(
            plans=ctypes.addressof(plans), embedding=self._embedding.data_ptr(),
            lengths=ctypes.addressof(lengths), logits=logits.data_ptr(), most=most, top=self._top,
            most_pending=_ROOM, lends=1, rows=before,
        )  # fmt: skip

    def _call(self, made: Call, told: _Stretch, levels: Levels) -> _Outcome:
        """Call the library, with rows that wait there."""
        ids, ms = (ctypes.c_int64 * told.most)(), (ctypes.c_double * told.most)()
        sureness = (ctypes.c_float * told.most)()
        stops, pending = (_INT * told.most)(), (_INT * told.most)()
        told.ids, told.ms = ctypes.addressof(ids), ctypes.addressof(ms)
        told.sureness = ctypes.addressof(sureness)
        told.stops, told.pending = ctypes.addressof(stops), ctypes.addressof(pending)
        waiting = (_Level * _ROOM)(*(_Level(*group) for group in levels.groups))
        told.waiting, told.waiting_n = ctypes.addressof(waiting), len(levels.groups)
        self._step.library.spark_stretch(
            made.shape, self._step.layers, ctypes.byref(made.step), ctypes.byref(told)
        )
        done, left = told.done, waiting[: told.waiting_n]
        return _Outcome(
            ids[:done], sureness[:done], ms[:done], stops[:done], pending[:done],
            Levels((level.layer, level.rows) for level in left),
        )  # fmt: skip

    def _laid_out(self, course: Course, sampling: SamplingSettings) -> _Course:
        key = course, sampling.temperature, sampling.top_p, sampling.top_k
        return self._courses.of(key, lambda: self._lay_out(course, sampling))

    def _lay_out(self, course: Course, sampling: SamplingSettings) -> _Course:
        names = {way.head for step in course.steps for way in step.ways}
        kinds = {name: self._kind(name, sampling) for name in names}
        laid = [[self._way(kinds[way.head], way.depth) for way in x.ways] for x in course.steps]
        held = tuple((_Way * len(ways))(*ways) for ways in laid)
        plans = [
            _Plan(ctypes.addressof(ways), len(ways), step.slot.number)
            for ways, step in zip(held, course.steps, strict=True)
        ]
        return _Course(
            (_Plan * len(plans))(*plans),
            held,
            max(kind.draw.columns for kind in kinds.values()),
            max(kind.head.outputs for kind in kinds.values()),
        )

    def _kind(self, name: str, sampling: SamplingSettings) -> _Kind:
        key = name, sampling.temperature, sampling.top_p, sampling.top_k
        if key not in self._kinds:
            head = self._bank[name]
            laid_out = self._heads.laid_out(name)
            how = described(len(head.rows), laid_out.outputs, head.row_ids, sampling)
            # Not twice: another thread's call may be reading what is there.
            self._kinds.setdefault(key, _Kind(laid_out, how, head))
        return self._kinds[key]

    @staticmethod
    def _way(kind: _Kind, layer: int) -> _Way:
        return _Way(ctypes.addressof(kind.head), ctypes.addressof(kind.draw), layer)


def _joining(legs: Sequence[Leg]) -> Levels:
    """Where the rows wait that join the last one on its way."""
    before = (1, *(leg.count for leg in legs))
    joins = [(leg.low, leg.count - fewer) for leg, fewer in zip(legs, before, strict=False)]
    return Levels((layer, count) for layer, count in reversed(joins) if count)
