"""Conformer layers without convolutions, attending by relative position; both flows begin so.

Names as in the published `flow.pt` files (ESPnet's, after arXiv 1901.02860). A layer takes and
gives back its keys and values, so that a sequence can come in pieces. Knows no codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Past = tuple[Tensor, Tensor] | None  # keys and values (B, H, T, d) of what came before


class InputLayer(nn.Module):
    """Linear, norm, and the square root of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """States (B, T, D) -> (B, T, D)."""
        return self.out(x) * math.sqrt(x.shape[-1])


class _RelativeAttention(nn.Module):
    """Self-attention whose scores also depend on how far a key is from the query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, past: Past, seen: Tensor | None) -> tuple[Tensor, Past]:
        def by_head(states: Tensor) -> Tensor:
            return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = (
            by_head(layer(x)) for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        total, new = key.shape[2], x.shape[1]
        places = by_head(self.linear_pos(_distances(total, x)[None]))
        far = (query + self.pos_bias_v[:, None]) @ places.transpose(2, 3)  # (B, H, T, 2 total - 1)
        here = torch.arange(total, device=x.device)
        rows = total - 1 - (here[total - new :, None] - here)  # of the distance query - key
        far = far.gather(3, rows.expand(*far.shape[:3], total))
        near = (query + self.pos_bias_u[:, None]) @ key.transpose(2, 3)
        scores = (near + far) / math.sqrt(key.shape[3])
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        mixed = scores.softmax(dim=-1) @ value
        return self.linear_out(mixed.transpose(1, 2).flatten(2)), (key, value)


def _distances(size: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances size - 1 down to 1 - size, (2 size - 1, D)."""
    width = like.shape[-1]
    distance = torch.arange(size - 1, -size, -1, device=like.device, dtype=torch.float32)
    scale = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles = distance[:, None] * torch.exp(scale * (-math.log(10_000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(like.dtype)


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class ConformerLayer(nn.Module):
    """Pre-norm attention and feed-forward.

    Args:
        width: of the states.
        heads: of the attention.
        inner: width of the feed-forward network.
        eps: of the norms.
    """

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.self_attn = _RelativeAttention(width, heads)
        self.feed_forward = _FeedForward(width, inner)
        self.norm_mha, self.norm_ff = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(
        self, x: Tensor, past: Past = None, seen: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """States (B, T, D), after those of `past`; keys are seen where `seen` (T, T') is true."""
        mixed, past = self.self_attn(self.norm_mha(x), past, seen)
        x = x + mixed
        return x + self.feed_forward(self.norm_ff(x)), past
