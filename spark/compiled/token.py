"""A token in one call: rows up through layers, a head about the last one, and a draw.

A step of a small model takes a fifth of a millisecond, of which four calls from Python with what
each of them needs would be a good part.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from spark.cache import KVCache, Leg, Rows
from spark.compiled.draw import SCRATCH, DrawStruct, described
from spark.compiled.step import CompiledHeads, CompiledStep, HeadStruct
from spark.heads import Head
from spark.sampling import SamplingSettings, noise_key


class _Leg(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("low", "high", "rows")]


class _Token(ctypes.Structure):
    _fields_ = [
        ("head", HeadStruct), ("draw", DrawStruct), ("legs", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("legs_n", "draws", "key", "id")),
        ("logits", ctypes.c_void_p), ("sureness", ctypes.c_float),
    ]  # fmt: skip


class CompiledToken:
    """Draws tokens.

    Args:
        step: runs the layers.
        heads: on the same library.
    """

    def __init__(self, step: CompiledStep, heads: CompiledHeads) -> None:
        self._step, self._heads = step, heads
        self._kinds: dict[tuple[str, float, float, int], _Token] = {}
        self._held: list[Head] = []  # whose ids they point to
        self._legs: dict[Sequence[Leg], ctypes.Array[_Leg]] = {}

    def draw(
        self,
        legs: Sequence[Leg],
        rows: Rows,
        cache: KVCache,
        name: str,
        head: Head,
        sampling: SamplingSettings,
        seed: int,
        position: int,
    ) -> tuple[Tensor, Tensor, int, float]:
        """As `CompiledStep.run_layers`, `CompiledHeads.logits` and `compiled.draw` in turn.

        Args:
            legs: the way up; hashable.
            rows: at most `MOST_ROWS` of batch size 1, left untouched.
            cache: of batch size 1.
            name: of the head; one name is always the same head.
            head: asked about the last row.
            sampling: how, without a repetition penalty.
            seed: of the noise, in place of the settings'.
            position: of the token.

        Returns:
            States (1, T, D) after the last leg, logits (1, R), the token, and the largest
            probability at temperature 1.

        Raises:
            ValueError: the cache is full.
        """
        told = _Token.from_buffer_copy(self._kind(name, head, sampling))
        told.draws, told.key = 1, noise_key(seed, position)
        states, logits = self._call(told, legs, rows, cache)
        return states, logits, told.id, told.sureness

    def look(
        self, legs: Sequence[Leg], rows: Rows, cache: KVCache, name: str, head: Head
    ) -> tuple[Tensor, Tensor, float]:
        """As `draw` up to where it draws: states, logits and the largest probability."""
        told = _Token.from_buffer_copy(self._kind(name, head, SamplingSettings()))
        states, logits = self._call(told, legs, rows, cache)
        return states, logits, told.sureness

    def _call(
        self, told: _Token, legs: Sequence[Leg], rows: Rows, cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """States and logits; the rest is in what it is told."""
        width, columns = told.head.width, told.draw.columns
        made = self._step.call(legs, rows, cache, more=2 * width + SCRATCH * columns)
        logits, way = torch.empty(1, told.head.outputs, dtype=torch.float32), self._way(legs)
        told.legs, told.legs_n = ctypes.addressof(way), len(legs)
        told.logits = logits.data_ptr()
        self._step.library.spark_token(
            made.shape, self._step.layers, ctypes.byref(made.step), ctypes.byref(told)
        )
        return made.states, logits[:, :columns]

    def _kind(self, name: str, head: Head, sampling: SamplingSettings) -> _Token:
        key = name, sampling.temperature, sampling.top_p, sampling.top_k
        if key not in self._kinds:
            laid_out = self._heads.laid_out(name, head)
            how = described(len(head.rows), laid_out.outputs, head.row_ids, sampling)
            self._kinds[key] = _Token(laid_out, how)
            self._held.append(head)
        return self._kinds[key]

    def _way(self, legs: Sequence[Leg]) -> ctypes.Array[_Leg]:
        if legs not in self._legs:
            parts = [_Leg(leg.low, leg.high, leg.count) for leg in legs]
            # Not twice: another thread's call may be reading what is there.
            self._legs.setdefault(legs, (_Leg * len(parts))(*parts))
        return self._legs[legs]
