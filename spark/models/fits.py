"""Whether a model fits, where, and in which precision, decided before a weight is read.

Counts bytes and asks `spark.hardware`; knows no family and loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from spark import hardware
from spark.weights import TransformerConfig

GIB = 2**30
_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16",
          torch.float64: "fp64"}  # fmt: skip
_WHERE = {"cuda": "the GPU", "mps": "Apple's GPU", "cpu": "the CPU"}
Bits = Literal[8, 16]


class TooLarge(ValueError):
    """The model does not fit; the message says by how much and what helps."""


@dataclass(frozen=True)
class Placement:
    """Where a model goes.

    Attributes:
        device: of the weights.
        dtype: of weights, states and cache.
        bits: 8 keeps the layers' matrices as 8-bit integers; 16 leaves them as `dtype`.
        reason: one sentence for people.
    """

    device: torch.device
    dtype: torch.dtype
    bits: Bits
    reason: str


def parameters(shape: TransformerConfig) -> tuple[int, int]:
    """Parameters in the layers, and in embedding and output head."""
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    width, inner = shape.hidden_size, shape.intermediate_size
    layer = width * (queries + 2 * keys) + queries * width + 3 * width * inner
    layer += queries + 2 * keys + 2 * width  # biases and norms
    copies = 1 if shape.tie_word_embeddings else 2
    return layer * shape.num_hidden_layers, copies * shape.vocab_size * width


@dataclass(frozen=True)
class Need:
    """What a model needs memory for.

    Attributes:
        title: of the model, for messages.
        shape: of its transformer.
        tokens: prompt and reply at most.
        speech_rows: rows of the head that speech slots compute.
        beside: bytes of what hears and speaks, by the precision of the transformer.
    """

    title: str
    shape: TransformerConfig
    tokens: int
    speech_rows: int
    beside: Callable[[torch.dtype], int] = lambda _: 0

    def nbytes(self, dtype: torch.dtype, bits: Bits, recorded: bool = False) -> int:
        """Bytes that the model takes while it decodes.

        Weights, the copy of the head's speech rows, two caches (a prompt's and a reply's) of
        `tokens` tokens, what hears and speaks, and a twentieth more for what a step works with;
        8-bit layers are widened one at a time. Steps that are recorded (`spark.graphs`) have slots
        of their own, at most twice as many as tokens, and the widened layer twice more.
        """
        shape, size = self.shape, dtype.itemsize
        layers, ends = parameters(shape)
        per_layer = layers // shape.num_hidden_layers
        widened = 3 if recorded else 1
        body = layers * size if bits == 16 else layers + widened * per_layer * size
        rows = self.speech_rows * shape.hidden_size * size
        keys = shape.num_key_value_heads * shape.head_dim
        caches = (4 if recorded else 2) * self.tokens * shape.num_hidden_layers * 2 * keys * size
        total = body + ends * size + rows + caches + self.beside(dtype)
        return total + total // 20


def place(
    need: Need,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    bits: Bits = 16,
) -> Placement:
    """Choose device and precision, or refuse.

    Args:
        need: of the model.
        device: None for the best there is.
        dtype: None for what suits the device.
        bits: as `Placement` has it.

    Raises:
        TooLarge: not enough memory is free.
        ValueError: there is no such device here.
    """
    where = hardware.best_device() if device is None else _device(device)
    free = hardware.free_memory(where)
    choices = [(dtype, "as asked")] if dtype else _choices(where)
    recorded = where.type == "cuda"
    wanted = {kind: need.nbytes(kind, bits, recorded) for kind, _ in choices}
    for kind, why in choices:
        if free is None or wanted[kind] <= free:
            layers = ", layers in 8 bits" if bits == 8 else ""
            return Placement(where, kind, bits, f"On {_WHERE[where.type]}, in "
                             f"{_NAMES.get(kind, str(kind))}{layers}: {why}.")  # fmt: skip
    least = min(wanted.values())
    assert free is not None
    raise TooLarge(
        f"{need.title} needs {least / GIB:.1f} GiB on {_WHERE[where.type]} and "
        f"{free / GIB:.1f} GiB are free: {_remedy(need, where, free, bits)}"
    )


def _device(name: torch.device | str) -> torch.device:
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}: use cuda, mps or cpu") from error
    if where.type not in _WHERE:  # torch knows some twenty others, most of them by name only
        raise ValueError(f"the lab does not run on {where.type!r}: use cuda, mps or cpu")
    missing = (where.type == "cuda" and not torch.cuda.is_available()) or (
        where.type == "mps" and not torch.backends.mps.is_available()
    )
    if where.type == "cuda" and not missing and (where.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no GPU {where.index}: this machine has {torch.cuda.device_count()}, counted "
            "from 0"
        )
    if missing:
        raise ValueError(f"this machine has no {where.type} device that torch can use: try cpu")
    return where


def _choices(where: torch.device) -> list[tuple[torch.dtype, str]]:
    """Precisions by preference, each with its reason."""
    if where.type == "mps":
        return [(torch.bfloat16, "the precision the weights are stored in")]
    if hardware.fast_bf16(where):
        return [(torch.bfloat16, "the precision the weights are stored in, and fast here")]
    if where.type == "cuda":
        return [(torch.bfloat16, "the precision the weights are stored in; slow on this GPU, "
                 "which has no arithmetic for it")]  # fmt: skip
    return [
        (torch.float32, "this processor has no fast bf16 arithmetic"),
        (torch.bfloat16, "fp32 would not fit; slow, as this processor has no bf16 arithmetic"),
    ]


def _remedy(need: Need, where: torch.device, free: int, bits: Bits) -> str:
    smaller = need.nbytes(torch.bfloat16, 8, recorded=where.type == "cuda")
    if bits == 16 and smaller <= free:
        return (
            f"8-bit weights need {smaller / GIB:.1f} GiB and would fit: --bits 8, where the "
            "command takes it"
        )
    if where.type == "cpu":
        return "close other programs, or use a machine with a larger GPU or more memory"
    return "free the GPU of other programs, or use a larger one"
