"""Heads laid out for the compiled step, and the call that asks them.

Rows that one head has among its own are another's too: a speech-row head reads a part of the whole
head's matrix. Less lies in the processor's cache then, in which small models live.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from spark.compiled.step import TILE, Store, is_narrow
from spark.heads import Head

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class HeadStruct(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("lens", "logits", "lens_bias", "gain")),
        *((name, _INT) for name in ("width", "outputs", "narrow", "threads")),
        ("eps", ctypes.c_float),
    ]


class CompiledHeads:
    """Runs heads over a few states; each is laid out when it is first asked.

    Args:
        built: the library.
        bank: heads by name, float32, of a transformer that is not `unsuited`; one name is always
            the same head from when it is first asked.
    """

    def __init__(self, built: ctypes.CDLL, bank: Mapping[str, Head]) -> None:
        self._library, self._store, self._bank = built, Store(), bank
        self._heads: dict[str, HeadStruct] = {}
        self._narrow: dict[str, bool] = {}

    def logits(self, name: str, states: Tensor) -> Tensor:
        """As `Head.logits`, of at most `MOST_ROWS` states (n, D): (n, R)."""
        told = HeadStruct.from_buffer_copy(self.laid_out(name))
        told.threads = torch.get_num_threads()
        states = states.contiguous()
        scratch, out = (
            states.new_empty(1 + told.threads, *states.shape),
            states.new_empty(len(states), told.outputs),
        )
        self._library.spark_head(
            ctypes.byref(told), len(states), _POINTER(states.data_ptr()),
            _POINTER(scratch.data_ptr()), _POINTER(out.data_ptr()),
        )  # fmt: skip
        return out[:, : len(self._bank[name].rows)]

    def laid_out(self, name: str) -> HeadStruct:
        """A head as the library takes it, on one thread."""
        if name not in self._heads:
            # Not twice: another thread's call may be reading what is there.
            self._heads.setdefault(name, self._lay_out(name))
        return self._heads[name]

    def nbytes(self, name: str) -> int:
        """Bytes of weights read to evaluate a head once."""
        head = self._bank[name]
        matrices = sum(m.nbytes for m in (head.rows, head.lens) if m is not None)
        return head.nbytes - (matrices // 2 if self._is_narrow(name) else 0)

    def _is_narrow(self, name: str) -> bool:
        if name not in self._narrow:
            head = self._bank[name]
            parts = [part for part in (head.rows, head.lens) if part is not None]
            self._narrow[name] = all(is_narrow(part) for part in parts)
        return self._narrow[name]

    def _lay_out(self, name: str) -> HeadStruct:
        head, narrow = self._bank[name], self._is_narrow(name)
        lens = None if head.lens is None else self._store.tiled(head.lens, narrow)
        padding = -len(head.rows) % TILE
        logits = self._shared(name)
        if logits is None:
            logits = self._store.tiled(F.pad(head.rows, (0, 0, 0, padding)), narrow)
        bias, gain = self._store.held(head.lens_bias), self._store.held(head.gain)
        width, outputs = head.gain.shape[0], len(head.rows) + padding
        return HeadStruct(lens, logits, bias, gain, width, outputs, narrow, 1, head.eps)

    def _shared(self, name: str) -> int | None:
        """Address of a head's rows within those of a larger head, None where they are in none."""
        rows, narrow = self._bank[name].rows, self._is_narrow(name)
        for other, head in self._bank.items():
            if len(head.rows) <= len(rows) or self._is_narrow(other) != narrow:
                continue
            for first in range(0, len(head.rows) - len(rows) + 1, TILE):
                likely = torch.equal(head.rows[first], rows[0])
                if likely and torch.equal(head.rows[first : first + len(rows)], rows):
                    number_bytes = 2 if narrow else 4
                    return int(self.laid_out(other).logits) + first * rows.shape[1] * number_bytes
        return None
