"""Source-filter synthesis: pulses and noise, each through a filter that changes every 10 ms.

Frame j of (f0, pulse filter, noise filter) shapes the 512 samples that end with its hop, so the
output of frame j is final up to 352 samples before the end of its hop (`DELAY`). Everything runs
forward in time from a small state, hence a stream and a whole clip can share the code.
Knows nothing of codes or networks. Plain torch; differentiable in the filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP = 160  # 10 ms
N_FFT = 512
N_BINS = N_FFT // 2 + 1
DELAY = N_FFT - HOP
_NOISE_LENGTH = 1 << 16  # 4 s: long enough that its repetition is not heard


def minimum_phase(log_magnitude: Tensor) -> Tensor:
    """Complex spectrum (..., N_BINS) of the minimum-phase filter of that log magnitude.

    Folding the real cepstrum (Oppenheim & Schafer, "Discrete-Time Signal Processing", ch. 13).
    """
    cepstrum = torch.fft.irfft(log_magnitude, n=N_FFT)
    fold = torch.zeros(N_FFT, dtype=log_magnitude.dtype, device=log_magnitude.device)
    fold[0] = fold[N_FFT // 2] = 1.0
    fold[1 : N_FFT // 2] = 2.0
    return torch.exp(torch.fft.rfft(cepstrum * fold))


def pulse_train(f0: Tensor, cycles: Tensor) -> Tensor:
    """Band-limited pulses of unit power at `cycles` (period count so far) with pitch `f0` (Hz).

    The sum of all K = floor(4 harmonics below Nyquist) cosines in closed form (Dirichlet kernel),
    scaled by sqrt(2 / K). Both inputs (B, samples) in float64; output in float32.
    """
    harmonics = torch.floor(0.5 * SAMPLE_RATE / f0)
    angle = math.pi * torch.remainder(cycles, 1.0)
    below = torch.sin(angle)
    near = below.abs() < 1e-7
    kernel = torch.sin((2 * harmonics + 1) * angle) / torch.where(
        near, torch.ones_like(below), below
    )
    total = 0.5 * (torch.where(near, 2 * harmonics + 1, kernel) - 1.0)
    return (total * torch.sqrt(2.0 / harmonics)).float()


def fixed_noise() -> Tensor:
    """White noise (_NOISE_LENGTH,) that every synthesis shares, so equal codes sound equal."""
    return torch.randn(_NOISE_LENGTH, generator=torch.Generator().manual_seed(0))


@dataclass
class SourceState:
    """What one frame hands to the next: all (B, ...) tensors, and the sample count so far."""

    f0: Tensor  # (B, 1) pitch at the end of the last hop, Hz
    cycles: Tensor  # (B, 1) float64
    pulses: Tensor  # (B, DELAY) the last excitation samples
    noise: Tensor  # (B, DELAY)
    overlap: Tensor  # (B, DELAY) output still waiting for later frames
    samples: int  # how many samples of noise have been used


def initial_state(f0: Tensor, noise_offset: int = 0) -> SourceState:
    """Silence before the first frame; `f0` (B, 1) in Hz."""
    silence = torch.zeros(f0.shape[0], DELAY, device=f0.device)
    return SourceState(
        f0, torch.zeros_like(f0, dtype=torch.float64), silence, silence, silence, noise_offset
    )


class SourceFilter(torch.nn.Module):
    """Turns frames of (f0, log pulse filter, log noise filter) into samples."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(N_FFT, dtype=torch.float64).sqrt()
        gain = torch.zeros(HOP, dtype=torch.float64)
        for start in range(0, N_FFT, HOP):  # what overlapping squared windows add up to
            part = window[start : start + HOP] ** 2
            gain[: len(part)] += part
        self.window: Tensor
        self.gain: Tensor
        self.noise: Tensor
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("gain", gain.float(), persistent=False)
        self.register_buffer("noise", fixed_noise(), persistent=False)

    def _excitation(self, f0: Tensor, state: SourceState) -> tuple[Tensor, Tensor, Tensor]:
        """Pulses and noise (B, frames * HOP), and the period count at the end (B, 1)."""
        before = torch.cat([state.f0, f0[:, :-1]], dim=1)  # (B, frames)
        step = torch.arange(1, HOP + 1, dtype=torch.float64, device=f0.device) / HOP
        pitch = before[:, :, None] + (f0 - before)[:, :, None] * step  # (B, frames, HOP)
        pitch = pitch.reshape(f0.shape[0], -1)
        cycles = state.cycles + torch.cumsum(pitch / SAMPLE_RATE, dim=1)
        index = (state.samples + torch.arange(pitch.shape[1], device=f0.device)) % _NOISE_LENGTH
        noise = self.noise[index].expand(f0.shape[0], -1)
        return pulse_train(pitch, cycles), noise, torch.remainder(cycles[:, -1:], 1.0)

    def forward(
        self, f0: Tensor, pulse_filter: Tensor, noise_filter: Tensor, state: SourceState
    ) -> tuple[Tensor, SourceState]:
        """f0 (B, frames) Hz; filters (B, frames, N_BINS) log magnitudes.

        Returns (B, frames * HOP) samples, which lag `DELAY` behind, and the next state.
        """
        pulses, noise, cycles = self._excitation(f0, state)
        pulses = torch.cat([state.pulses, pulses], dim=1)
        noise = torch.cat([state.noise, noise], dim=1)
        frames = torch.fft.rfft(pulses.unfold(1, N_FFT, HOP) * self.window)
        hiss = torch.fft.rfft(noise.unfold(1, N_FFT, HOP) * self.window)
        spectrum = frames * minimum_phase(pulse_filter) + hiss * torch.exp(noise_filter)
        shaped = torch.fft.irfft(spectrum, n=N_FFT) * self.window  # (B, frames, N_FFT)
        total = f0.shape[1] * HOP + DELAY
        output = torch.nn.functional.fold(
            shaped.transpose(1, 2), (1, total), kernel_size=(1, N_FFT), stride=(1, HOP)
        )[:, 0, 0]
        output = torch.nn.functional.pad(state.overlap, (0, total - DELAY)) + output
        ready = (output[:, :-DELAY].unflatten(1, (-1, HOP)) / self.gain).flatten(1)
        following = SourceState(
            f0[:, -1:], cycles, pulses[:, -DELAY:], noise[:, -DELAY:],
            output[:, -DELAY:], state.samples + f0.shape[1] * HOP,
        )  # fmt: skip
        return ready, following
