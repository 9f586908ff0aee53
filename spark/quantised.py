"""A block with its matrices as 8-bit integers, for devices that the whole model does not fit on.

Weight-only: one scale an output, symmetric, round to nearest. A block is widened to the model's
precision when it runs and forgotten afterwards, so the arithmetic is that of `Transformer`
everywhere; what is saved is memory, and on most devices it costs time. Norms and biases stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spark.norm import Norm
from spark.weights import Layer


@dataclass(frozen=True)
class Int8Matrix:
    """A matrix (in, out) as int8 values and one scale an output, (out,)."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Quantise; the largest value of each output becomes 127."""
        largest = matrix.abs().amax(dim=0).float()
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        values = (matrix.float() / scale).round().to(torch.int8)
        return cls(values, scale.to(matrix.dtype))

    def wide(self) -> Tensor:
        """The matrix in the precision it came in."""
        return self.values.to(self.scale.dtype).mul_(self.scale)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self.values.nbytes + self.scale.nbytes


@dataclass(frozen=True)
class Int8Layer:
    """A block whose four matrices are quantised."""

    attention_norm: Norm
    qkv: Int8Matrix
    qkv_bias: Tensor | None
    output: Int8Matrix
    mlp_norm: Norm
    gate_up: Int8Matrix
    down: Int8Matrix

    @classmethod
    def of(cls, layer: Layer) -> Int8Layer:
        """Quantise a block."""
        return cls(
            layer.attention_norm, Int8Matrix.of(layer.qkv), layer.qkv_bias,
            Int8Matrix.of(layer.output), layer.mlp_norm, Int8Matrix.of(layer.gate_up),
            Int8Matrix.of(layer.down),
        )  # fmt: skip

    def dense(self) -> Layer:
        """The block, widened."""
        return Layer(
            self.attention_norm, self.qkv.wide(), self.qkv_bias, self.output.wide(),
            self.mlp_norm, self.gate_up.wide(), self.down.wide(),
        )  # fmt: skip
