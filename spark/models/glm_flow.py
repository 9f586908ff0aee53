"""Speech codes to mel in GLM-4-Voice's decoder: names and numbers of its `flow.pt`.

A conformer that sees the past and its own block of ten codes, stretched to the mel's rate, then a
flow (`spark.speech.unet`). One voice. Knows no waveform and no streaming: it is told what of the
mel is already known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spark.speech.conformer import ConformerLayer, InputLayer
from spark.speech.flow import noise_table, solve
from spark.speech.unet import UNet

CODE_RATE, SAMPLE_RATE, HOP = 12.5, 22_050, 256
_SPEAKER = 192
_MOST_FRAMES = 30_000  # 5.8 minutes


@dataclass(frozen=True)
class GlmFlowShape:
    """Numbers of the published `config.yaml`."""

    codes: int = 16384
    width: int = 512
    heads: int = 8
    inner: int = 2048
    layers: int = 6
    block: int = 10
    bins: int = 80
    channels: int = 256
    blocks: int = 4
    middle: int = 12
    decoder_heads: int = 8
    head_dim: int = 64


def frames_of(codes: int) -> int:
    """Mel frames that so many codes make."""
    return int(codes / CODE_RATE * SAMPLE_RATE / HOP)


class _Encoder(nn.Module):
    def __init__(self, shape: GlmFlowShape) -> None:
        super().__init__()
        self.block = shape.block
        self.embed = InputLayer(shape.width)
        self.encoders = nn.ModuleList(
            ConformerLayer(shape.width, shape.heads, shape.inner, eps=1e-5)
            for _ in range(shape.layers)
        )
        self.after_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded codes (1, T, D) -> (1, T, D)."""
        x = self.embed(x)
        blocks = torch.arange(x.shape[1], device=x.device) // self.block
        seen = blocks <= blocks[:, None]
        for layer in self.encoders:
            x, _ = layer(x, seen=seen)
        return self.after_norm(x)


class _Stretch(nn.Module):
    """States at the mel's rate, each the nearest code's, smoothed."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv1d(bins, bins, 3, padding=1), nn.GroupNorm(1, bins), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(bins, bins, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(1, T, bins) -> (1, bins, frames)."""
        return self.model(F.interpolate(x.transpose(1, 2), size=frames, mode="nearest"))


class _Decoder(nn.Module):
    def __init__(self, shape: GlmFlowShape) -> None:
        super().__init__()
        self.estimator = UNet(
            shape.bins, shape.channels, shape.blocks, shape.middle, shape.decoder_heads,
            shape.head_dim,
        )  # fmt: skip


class GlmFlow(nn.Module):
    """Codes to mel, under the names of `flow.pt`."""

    noise: Tensor  # (80, 30000)

    def __init__(self, shape: GlmFlowShape = GlmFlowShape()) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(shape.codes, shape.width)
        self.spk_embed_affine_layer = nn.Linear(_SPEAKER, shape.bins)
        self.encoder = _Encoder(shape)
        self.encoder_proj = nn.Linear(shape.width, shape.bins)
        self.length_regulator = _Stretch(shape.bins)
        self.decoder = _Decoder(shape)
        noise = noise_table(_MOST_FRAMES, shape.bins)
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, codes: list[int], known: Tensor | None = None) -> Tensor:
        """The mel (1, 80, T) after what is known of it.

        Args:
            codes: all so far.
            known: mel (1, 80, K) of the beginning, from earlier calls.
        """
        frames = frames_of(len(codes))
        ids = torch.tensor([codes], device=self.noise.device)
        states = self.encoder_proj(self.encoder(self.input_embedding(ids)))
        mu = self.length_regulator(states, frames)  # (1, 80, T)
        # The published voice is 192 zeros, so that only the bias of the projection is left.
        speaker = self.spk_embed_affine_layer.bias[:, None].expand(-1, frames)
        told = mu.new_zeros(2, 3 * mu.shape[1], frames)  # the second row stays without
        told[0] = torch.cat((mu[0], speaker, torch.zeros_like(mu[0])))
        begin = 0 if known is None else known.shape[2]
        if known is not None:
            told[0, -known.shape[1] :, :begin] = known[0]

        def velocity(_: int, x: Tensor, time: Tensor) -> Tensor:
            return self.decoder.estimator(torch.cat((x, told), dim=1), time)

        return solve(velocity, self.noise[None, :, :frames])[:, :, begin:]
