"""One decoder-only transformer for Qwen2 and GLM shapes, on plain tensors.

Runs any range of layers over any rows, so that a caller can stop at a layer and go on later.
Knows nothing of policies, modalities or sampling. Pre-norm blocks: RMSNorm, grouped-query
attention with rotary positions, RMSNorm, SwiGLU. Weights come from the state dict of
transformers' Qwen2ForCausalLM or GlmForCausalLM and are rearranged once, when read:

- q, k and v become one matrix, and so do gate and up;
- rotary pairs lie side by side, as in GLM. Qwen2 pairs dimension i with i + d/2: the rows of its
  q and k are permuted, which no dot product of a query and a key can see. One complex
  multiplication then rotates queries and keys, and dimensions without a rotation turn by 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spark.cache import KVCache
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
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ValueError(f"rope type {kind!r} is not supported, only default")
    if raw.get("use_sliding_window"):
        raise ValueError("sliding-window attention is not supported")


def wide(matrix: Tensor) -> Tensor:
    """The same matrix (out, in), laid out input by input on a CPU.

    With more outputs than inputs, MKL then multiplies it with one vector up to twice as fast
    (measured: 1024 x 256 and 3406 x 256, one thread). A GPU's kernels want the usual order.
    """
    return matrix.t().contiguous().t() if matrix.device.type == "cpu" else matrix


class Layer(NamedTuple):
    """Weights of one block. Matrices are (in, out), the transpose of what a file holds."""

    attention_norm: Norm
    qkv: Tensor  # (D, (H + 2 KV) head_dim)
    qkv_bias: Tensor | None  # ((H + 2 KV) head_dim,)
    output: Tensor  # (H head_dim, D)
    mlp_norm: Norm
    gate_up: Tensor  # (D, 2 F), gate first
    down: Tensor  # (F, D)


class Transformer:
    """A decoder's weights and the arithmetic of its layers.

    Args:
        config: the shape.
        embedding: (V, D) rows by token id.
        layers: weights of the blocks, lowest first.
        final_gain: (D,) of the final norm.
        unembedding: (V, D) rows of the output head.
    """

    def __init__(
        self,
        config: TransformerConfig,
        embedding: Tensor,
        layers: list[Layer],
        final_gain: Tensor,
        unembedding: Tensor,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = tuple(layers)
        self.final_gain = final_gain
        self.unembedding = unembedding
        self.rotary = rotary_table(config, embedding.dtype).to(embedding.device)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        config: TransformerConfig | Mapping[str, Any] | Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Transformer:
        """Build from the state dict of transformers' Qwen2ForCausalLM or GlmForCausalLM.

        Args:
            state: tensors by transformers' names; each is read once, so it may load lazily.
            config: own config, a transformers config, or a config.json as a mapping.
            dtype: of the weights; that of the embedding where None.
            device: where the weights go.

        Raises:
            ValueError: a tensor is missing or has another shape than the config says.
        """
        shape = config if isinstance(config, TransformerConfig) else TransformerConfig.read(config)
        reader = _StateReader(state, dtype, torch.device(device))
        embedding = reader.take("model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size))
        layers = [_read_layer(reader, shape, i) for i in range(shape.num_hidden_layers)]
        final_gain = reader.take("model.norm.weight", (shape.hidden_size,))
        unembedding = embedding
        if not shape.tie_word_embeddings:
            unembedding = reader.take("lm_head.weight", (shape.vocab_size, shape.hidden_size))
            unembedding = wide(unembedding)
        return cls(shape, embedding, layers, final_gain, unembedding)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under transformers' names and in its order, as `from_state_dict` reads them.

        Views where the order is the same, copies elsewhere.
        """
        state = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.final_gain}
        if not self.config.tie_word_embeddings:
            state["lm_head.weight"] = self.unembedding
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}."
            state |= {prefix + name: part for name, part in _unfused(layer, self.config).items()}
        return state

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and states."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Of weights and states."""
        return self.embedding.device

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache for `capacity` tokens of `batch` sequences.

        Raises:
            ValueError: the model has fewer positions than that.
        """
        shape = self.config
        if capacity > shape.max_position_embeddings:
            raise ValueError(
                f"{capacity} tokens are more than the model's {shape.max_position_embeddings} "
                "positions: shorten the prompt or the reply"
            )
        return KVCache(
            self.num_layers,
            batch,
            shape.num_key_value_heads,
            shape.head_dim,
            capacity,
            self.dtype,
            self.device,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """States before layer 0, (B, T, D), of token ids (B, T)."""
        return F.embedding(ids, self.embedding)

    def run_layers(
        self, lo: int, hi: int, states: Tensor, positions: Tensor, cache: KVCache
    ) -> Tensor:
        """Run layers lo..hi-1 over T rows and append their keys and values to the cache.

        Each row attends to all the rows a layer already holds, and causally to the rows given.

        Args:
            lo: first layer.
            hi: one past the last layer.
            states: (B, T, D), what layer lo-1 (or the embedding) gave; left untouched.
            positions: (T,) or (B, T) rotary positions of the rows, int64.
            cache: of batch size B.

        Returns:
            States after layer hi-1, (B, T, D).
        """
        batch, length, width = states.shape
        rotary = self.rotary[positions].unsqueeze(-2)  # (T, 1, head_dim/2) or (B, T, 1, ...)
        flat = states.reshape(batch * length, width).clone()  # updated in place by each layer
        work = _Workspace.make(self.config, batch, length, flat)
        mask: Tensor | None = None
        slots = cache.extend(lo, hi, length)
        for layer, (slot, keys, values) in zip(self.layers[lo:hi], slots, strict=True):
            if length > 1 and (mask is None or mask.shape[1] != keys.shape[2]):
                mask = self._mask(length, keys.shape[2] - length)
            self._project(layer, flat, rotary, work)
            slot.copy_(work.keys_values)
            mixed = F.scaled_dot_product_attention(
                work.queries.flatten(2, 3), keys, values, attn_mask=mask
            )
            mixed = mixed.reshape(batch, -1, length, keys.shape[3]).transpose(1, 2)
            flat.addmm_(mixed.reshape(batch * length, -1), layer.output)
            normed = layer.mlp_norm(flat)
            torch.mm(normed, layer.gate_up, out=work.gate_up)
            flat.addmm_(F.silu(work.gate).mul_(work.up), layer.down)
        return flat.view(batch, length, width)

    def _project(self, layer: Layer, flat: Tensor, rotary: Tensor, work: _Workspace) -> None:
        """Queries, keys and values of the residual stream (B T, D), rotated, into `work`."""
        normed = layer.attention_norm(flat)
        if layer.qkv_bias is None:
            torch.mm(normed, layer.qkv, out=work.qkv)
        else:
            torch.addmm(layer.qkv_bias, normed, layer.qkv, out=work.qkv)
        if work.pairs is not None:
            work.pairs.mul_(rotary)
        else:  # torch has no 16-bit complex arithmetic
            pairs = torch.view_as_complex(work.rotated.float().unflatten(-1, (-1, 2)))
            work.rotated.copy_(torch.view_as_real(pairs * rotary).flatten(-2))

    def append_keys(
        self, lo: int, hi: int, states: Tensor, positions: Tensor, cache: KVCache
    ) -> None:
        """Give layers lo..hi-1 keys and values made from the same states, (B, T, D).

        Runs neither attention nor MLP: CALM's propagation of an exit state (arXiv 2207.07061).
        """
        batch, length, width = states.shape
        rotary = self.rotary[positions].unsqueeze(-2)
        flat = states.reshape(batch * length, width)
        work = _Workspace.make(self.config, batch, length, flat)
        for layer, (slot, _, _) in zip(
            self.layers[lo:hi], cache.extend(lo, hi, length), strict=True
        ):
            self._project(layer, flat, rotary, work)
            slot.copy_(work.keys_values)

    def _mask(self, length: int, older: int) -> Tensor:
        """Additive mask (G T, older + T): all older rows are seen, the T given ones causally."""
        shape = self.config
        mask = torch.full((length, older + length), float("-inf"), dtype=self.dtype)
        mask = mask.triu_(older + 1).to(self.device)
        return mask.repeat(shape.num_attention_heads // shape.num_key_value_heads, 1)

    def layer_bytes(self, index: int) -> int:
        """Bytes of one block's weights."""
        layer = self.layers[index]
        gains = layer.attention_norm.gain.nbytes + layer.mlp_norm.gain.nbytes
        bias = 0 if layer.qkv_bias is None else layer.qkv_bias.nbytes
        matrices = (layer.qkv, layer.output, layer.gate_up, layer.down)
        return gains + bias + sum(matrix.nbytes for matrix in matrices)

    def projection_bytes(self, index: int) -> int:
        """Bytes of the weights that `append_keys` reads in one block (its queries go unused)."""
        layer = self.layers[index]
        bias = 0 if layer.qkv_bias is None else layer.qkv_bias.nbytes
        return layer.attention_norm.gain.nbytes + layer.qkv.nbytes + bias


def rotary_table(config: TransformerConfig, dtype: torch.dtype) -> Tensor:
    """Unit complex numbers by position and pair, (max positions, head_dim / 2).

    Angles are taken in float32, as transformers takes them: at large positions float64 would
    give other angles than the ones a model was trained with.
    """
    size = config.rotary_dim
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.zeros(config.max_position_embeddings, config.head_dim // 2)
    position = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angle[:, : size // 2] = torch.outer(position, frequency)
    table = torch.polar(torch.ones_like(angle), angle)
    return table.to(torch.complex128) if dtype == torch.float64 else table


@dataclass(frozen=True)
class _Workspace:
    """Buffers that the layers of one call share, with the views they need, made once."""

    qkv: Tensor  # (B T, (H + 2 KV) head_dim)
    queries: Tensor  # (B, KV, H / KV, T, head_dim): those that share a key head lie together
    keys_values: Tensor  # (B, 2 KV, T, head_dim)
    rotated: Tensor  # (B, T, H + KV, head_dim): queries and keys
    pairs: Tensor | None  # the same as complex numbers, None where torch has none
    gate_up: Tensor  # (B T, 2 F)
    gate: Tensor  # (B T, F)
    up: Tensor  # (B T, F)

    @classmethod
    def make(cls, shape: TransformerConfig, batch: int, length: int, like: Tensor) -> _Workspace:
        """Buffers for B x T rows, of the type and on the device of `like`."""
        heads, keys = shape.num_attention_heads, shape.num_key_value_heads
        qkv = like.new_empty(batch * length, (heads + 2 * keys) * shape.head_dim)
        gate_up = like.new_empty(batch * length, 2 * shape.intermediate_size)
        by_head = qkv.view(batch, length, heads + 2 * keys, shape.head_dim)
        rotated = by_head[:, :, : heads + keys]
        complex_type = like.dtype in (torch.float32, torch.float64)
        gate, up = gate_up.chunk(2, dim=-1)
        return cls(
            qkv=qkv,
            queries=by_head[:, :, :heads].unflatten(2, (keys, -1)).permute(0, 2, 3, 1, 4),
            keys_values=by_head[:, :, heads:].transpose(1, 2),
            rotated=rotated,
            pairs=torch.view_as_complex(rotated.unflatten(-1, (-1, 2))) if complex_type else None,
            gate_up=gate_up,
            gate=gate,
            up=up,
        )


@dataclass(frozen=True)
class _StateReader:
    """Takes tensors out of a state dict, checked, converted and placed."""

    state: Mapping[str, Tensor]
    dtype: torch.dtype | None
    device: torch.device

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.state:
            raise ValueError(f"the state dict has no {name}")
        tensor = self.state[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, the config says {shape}")
        return tensor.detach().to(self.device, self.dtype or tensor.dtype)


def _read_layer(reader: _StateReader, shape: TransformerConfig, index: int) -> Layer:
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


def _read_gate_up(reader: _StateReader, shape: TransformerConfig, prefix: str) -> Tensor:
    """Gate and up as one matrix (2 F, D): stored so by GLM, apart by Qwen2."""
    inner, width = shape.intermediate_size, shape.hidden_size
    if shape.family == "glm":
        return reader.take(f"{prefix}mlp.gate_up_proj.weight", (2 * inner, width))
    gate = reader.take(f"{prefix}mlp.gate_proj.weight", (inner, width))
    return torch.cat((gate, reader.take(f"{prefix}mlp.up_proj.weight", (inner, width))))


def _unfused(layer: Layer, shape: TransformerConfig) -> dict[str, Tensor]:
    """One block's weights by transformers' names, the inverse of `_read_layer`."""
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
