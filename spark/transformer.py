"""One decoder-only transformer for Qwen2 and GLM shapes, on plain tensors.

Runs any range of layers over any rows, so that a caller can stop at a layer and go on later.
Knows nothing of policies, modalities or sampling. Pre-norm blocks: RMSNorm, grouped-query
attention with rotary positions, RMSNorm, SwiGLU. How weights are read and laid out is the
business of `weights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spark.cache import KVCache
from spark.quantised import Int8Layer
from spark.weights import Layer, StateReader, TransformerConfig, read_layer, unfused, wide

if TYPE_CHECKING:
    from spark.compiled.step import CompiledStep
    from spark.graphs import Graphs


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
        layers: Sequence[Layer | Int8Layer],
        final_gain: Tensor,
        unembedding: Tensor,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = tuple(layers)
        self.final_gain = final_gain
        self.unembedding = unembedding
        self.rotary = rotary_table(config, embedding.dtype).to(embedding.device)
        self.compiled: CompiledStep | None = None  # of `spark.compiled.prepare`
        self.graphs: Graphs | None = None  # of `spark.graphs.prepare`

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        config: TransformerConfig | Mapping[str, Any] | Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        bits: int = 16,
    ) -> Transformer:
        """Build from the state dict of transformers' Qwen2ForCausalLM or GlmForCausalLM.

        Args:
            state: tensors by transformers' names; each is read once, so it may load lazily.
            config: own config, a transformers config, or a config.json as a mapping.
            dtype: of the weights; where None, each tensor keeps its own.
            device: where the weights go.
            bits: 8 to keep the blocks' matrices as 8-bit integers.

        Raises:
            ValueError: a tensor is missing or has another shape than the config says.
        """
        shape = config if isinstance(config, TransformerConfig) else TransformerConfig.read(config)
        reader = StateReader(state, dtype, torch.device(device))
        embedding = reader.take("model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size))
        layers: list[Layer | Int8Layer] = []
        for index in range(shape.num_hidden_layers):
            layer = read_layer(reader, shape, index)
            layers.append(Int8Layer.of(layer) if bits == 8 else layer)
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
            prefix, parts = f"model.layers.{index}.", unfused(layer.dense(), self.config)
            state |= {prefix + name: part for name, part in parts.items()}
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

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        ends = self.embedding.nbytes + self.final_gain.nbytes
        if not self.config.tie_word_embeddings:
            ends += self.unembedding.nbytes
        return ends + sum(self.layer_bytes(index) for index in range(self.num_layers))

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

    def embed_one(self, token: int) -> Tensor:
        """State before layer 0, (1, 1, D), of one id: a view, and no id has to reach the device."""
        return self.embedding[None, token : token + 1]

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
        flat = states.reshape(batch * length, width).clone()  # updated in place by each layer
        work = _Workspace.make(self.config, batch, length, flat)
        part = _Part(cache.extend(lo, hi, length), slice(0, length))
        self._run(self.layers[lo:hi], flat, positions, work, [part])
        return flat.view(batch, length, width)

    def run_ragged(
        self,
        lo: int,
        hi: int,
        states: Tensor,
        positions: Tensor,
        caches: Sequence[KVCache],
        counts: Sequence[int],
    ) -> Tensor:
        """Run layers lo..hi-1 over rows of several sequences, reading the weights once.

        As `run_layers` on each sequence alone, to rounding; each may bring another number of
        rows, and have another number in its cache. Attention is computed a sequence at a time.

        Args:
            lo: first layer.
            hi: one past the last layer.
            states: (T, D), those of the first sequence first; left untouched.
            positions: (T,) rotary positions of the rows, int64.
            caches: of batch size 1, one a sequence.
            counts: rows of each sequence, T in all.

        Returns:
            States after layer hi-1, (T, D).
        """
        flat = states.clone()
        work = _Workspace.make(self.config, 1, len(flat), flat)
        parts, start = [], 0
        for cache, count in zip(caches, counts, strict=True):
            parts.append(_Part(cache.extend(lo, hi, count), slice(start, start + count)))
            start += count
        self._run(self.layers[lo:hi], flat, positions, work, parts)
        return flat

    def run_fixed(
        self, lo: int, hi: int, states: Tensor, positions: Tensor, slots: Tensor
    ) -> Tensor:
        """As `run_layers` on one sequence whose layers hold one row a position, in fixed shapes.

        Nothing here hangs on how many rows are held: keys and values go to the slots of their
        positions, and the mask hides slots that are later than a row. So the call can be recorded
        once and run again at other positions (`spark.graphs`).

        Args:
            lo: first layer.
            hi: one past the last layer.
            states: (1, T, D); left untouched.
            positions: (T,) of the rows, int64, each less than S.
            slots: (layers, 1, 2 KV, S, head_dim), keys first, written to; finite everywhere, since
                what the mask hides is multiplied by 0.

        Returns:
            States after layer hi-1, (1, T, D).
        """
        flat = states[0].clone()
        work = _Workspace.make(self.config, 1, len(flat), flat)
        hidden = torch.arange(slots.shape[3], device=self.device) > positions[:, None]
        mask = torch.zeros_like(hidden, dtype=self.dtype).masked_fill_(hidden, float("-inf"))
        places = _Places(slots[lo:hi], positions, mask.repeat(self._sharing, 1))
        self._run(self.layers[lo:hi], flat, positions, work, [places])
        return flat[None]

    @property
    def _sharing(self) -> int:
        """Query heads that share a key head."""
        return self.config.num_attention_heads // self.config.num_key_value_heads

    def _run(
        self,
        layers: Sequence[Layer | Int8Layer],
        flat: Tensor,
        positions: Tensor,
        work: _Workspace,
        parts: Sequence[_Part | _Places],
    ) -> None:
        """Run layers over the residual stream (B T, D), in place."""
        rotary = self.rotary[positions].unsqueeze(-2)  # (T, 1, head_dim/2) or (B, T, 1, ...)
        for index, kept in enumerate(layers):
            layer = kept.dense()
            self._project(layer, flat, rotary, work)
            mixed = [self._attend(part, index, work) for part in parts]
            # (B T, H head_dim)
            heads = (mixed[0] if len(parts) == 1 else torch.cat(mixed, dim=1)).flatten(0, 1)
            flat.addmm_(heads, layer.output)
            normed = layer.mlp_norm(flat)
            torch.mm(normed, layer.gate_up, out=work.gate_up)
            flat.addmm_(F.silu(work.gate).mul_(work.up), layer.down)

    def _attend(self, part: _Part | _Places, index: int, work: _Workspace) -> Tensor:
        """What the rows of one part gather from their cache, (B, T, H head_dim)."""
        length, queries, fresh = part.length, work.queries, work.keys_values
        if length != fresh.shape[2]:
            queries, fresh = queries[..., part.rows, :], fresh[:, :, part.rows]
        keys, values = part.add(index, fresh)
        seen = keys.shape[2]
        if length > 1 and (part.mask is None or part.mask.shape[1] != seen):
            part.mask = self._mask(length, seen - length)
        mixed = F.scaled_dot_product_attention(
            queries.flatten(2, 3), keys, values, attn_mask=part.mask
        )
        mixed = mixed.reshape(len(keys), -1, length, keys.shape[3]).transpose(1, 2)
        return mixed.flatten(2)

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
            self._project(layer.dense(), flat, rotary, work)
            slot.copy_(work.keys_values)

    def _mask(self, length: int, older: int) -> Tensor:
        """Additive mask (G T, older + T): all older rows are seen, the T given ones causally."""
        mask = torch.full((length, older + length), float("-inf"), dtype=self.dtype)
        return mask.triu_(older + 1).to(self.device).repeat(self._sharing, 1)

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


@dataclass
class _Part:
    """Rows that share a cache, among those of one call.

    Attributes:
        slots: what `KVCache.extend` gave for them, a layer each.
        rows: which of the call's T rows they are.
        mask: of the layer last run; layers that hold equally many rows share it.
    """

    slots: Sequence[tuple[Tensor, Tensor, Tensor]]
    rows: slice
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of the rows."""
        return self.rows.stop - self.rows.start

    def add(self, index: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; all keys and all values of that layer."""
        slot, keys, values = self.slots[index]
        slot.copy_(fresh)
        return keys, values


@dataclass
class _Places:
    """Rows of one sequence that go to the slots of their positions.

    Attributes:
        slots: (layers, 1, 2 KV, S, head_dim), of the layers run.
        positions: (T,) of the rows.
        mask: additive, (G T, S).
    """

    slots: Tensor
    positions: Tensor
    mask: Tensor | None

    @property
    def rows(self) -> slice:
        """All rows of the call."""
        return slice(0, self.length)

    @property
    def length(self) -> int:
        """Number of the rows."""
        return len(self.positions)

    def add(self, index: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; all slots of that layer, keys and values."""
        held = self.slots[index].index_copy_(2, self.positions, fresh)
        keys, values = held.chunk(2, dim=1)
        return keys, values


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
