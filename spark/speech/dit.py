"""The transformer that gives a flow's velocity in Step-Audio-2-mini's token2wav.

Attention, a causal convolution and a network, each modulated by the time (DiT, arXiv 2212.09748,
with the convolution of the published code). Blocks take and give back what they remember, so that
a mel can come in pieces: a piece sees all frames before it and all of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TIME_FEATURES, _TIME_SCALE, _LONGEST_PERIOD = 256, 1000.0, 10_000.0


class Memory(NamedTuple):
    """What a block keeps of earlier frames: keys, values (B, H, T, d), two tails (B, D, 2).

    Keys and values of later pieces stand before those of earlier ones, as in the published code:
    attention does not see their order, but `kept` does.
    """

    keys: Tensor
    values: Tensor
    first_tail: Tensor
    second_tail: Tensor

    def kept(self, head: int, tail: int) -> Memory:
        """Without the keys and values between the first `head` rows and the last `tail`.

        With the prompt's length as `head` that leaves as many of the latest frames, and the end of
        the prompt: what the published code remembers, whatever it meant to.
        """
        if self.keys.shape[2] <= head + tail:
            return self
        keys, values = (
            torch.cat((x[:, :, :head], x[:, :, -tail:]), dim=2) for x in (self.keys, self.values)
        )
        return self._replace(keys=keys, values=values)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k = nn.Linear(width, inner), nn.Linear(width, inner)
        self.to_v, self.proj = nn.Linear(width, inner), nn.Linear(inner, width)
        self.q_norm, self.k_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)

    def forward(self, x: Tensor, past: Memory | None) -> tuple[Tensor, Tensor, Tensor]:
        def by_head(states: Tensor) -> Tensor:
            return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = self.q_norm(by_head(self.to_q(x)))
        key, value = self.k_norm(by_head(self.to_k(x))), by_head(self.to_v(x))
        if past is not None:
            key, value = torch.cat((key, past.keys), 2), torch.cat((value, past.values), 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2)), key, value


class _Turned(nn.Module):
    """Swaps time and channels; only holds a place, since files number their layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Convolutions(nn.Module):
    """Two causal convolutions over 3 frames with a norm and Mish between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _Turned(), nn.Conv1d(width, width, 3), _Turned(), nn.LayerNorm(width), nn.Mish(),
            _Turned(), nn.Conv1d(width, width, 3), _Turned(),
        )  # fmt: skip

    def forward(self, x: Tensor, past: Memory | None) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, T, D), and the tails that the next piece needs."""
        fresh = x.new_zeros(x.shape[0], x.shape[2], 2)
        first = past.first_tail if past is not None else fresh
        second = past.second_tail if past is not None else fresh
        x = torch.cat((first, x.transpose(1, 2)), dim=2)
        first = x[:, :, -2:]
        x = self.block[2:6](self.block[1](x))
        x = torch.cat((second, x), dim=2)
        return self.block[6](x).transpose(1, 2), first, x[:, :, -2:]


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads, head_dim)
        self.conv = _Convolutions(width)
        self.mlp = _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))

    def forward(self, x: Tensor, time: Tensor, past: Memory | None) -> tuple[Tensor, Memory]:
        """States (B, T, D) at a time (B, 1, D)."""
        attend, mlp, conv = self.adaLN_modulation(time).chunk(3, dim=-1)
        shift, scale, gate = attend.chunk(3, dim=-1)
        mixed, keys, values = self.attn(_normed(x, shift, scale), past)
        x = x + gate * mixed
        shift, scale, gate = conv.chunk(3, dim=-1)
        mixed, first, second = self.conv(_normed(x, shift, scale), past)
        x = x + gate * mixed
        shift, scale, gate = mlp.chunk(3, dim=-1)
        return x + gate * self.mlp(_normed(x, shift, scale)), Memory(keys, values, first, second)


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, time: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        index = torch.arange(half, device=time.device, dtype=torch.float32)
        scales = torch.exp(-math.log(_LONGEST_PERIOD) * index / half).to(time)
        angles = _TIME_SCALE * time[:, None] * scales
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class _Final(nn.Module):
    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, bins)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(time).chunk(2, dim=-1)
        return self.linear(_normed(x, shift, scale))


class Dit(nn.Module):
    """Velocity of noisy mels.

    Args:
        bins: of the mel.
        width: of the states.
        depth: blocks.
        heads: of each block's attention.
        head_dim: width of a head.
    """

    def __init__(self, bins: int, width: int, depth: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.t_embedder = _Time(width)
        self.in_proj = nn.Linear(4 * bins, width)
        self.blocks = nn.ModuleList(_Block(width, heads, head_dim) for _ in range(depth))
        self.final_layer = _Final(width, bins)

    def forward(
        self, given: Tensor, time: Tensor, past: list[Memory] | None
    ) -> tuple[Tensor, list[Memory]]:
        """Velocity (B, bins, T).

        Args:
            given: noisy mel, code states, speaker, known mel: (B, 4 bins, T).
            time: of the path, (B,).
            past: of each block, from earlier frames at the same time; None at the beginning.
        """
        at = self.t_embedder(time)[:, None]
        x = self.in_proj(given.transpose(1, 2))
        memories = []
        for index, block in enumerate(self.blocks):
            x, memory = block(x, at, past[index] if past else None)
            memories.append(memory)
        return self.final_layer(x, at).transpose(1, 2), memories
