"""The compiled sampler's call. `draw.c` computes, in the order of `sampling.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from spark.sampling import SamplingSettings, noise_key

BLOCK = 32  # `LOGITS` of step.h
_POINTER = ctypes.c_void_p


class DrawStruct(ctypes.Structure):
    _fields_ = [
        ("columns", ctypes.c_int), ("step", ctypes.c_int), ("top_k", ctypes.c_int),
        ("temperature", ctypes.c_float), ("top_p", ctypes.c_float), ("ids", _POINTER),
    ]  # fmt: skip


def scratch_of(columns: int) -> int:
    """Floats that a draw takes: a pair a column, and what is found out about each block."""
    return 2 * columns + 3 * -(-columns // BLOCK)


def draw(
    built: ctypes.CDLL,
    logits: Tensor,
    ids: Tensor | None,
    settings: SamplingSettings,
    positions: Sequence[int],
    seeds: Sequence[int],
) -> Tensor:
    """As `sampling.draw`, without a repetition penalty.

    Args:
        built: the library.
        logits: (B, R) float32 on the CPU.
        ids: (R,) int64 token ids of the columns, None where column = id.
        settings: how.
        positions: of the tokens drawn, one a row.
        seeds: one a row, in place of the settings'.

    Returns:
        Token ids (B,), int64: those of `sampling.draw` but where two scores are equal to rounding.
    """
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    rows, columns = logits.shape
    keys = (ctypes.c_int64 * rows)(*map(noise_key, seeds, positions))
    told = described(columns, logits.stride(0), ids, settings)
    scratch = torch.empty(scratch_of(columns), dtype=torch.float32)
    tokens = torch.empty(rows, dtype=torch.int64)
    built.spark_draw(
        ctypes.byref(told), rows, _POINTER(logits.data_ptr()), keys,
        _POINTER(scratch.data_ptr()), _POINTER(tokens.data_ptr()),
    )  # fmt: skip
    return tokens


def described(
    columns: int, step: int, ids: Tensor | None, settings: SamplingSettings
) -> DrawStruct:
    """How tokens are drawn, as the library takes it; rows of logits lie `step` floats apart."""
    return DrawStruct(
        columns, step, settings.top_k, settings.temperature, settings.top_p,
        None if ids is None else ids.data_ptr(),
    )  # fmt: skip
