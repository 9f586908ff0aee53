"""The encoder block of Whisper (arXiv 2212.04356), with the names of its first publication.

Both large models hear through a stack of these. Knows attention and its mask; the convolutions
in front and what follows differ from model to model and are theirs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention whose keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """States (B, T, D) attend where `seen`, (B or 1, 1, T or 1, T), is true."""

        def by_head(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = self.query(states), self.key(states), self.value(states)
        mixed = F.scaled_dot_product_attention(
            by_head(query), by_head(key), by_head(value), attn_mask=seen
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and a GELU network four times as wide."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """States (B, T, D); `seen` as of `Attention`."""
        states = states + self.attn(self.attn_ln(states), seen)
        return states + self.mlp(self.mlp_ln(states))
