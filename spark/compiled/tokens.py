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

from spark.cache import KVCache, Leg, Rows
from spark.compiled.draw import DrawStruct, described, scratch_of
from spark.compiled.heads import CompiledHeads, HeadStruct
from spark.compiled.step import Call, CompiledStep
from spark.foresight import Course
from spark.heads import Head
from spark.sampling import SamplingSettings, noise_key, noise_keys
from spark.work import Said, Stretch

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class _Leg(ctypes.Structure):
    _fields_ = [(name, _INT) for name in ("low", "high", "rows", "lending")]


class _Plan(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("head", "draw", "legs")),
        *((name, _INT) for name in ("legs_n", "slot")),
    ]


class _Stretch(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("plans", "keys", "embedding", "slots", "lengths")),
        *((name, _POINTER) for name in ("logits", "ids", "sureness", "ms")),
        *((name, _INT) for name in ("most", "rows", "draws", "done")),
    ]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A head and a way to draw, as the library takes them, and what they point to."""

    head: HeadStruct
    draw: DrawStruct
    held: Head



@dataclass(frozen=True, slots=True)
class _Course:
    """A course as the library takes it.

    Attributes:
        plans: one a step.
        rows: the most of any leg.
        columns: the most that are drawn from.
        outputs: the most of any head.
    """

    plans: ctypes.Array[_Plan]
    rows: int
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
        self._ways: dict[Sequence[Leg], ctypes.Array[_Leg]] = {}
        self._courses: dict[tuple[Course, float, float, int], _Course] = {}

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
        made = self._step.told(rows, laid.rows, buffer, lengths, self._more(laid.columns))
        keys = noise_keys(work.sampling.seed, range(work.rows.end, work.rows.end + most))
        logits = torch.empty(laid.outputs, dtype=torch.float32)
        ids, sureness, ms = self._told(
            made, laid.plans, (ctypes.c_int64 * most)(*keys), most, lengths, logits, given - 1,
            work.slots,
        )  # fmt: skip
        work.cache.lengths = list(lengths)
        return Said(ids, sureness, ms, states[:, : given + len(ids) - 1])

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
        made = self._step.call(legs, rows, cache, self._more(kind.draw.columns))
        logits = torch.empty(1, kind.head.outputs, dtype=torch.float32)
        keys = None if key is None else (ctypes.c_int64 * 1)(key)
        plans, lengths = (_Plan * 1)(self._plan(kind, legs, 0)), self._step.lengths(cache)
        ids, sureness, _ = self._told(made, plans, keys, 1, lengths, logits, legs[-1].count - 1)
        return made.states, logits[:, : kind.draw.columns], ids, sureness[0]

    def _told(
        self,
        made: Call,
        plans: ctypes.Array[_Plan],
        keys: ctypes.Array[ctypes.c_int64] | None,
        most: int,
        lengths: ctypes.Array[ctypes.c_int64],
        logits: Tensor,
        before: int,
        slots: Tensor | None = None,
    ) -> tuple[list[int], list[float], list[float]]:
        """Call the library: ids, how sure the logits were, and milliseconds of each token.

        Args:
            made: with all rows.
            plans: of the tokens.
            keys: of their noise; None for a look.
            most: tokens.
            lengths: rows that the cache's layers hold; kept up.
            logits: room for one row.
            before: rows before the first token's own.
            slots: `Vocabulary.slots`, where there is more than one token.
        """
        at = ctypes.addressof
        ids, ms = (ctypes.c_int64 * most)(), (ctypes.c_double * most)()
        sureness = (ctypes.c_float * most)()
        told = _Stretch(
            at(plans), None if keys is None else at(keys), self._embedding.data_ptr(),
            None if slots is None else slots.data_ptr(), at(lengths), logits.data_ptr(),
            at(ids), at(sureness), at(ms), most, before, keys is not None, 0,
        )  # fmt: skip
        self._step.library.spark_stretch(
            made.shape, self._step.layers, ctypes.byref(made.step), ctypes.byref(told)
        )
        return ids[: told.done], sureness[: told.done], ms[: told.done]

    def _laid_out(self, course: Course, sampling: SamplingSettings) -> _Course:
        key = course, sampling.temperature, sampling.top_p, sampling.top_k
        if key not in self._courses:
            kinds = [self._kind(step.heads[0], sampling) for step in course.steps]
            plans = [
                self._plan(kind, step.legs, step.slot.number)
                for kind, step in zip(kinds, course.steps, strict=True)
            ]
            self._courses[key] = _Course(
                (_Plan * len(plans))(*plans),
                max(step.legs[-1].count for step in course.steps),
                max(kind.draw.columns for kind in kinds),
                max(kind.head.outputs for kind in kinds),
            )
        return self._courses[key]

    def _more(self, columns: int) -> int:
        """Floats of scratch that asking and drawing take."""
        return (1 + torch.get_num_threads()) * self._embedding.shape[1] + scratch_of(columns)

    def _kind(self, name: str, sampling: SamplingSettings) -> _Kind:
        key = name, sampling.temperature, sampling.top_p, sampling.top_k
        if key not in self._kinds:
            head = self._bank[name]
            laid_out = self._heads.laid_out(name)
            how = described(len(head.rows), laid_out.outputs, head.row_ids, sampling)
            # Not twice: another thread's call may be reading what is there.
            self._kinds.setdefault(key, _Kind(laid_out, how, head))
        return self._kinds[key]

    def _plan(self, kind: _Kind, legs: Sequence[Leg], slot: int) -> _Plan:
        if legs not in self._ways:
            parts = [
                _Leg(leg.low, leg.high, leg.count, leg.count - 1 if leg.high == self._top else 0)
                for leg in legs
            ]
            self._ways.setdefault(legs, (_Leg * len(parts))(*parts))
        at = ctypes.addressof
        return _Plan(at(kind.head), at(kind.draw), at(self._ways[legs]), len(legs), slot)
