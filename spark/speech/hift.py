"""HiFT, the neural vocoder of both large models: mel to sound.

A harmonic source with the pitch that a small network reads off the mel, filtered by a network that
writes the short-time spectrum (HiFTNet, arXiv 2309.09493; iSTFTNet, arXiv 2203.02395). Names and
numbers as in the published `hift.pt` files. Knows no codes and no files.

Chance (the source's noise and first phases) comes from the caller's generator, so that the same
mel always makes the same sound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import pi, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_N_FFT, _HOP = 16, 4  # of the spectrum that the network writes
_BINS = _N_FFT // 2 + 1
_HARMONICS = 9  # the pitch and eight above it
_SINE, _VOICED_NOISE, _UNVOICED_NOISE = 0.1, 0.003, 0.1 / 3  # amplitudes
_VOICED_HZ = 10.0
_LIMIT = 0.99
_LOUDEST = 100.0  # magnitude of a bin
_KERNELS, _DILATIONS = (3, 7, 11), (1, 3, 5)


@dataclass(frozen=True)
class HiftShape:
    """What differs between the published vocoders.

    Attributes:
        sample_rate: Hz.
        rates: upsampling of each stage.
        kernels: of the stages' transposed convolutions.
        source_kernels: of the residual blocks that the source passes through.
        phase_by_frame: the source's phase is kept a frame and drawn out linearly between frames
            (24 kHz), or summed sample by sample (22.05 kHz).
        bins: of the mel.
        width: channels before the first stage.
        pitch_width: channels of the network that reads the pitch.
    """

    sample_rate: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    source_kernels: tuple[int, ...]
    phase_by_frame: bool
    bins: int = 80
    width: int = 512
    pitch_width: int = 512

    @property
    def hop(self) -> int:
        """Samples a mel frame."""
        return prod(self.rates) * _HOP


class _Snake(nn.Module):
    """x + sin^2(a x) / a with an `a` a channel (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9)


class _ResBlock(nn.Module):
    """Three pairs of convolutions, the first of each dilated."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def convolution(dilation: int) -> nn.Conv1d:
            pad = (kernel - 1) * dilation // 2
            return nn.Conv1d(channels, channels, kernel, padding=pad, dilation=dilation)

        self.convs1 = nn.ModuleList(convolution(dilation) for dilation in _DILATIONS)
        self.convs2 = nn.ModuleList(convolution(1) for _ in _DILATIONS)
        self.activations1 = nn.ModuleList(_Snake(channels) for _ in _DILATIONS)
        self.activations2 = nn.ModuleList(_Snake(channels) for _ in _DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for first, second, one, two in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + second(two(first(one(x))))
        return x


class _Pitch(nn.Module):
    """Reads the pitch off a mel."""

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(5):
            layers += [nn.Conv1d(bins if index == 0 else width, width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Hz (B, T) of a mel (B, bins, T)."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class _Source(nn.Module):
    """Mixes the harmonics into one signal."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(_HARMONICS, 1)

    def forward(self, harmonics: Tensor) -> Tensor:
        """Harmonics (B, n, 9) -> (B, 1, n)."""
        return torch.tanh(self.l_linear(harmonics)).transpose(1, 2)


class Hift(nn.Module):
    """The vocoder; weight normalisation is resolved when the weights are read (`resolved`)."""

    def __init__(self, shape: HiftShape) -> None:
        super().__init__()
        self.shape = shape
        widths = [shape.width >> stage for stage in range(len(shape.rates) + 1)]
        self.m_source = _Source()
        self.f0_predictor = _Pitch(shape.bins, shape.pitch_width)
        self.conv_pre = nn.Conv1d(shape.bins, shape.width, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)
            for (wide, narrow), kernel, rate in zip(
                pairwise(widths), shape.kernels, shape.rates, strict=True
            )
        )
        self.source_downs = nn.ModuleList()
        for stage, width in enumerate(widths[1:]):
            down = prod(shape.rates[stage + 1 :])  # of the source, to this stage's rate
            kernel, pad = (1, 0) if down == 1 else (2 * down, down // 2)
            self.source_downs.append(nn.Conv1d(2 * _BINS, width, kernel, down, padding=pad))
        self.source_resblocks = nn.ModuleList(
            _ResBlock(width, kernel)
            for width, kernel in zip(widths[1:], shape.source_kernels, strict=True)
        )
        self.resblocks = nn.ModuleList(
            _ResBlock(width, kernel) for width in widths[1:] for kernel in _KERNELS
        )
        self.conv_post = nn.Conv1d(widths[-1], 2 * _BINS, 7, padding=3)

    def forward(
        self, mel: Tensor, chance: torch.Generator, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sound of a mel.

        Args:
            mel: (1, bins, T), natural log.
            chance: of the source, on the CPU.
            known: source samples (1, 1, m) of the first m, from an earlier piece.

        Returns:
            Samples (1, T * hop) and the source (1, 1, T * hop).
        """
        source = self.m_source(self._harmonics(self.f0_predictor(mel), chance))
        if known is not None and known.shape[2]:
            source = torch.cat((known, source[:, :, known.shape[2] :]), dim=2)
        return self.filtered(mel, source), source

    def filtered(self, mel: Tensor, source: Tensor) -> Tensor:
        """Samples (1, n) of a mel (1, bins, T) and a source (1, 1, n)."""
        window = torch.hann_window(_N_FFT, device=mel.device, dtype=mel.dtype)
        spectrum = torch.stft(source[:, 0], _N_FFT, _HOP, window=window, return_complex=True)
        heard = torch.cat((spectrum.real, spectrum.imag), dim=1)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # a spectrum has one frame more
            x = x + self.source_resblocks[stage](self.source_downs[stage](heard))
            blocks = self.resblocks[len(_KERNELS) * stage : len(_KERNELS) * (stage + 1)]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        x = self.conv_post(F.leaky_relu(x))
        magnitude, phase = x[:, :_BINS].exp().clamp(max=_LOUDEST), torch.sin(x[:, _BINS:])
        written = torch.polar(magnitude, phase)
        return torch.istft(written, _N_FFT, _HOP, window=window).clamp(-_LIMIT, _LIMIT)

    def _harmonics(self, pitch: Tensor, chance: torch.Generator) -> Tensor:
        """Sines at the pitch (1, T) and its multiples, with noise: (1, T * hop, 9)."""
        hop, device = self.shape.hop, pitch.device
        length = pitch.shape[1] * hop
        phases = torch.rand(_HARMONICS, generator=chance).to(device)
        noise = torch.randn(1, length, _HARMONICS, generator=chance).to(device, pitch.dtype)
        phases[0] = 0.0
        sines = _SINE * torch.sin(self.cycles(pitch, phases) * (2 * pi)).to(pitch)
        voiced = (pitch > _VOICED_HZ).repeat_interleave(hop, dim=1)[..., None]
        level = torch.where(voiced, _VOICED_NOISE, _UNVOICED_NOISE)
        return sines * voiced + level * noise

    def cycles(self, pitch: Tensor, phases: Tensor) -> Tensor:
        """Periods run through since the start, (1, T * hop, 9), in float64 where that can be had.

        Args:
            pitch: Hz (1, T).
            phases: in periods (9,), where the sines begin; the 24 kHz vocoder has none.
        """
        if pitch.device.type == "mps":
            pitch = pitch.cpu()
        multiples = torch.arange(1, _HARMONICS + 1, device=pitch.device)
        steps = (pitch.double()[..., None] * multiples / self.shape.sample_rate) % 1
        if not self.shape.phase_by_frame:
            every = steps.repeat_interleave(self.shape.hop, dim=1)
            return torch.cumsum(every, dim=1) % 1 + phases.to(every)
        by_frame = torch.cumsum(steps, dim=1).transpose(1, 2) * self.shape.hop
        drawn = F.interpolate(by_frame, scale_factor=float(self.shape.hop), mode="linear")
        return drawn.transpose(1, 2)


_NORMED = re.compile(r"(.*)\.(?:weight_g|parametrizations\.weight\.original0)$")


def resolved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state with each normalised weight as one tensor: g v / |v|.

    Both of torch's spellings are read: `weight_g` and `weight_v`, or `parametrizations.weight`'s
    `original0` and `original1`. A gain without its direction stays, for a strict loader to name.
    """
    plain = dict(state)
    for name, gain in state.items():
        if not (match := _NORMED.match(name)):
            continue
        base = match[1]
        other = "weight_v" if name.endswith("weight_g") else "parametrizations.weight.original1"
        if (direction := state.get(f"{base}.{other}")) is None:
            continue
        norm = direction.float().flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
        plain[f"{base}.weight"] = gain.float() * direction.float() / norm
        del plain[name], plain[f"{base}.{other}"]
    return plain
