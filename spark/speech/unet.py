"""The network that gives a flow's velocity in GLM-4-Voice's decoder.

A one-dimensional U-Net of residual blocks and transformer blocks, as in CosyVoice (arXiv
2407.05407) after Matcha-TTS (arXiv 2309.03199), with their names of weights. Every frame sees
every other. Knows no codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TIME_SCALE, _LONGEST_PERIOD = 1000.0, 10_000.0
_GROUPS = 8


class _Smooth(nn.Module):
    def __init__(self, wide: int, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(wide, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Residual(nn.Module):
    """Two convolutions with the time between, beside a 1 x 1 convolution."""

    def __init__(self, wide: int, width: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, width))
        self.block1, self.block2 = _Smooth(wide, width), _Smooth(width, width)
        self.res_conv = nn.Conv1d(wide, width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.block2(self.block1(x) + self.mlp(time)[..., None]) + self.res_conv(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class _Gelu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()  # the place between is a dropout's in training
        self.net = nn.Sequential(
            _Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1, self.ff = _Attention(width, heads, head_dim), _FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class _Resampled(nn.Module):
    """Half or double the rate."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Time(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.linear_1, self.linear_2 = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        half = self.features // 2
        index = torch.arange(half, device=time.device, dtype=torch.float32)
        scales = torch.exp(-math.log(_LONGEST_PERIOD) / (half - 1) * index).to(time)
        angles = _TIME_SCALE * time[:, None] * scales
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return self.linear_2(F.silu(self.linear_1(waves)))


class UNet(nn.Module):
    """Velocity of noisy mels.

    Args:
        bins: of the mel.
        width: channels at both rates.
        blocks: transformer blocks after each residual block.
        middle: residual blocks at the half rate.
        heads: of each block's attention.
        head_dim: width of a head.
    """

    def __init__(
        self, bins: int, width: int, blocks: int, middle: int, heads: int, head_dim: int
    ) -> None:
        super().__init__()
        time = 4 * width

        def stage(wide: int, *last: nn.Module) -> nn.ModuleList:
            inside = (_Transformer(width, heads, head_dim) for _ in range(blocks))
            return nn.ModuleList([_Residual(wide, width, time), nn.ModuleList(inside), *last])

        def same() -> nn.Conv1d:
            return nn.Conv1d(width, width, 3, padding=1)

        halve = _Resampled(nn.Conv1d(width, width, 3, 2, 1))
        double = _Resampled(nn.ConvTranspose1d(width, width, 4, 2, 1))
        self.time_mlp = _Time(4 * bins, time)
        self.down_blocks = nn.ModuleList([stage(4 * bins, halve), stage(width, same())])
        self.mid_blocks = nn.ModuleList(stage(width) for _ in range(middle))
        self.up_blocks = nn.ModuleList([stage(2 * width, double), stage(2 * width, same())])
        self.final_block = _Smooth(width, width)
        self.final_proj = nn.Conv1d(width, bins, 1)

    def forward(self, given: Tensor, time: Tensor) -> Tensor:
        """Velocity (B, bins, T).

        Args:
            given: noisy mel, code states, speaker, known mel: (B, 4 bins, T).
            time: of the path, (B,).
        """
        at, x, skips = self.time_mlp(time), given, []
        for down in self.down_blocks:
            assert isinstance(down, nn.ModuleList)
            x = _through(down, x, at)
            skips.append(x)
            x = down[2](x)
        for middle in self.mid_blocks:
            x = _through(middle, x, at)
        for up in self.up_blocks:
            assert isinstance(up, nn.ModuleList)
            skip = skips.pop()
            x = torch.cat((x[:, :, : skip.shape[2]], skip), dim=1)
            x = up[2](_through(up, x, at))
        return self.final_proj(self.final_block(x))


def _through(stage: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    """A residual block and its transformer blocks on (B, C, T)."""
    residual, blocks, *_ = stage.children()
    states = residual(x, time).transpose(1, 2)
    for block in blocks.children():
        states = block(states)
    return states.transpose(1, 2)
