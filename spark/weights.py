"""A model's shape and weights, read from transformers' config and state dict, and given back.

Knows names and layouts, no arithmetic. Weights are rearranged once, when read:

- q, k and v become one matrix, and so do gate and up;
- rotary pairs lie side by side, as in GLM. Qwen2 pairs dimension i with i + d/2: the rows of its
  q and k are permuted, which no dot product of a query and a key can see. One complex
  multiplication then rotates queries and keys, and dimensions without a rotation turn by 0;
- matrices with more outputs than inputs are laid out for products with one vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spark.norm import Norm

_ROTARY_SHARE = {"qwen2": 1.0, "glm": 0.5}  # defaults of transformers' config classes


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a model, in transformers' words. `rotary_dim` values of each head are rotated."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: Mapping[str, Any] | Any) -> TransformerConfig:
        """Read a config.json (as a mapping) or a transformers config object.

        Raises:
            ValueError: the model needs something this transformer does not do.
        """
        raw = dict(config) if isinstance(config, Mapping) else config.to_dict()
        family = raw.get("model_type")
        if family not in _ROTARY_SHARE:
            raise ValueError(f"model_type {family!r} is not one of {sorted(_ROTARY_SHARE)}")
        _refuse_unsupported(raw)
        heads = raw["num_attention_heads"]
        head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
        rope = {**raw, **(raw.get("rope_parameters") or {})}
        if rope.get("rope_theta") is None:  # the default would differ from model to model
            raise ValueError("the config gives no rope_theta")
        share = rope.get("partial_rotary_factor") or _ROTARY_SHARE[family]
        return cls(
            family=family,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=float(rope["rope_theta"]),
            rotary_dim=int(head_dim * share),
            max_position_embeddings=raw["max_position_embeddings"],
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    """Raise ValueError where a config asks for what would silently be computed wrongly."""
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported, only silu")
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name) or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"{name} is {rope!r}, and has to be an object or null")
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default":
            raise ValueError(f"rope type {kind!r} is not supported, only default")
    if raw.get("use_sliding_window"):
        raise ValueError("sliding-window attention is not supported")


class Layer(NamedTuple):
    """Weights of one block. Matrices are (in, out), the transpose of what a file holds."""

    attention_norm: Norm
    qkv: Tensor  # (D, (H + 2 KV) head_dim)
    qkv_bias: Tensor | None  # ((H + 2 KV) head_dim,)
    output: Tensor  # (H head_dim, D)
    mlp_norm: Norm
    gate_up: Tensor  # (D, 2 F), gate first
    down: Tensor  # (F, D)

    def dense(self) -> Layer:
        """The weights to multiply with: these (an 8-bit block widens its own)."""
        return self


def wide(matrix: Tensor) -> Tensor:
    """The same matrix (out, in), laid out input by input on a CPU.

    With more outputs than inputs, MKL then multiplies it with one vector up to twice as fast
    (measured: 1024 x 256 and 3406 x 256, one thread). In bf16 it is the other way round (4096 x
    4096: 5.0 ms so, 2.0 ms in the usual order), and a GPU's kernels want the usual order too.
    """
    suits = matrix.device.type == "cpu" and matrix.dtype in (torch.float32, torch.float64)
    return matrix.t().contiguous().t() if suits else matrix


@dataclass(frozen=True)
class StateReader:
    """Takes tensors out of a state dict, checked, converted and placed."""

    state: Mapping[str, Tensor]
    dtype: torch.dtype | None
    device: torch.device

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name; ValueError where it is missing or of another shape."""
        if name not in self.state:
            raise ValueError(f"the state dict has no {name}")
        tensor = self.state[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, the config says {shape}")
        return tensor.detach().to(self.device, self.dtype or tensor.dtype)


def read_layer(reader: StateReader, shape: TransformerConfig, index: int) -> Layer:
    """One block from transformers' names, fused and with rotary pairs side by side."""
    prefix, width = f"model.layers.{index}.", shape.hidden_size
    sizes = {
        "q": shape.num_attention_heads * shape.head_dim,
        "k": shape.num_key_value_heads * shape.head_dim,
        "v": shape.num_key_value_heads * shape.head_dim,
    }

    def norm(name: str) -> Norm:
        return Norm(reader.take(f"{prefix}{name}.weight", (width,)), shape.rms_norm_eps)

    parts, biases = [], []
    for name, size in sizes.items():
        weight = reader.take(f"{prefix}self_attn.{name}_proj.weight", (size, width))
        parts.append(_pair(weight, shape) if name != "v" else weight)
        if f"{prefix}self_attn.{name}_proj.bias" in reader.state:
            bias = reader.take(f"{prefix}self_attn.{name}_proj.bias", (size,))
            biases.append(_pair(bias, shape) if name != "v" else bias)
    if len(biases) not in (0, len(parts)):
        raise ValueError(f"{prefix}self_attn has a bias on some of q, k and v only")
    return Layer(
        attention_norm=norm("input_layernorm"),
        qkv=wide(torch.cat(parts)).t(),
        qkv_bias=torch.cat(biases) if biases else None,
        output=reader.take(f"{prefix}self_attn.o_proj.weight", (width, sizes["q"])).t(),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=wide(_read_gate_up(reader, shape, prefix)).t(),
        down=reader.take(f"{prefix}mlp.down_proj.weight", (width, shape.intermediate_size)).t(),
    )


def _read_gate_up(reader: StateReader, shape: TransformerConfig, prefix: str) -> Tensor:
    """Gate and up as one matrix (2 F, D): stored so by GLM, apart by Qwen2."""
    inner, width = shape.intermediate_size, shape.hidden_size
    if shape.family == "glm":
        return reader.take(f"{prefix}mlp.gate_up_proj.weight", (2 * inner, width))
    gate = reader.take(f"{prefix}mlp.gate_proj.weight", (inner, width))
    return torch.cat((gate, reader.take(f"{prefix}mlp.up_proj.weight", (inner, width))))


def unfused(layer: Layer, shape: TransformerConfig) -> dict[str, Tensor]:
    """One block's weights by transformers' names, the inverse of `read_layer`."""
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    parts = {
        "input_layernorm.weight": layer.attention_norm.gain,
        "self_attn.o_proj.weight": layer.output.t(),
        "post_attention_layernorm.weight": layer.mlp_norm.gain,
        "mlp.down_proj.weight": layer.down.t(),
    }
    for kind, fused in (("weight", layer.qkv.t()), ("bias", layer.qkv_bias)):
        if fused is not None:
            q, k, v = fused.split((queries, keys, keys))
            parts[f"self_attn.q_proj.{kind}"] = _pair(q, shape, back=True)
            parts[f"self_attn.k_proj.{kind}"] = _pair(k, shape, back=True)
            parts[f"self_attn.v_proj.{kind}"] = v
    if shape.family == "glm":
        return parts | {"mlp.gate_up_proj.weight": layer.gate_up.t()}
    gate, up = layer.gate_up.t().chunk(2)
    return parts | {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}


def _pair(rows: Tensor, shape: TransformerConfig, back: bool = False) -> Tensor:
    """Put the rows of each rotary pair side by side, or back; rows are (heads head_dim, ...)."""
    if shape.family == "glm":
        return rows
    half = shape.rotary_dim // 2
    first = torch.arange(half)
    order = torch.stack((first, first + half), dim=1).flatten()
    order = torch.cat((order, torch.arange(shape.rotary_dim, shape.head_dim)))
    order = order.argsort() if back else order
    by_head = rows.unflatten(0, (-1, shape.head_dim))
    return by_head[:, order.to(rows.device)].flatten(0, 1)
