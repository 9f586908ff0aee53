"""A transformer's weights laid out for the compiled step, and the calls that run it.

Copies the weights: in bfloat16 where every value of them is one anyway, which a model that was
saved in that type still has after it was widened to float32. Knows tensors; `step.c` computes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spark.cache import KVCache, Leg, Rows
from spark.compiled.draw import BLOCK
from spark.compiled.library import kept, library
from spark.transformer import Transformer
from spark.weights import Layer, TransformerConfig

MOST_ROWS = 9  # of one call: with most that wait, and one more; beyond, torch's products gain on it
TILE, _LANES = 32, 16  # as in step.c, and the most in step.h
_MOST_BYTES = 1 << 28  # of weights that are copied; larger models wait for memory, not for calls
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class ShapeStruct(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("width", "inner", "heads", "kv_heads", "head_dim")),
        *((name, _INT) for name in ("narrow", "threads", "parts")), ("eps", ctypes.c_float),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, _POINTER)
        for name in ("qkv", "output", "gate_up", "down", "bias", "attention_gain", "mlp_gain")
    ]


class StepStruct(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("low", "high", "rows", "capacity", "lending")),
        *((name, _POINTER) for name in ("lengths", "states", "rotary", "cache", "scratch")),
    ]


def unsuited(body: Transformer) -> str | None:
    """Why a transformer cannot be run so, None where it can."""
    shape = body.config
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    tiled = (shape.hidden_size, shape.intermediate_size, heads * shape.head_dim)
    if body.device.type != "cpu" or body.dtype != torch.float32:
        return "it is for float32 on a CPU"
    if not all(isinstance(layer, Layer) for layer in body.layers):
        return "its weights are not kept as they are multiplied"
    if body.nbytes > _MOST_BYTES:
        return f"it copies the weights, and these take more than {_MOST_BYTES >> 20} MiB"
    if any(size % TILE for size in tiled) or shape.head_dim % _LANES:
        return f"its sizes are no multiples of {TILE}"
    return None


def prepare(body: Transformer, wait: bool = False) -> None:
    """Give a transformer its compiled step, if it is made for it and can be had.

    Args:
        body: whose `compiled` is set.
        wait: for the compiler, a few seconds the first time; else it works in the background and
            replies that begin before are decoded without.
    """
    if body.compiled is not None or unsuited(body) is not None:
        return
    if wait or kept():
        _equip(body)
    else:
        threading.Thread(target=_equip, args=(body,), daemon=True).start()


def _equip(body: Transformer) -> None:
    built = library()
    if built is not None:
        body.compiled = CompiledStep(body, built)


class Store:
    """Tensors that structures point to, kept as long as this is."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def tiled(self, matrix: Tensor, narrow: bool) -> int:
        """Address of a matrix (out, in) laid out in tiles."""
        outputs, inputs = matrix.shape
        tiles = matrix.reshape(outputs // TILE, TILE, inputs).transpose(1, 2)
        if narrow:  # outputs of both halves of a tile take turns, so that they share words
            tiles = tiles.bfloat16().unflatten(2, (2, -1)).transpose(2, 3).flatten(2)
        held = self.held(tiles)
        assert held is not None
        return held

    def held(self, tensor: Tensor | None) -> int | None:
        """Address of a tensor."""
        if tensor is None:
            return None
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


@dataclass(slots=True)
class Call:
    """What the library is given.

    Attributes:
        shape: of the model, for the threads there are; a reference.
        step: what is to be run.
        states: (1, T, D), which it updates.
        held: what `step` points to besides.
    """

    shape: object
    step: StepStruct
    states: Tensor
    held: tuple[object, ...]


class CompiledStep:
    """Runs layers of one transformer over a few rows of one sequence.

    `layer_bytes` are those of weights that it reads of each block.

    Args:
        body: one that is not `unsuited`.
        built: the library.
    """

    def __init__(self, body: Transformer, built: ctypes.CDLL) -> None:
        built.spark_scratch.restype = ctypes.c_int64
        self.library, self._store = built, Store()
        shape, layers = body.config, [layer.dense() for layer in body.layers]
        narrow = all(is_narrow(matrix) for w in layers for matrix in _matrices(w))
        split = _Split.of(shape, parts_of(shape))
        self._shape = ShapeStruct(
            shape.hidden_size, shape.intermediate_size, shape.num_attention_heads,
            shape.num_key_value_heads, shape.head_dim, narrow, 1, split.parts, shape.rms_norm_eps,
        )  # fmt: skip
        self._sized: dict[tuple[int, int, int], tuple[ShapeStruct, int]] = {}
        self.layers = (_Layer * len(layers))(
            *(
                _Layer(
                    *(self._store.tiled(m, narrow) for m in split.matrices(w)),
                    self._store.held(split.bias(w)),
                    self._store.held(w.attention_norm.gain),
                    self._store.held(w.mlp_norm.gain),
                )
                for w in layers
            )
        )
        self.layer_bytes = tuple(
            body.layer_bytes(i) - (sum(m.nbytes for m in _matrices(w)) // 2 if narrow else 0)
            for i, w in enumerate(layers)
        )
        self._rotary = torch.view_as_real(body.rotary).contiguous()
        self._rotary_data, self._turn_bytes = self._rotary.data_ptr(), self._rotary[0].nbytes
        self._lengths_type = ctypes.c_int64 * len(layers)

    @property
    def weights(self) -> str:
        """The type in which the blocks' matrices are kept."""
        return "bfloat16" if self._shape.narrow else "float32"

    def run_layers(self, lo: int, hi: int, states: Tensor, start: int, cache: KVCache) -> Tensor:
        """As `Transformer.run_layers`, at most `MOST_ROWS` rows of one sequence.

        Args:
            lo: first layer.
            hi: one past the last layer.
            states: (1, T, D), left untouched.
            start: position of the first row; the others follow.
            cache: of batch size 1.

        Returns:
            States after layer hi-1, (1, T, D); each row the same to the bit, however many others
            come with it and however many threads torch has.

        Raises:
            ValueError: the cache is full.
        """
        made = self.call((Leg(lo, hi, states.shape[1]),), Rows(states, start), cache)
        self.library.spark_step(made.shape, self.layers, ctypes.byref(made.step))
        return made.states

    def call(
        self, legs: Sequence[Leg], rows: Rows, cache: KVCache, columns: int | None = None
    ) -> Call:
        """What the library is to be given for a climb, whose rows the cache counts from now on.

        Args:
            legs: the way up; `Call.step` has the layers of the first.
            rows: at most `MOST_ROWS`, copied.
            cache: of batch size 1.
            columns: of logits that are drawn from then, None where none are.

        Raises:
            ValueError: the cache is full.
        """
        states = rows.states.clone(memory_format=torch.contiguous_format)
        lengths = self.lengths(cache)
        for leg in legs:
            buffer = cache.reserve(leg.low, leg.high, leg.count)
        made = self.told(Rows(states, rows.start), legs[-1].count, buffer, lengths, columns)
        made.step.low, made.step.high = legs[0].low, legs[0].high
        return made

    def lengths(self, cache: KVCache) -> ctypes.Array[ctypes.c_int64]:
        """Rows that each layer holds, as the library takes them."""
        return self._lengths_type(*cache.lengths)

    def told(
        self,
        rows: Rows,
        most: int,
        buffer: Tensor,
        lengths: ctypes.Array[ctypes.c_int64],
        columns: int | None,
    ) -> Call:
        """What the library is to be given for rows that it updates.

        Args:
            rows: contiguous.
            most: of them that any layer is run over at once.
            buffer: of the cache.
            lengths: rows that its layers hold.
            columns: of logits that are drawn from then, None where none are.
        """
        capacity = buffer.shape[-2]
        shape, size = self._for(torch.get_num_threads(), most, capacity)
        if columns is not None:  # states for all threads and for each, and what stretch.c says
            size += (1 + shape.threads) * shape.width + 3 * columns + BLOCK
        scratch = torch.empty(size, dtype=torch.float32)  # whatever the process's default
        step = StepStruct(
            0, 0, most, capacity, 0, ctypes.addressof(lengths), rows.states.data_ptr(),
            self._rotary_data + rows.start * self._turn_bytes, buffer.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        return Call(ctypes.byref(shape), step, rows.states, (lengths, scratch))

    def _for(self, threads: int, rows: int, capacity: int) -> tuple[ShapeStruct, int]:
        """The shape for so many threads, and the floats of scratch that such a step takes."""
        key = threads, rows, capacity
        if key not in self._sized:
            shape = ShapeStruct.from_buffer_copy(self._shape)
            shape.threads = threads
            size = self.library.spark_scratch(ctypes.byref(shape), rows, capacity)
            self._sized[key] = shape, size
        return self._sized[key]


def parts_of(shape: TransformerConfig) -> int:
    """Parts that layers fall into, each with its heads and its share of the feed-forward.

    Two, where that leaves whole key heads and whole tiles: threads then need each other twice a
    layer instead of five times.
    """
    groups, heads = shape.num_key_value_heads, shape.num_attention_heads
    sizes = (heads * shape.head_dim, groups * shape.head_dim, shape.intermediate_size)
    return 1 if groups % 2 or any(size % (2 * TILE) for size in sizes) else 2


@dataclass(frozen=True)
class _Split:
    """How matrices are split into parts, which follow each other.

    Attributes:
        parts: how many.
        qkv: the order of its outputs.
        gate_up: the order of its outputs.
    """

    parts: int
    qkv: Tensor
    gate_up: Tensor

    @classmethod
    def of(cls, shape: TransformerConfig, parts: int) -> _Split:
        """That of a model."""
        heads, groups = shape.num_attention_heads, shape.num_key_value_heads
        return cls(
            parts,
            _by_part([count * shape.head_dim for count in (heads, groups, groups)], parts),
            _by_part([shape.intermediate_size] * 2, parts),
        )

    def matrices(self, layer: Layer) -> tuple[Tensor, ...]:
        """Those of a block, (out, in), in the structure's order."""
        qkv, output, gate_up, down = (matrix.t() for matrix in _matrices(layer))
        return qkv[self.qkv], self._inputs(output), gate_up[self.gate_up], self._inputs(down)

    def bias(self, layer: Layer) -> Tensor | None:
        """Of queries, keys and values."""
        return None if layer.qkv_bias is None else layer.qkv_bias[self.qkv]

    def _inputs(self, matrix: Tensor) -> Tensor:
        return torch.cat(matrix.chunk(self.parts, dim=1))


def _by_part(sizes: Sequence[int], parts: int) -> Tensor:
    """Order of outputs that come in blocks of so many, the first share of each block first."""
    blocks = torch.arange(sum(sizes)).split(list(sizes))
    shares = [block.chunk(parts) for block in blocks]
    return torch.cat([share[part] for part in range(parts) for share in shares])


def _matrices(layer: Layer) -> tuple[Tensor, ...]:
    """Those of a block, in the structure's order."""
    return layer.qkv, layer.output, layer.gate_up, layer.down


def is_narrow(matrix: Tensor) -> bool:
    """Whether bfloat16 holds every value as it is."""
    return bool((matrix.bfloat16().float() == matrix).all())
