"""Critics: small networks that tell the decoder's speech from the teacher's, frame by frame.

A decoder trained on mean errors alone blurs what it is unsure of, which costs words more than
decibels. Critics see log spectra (mel, and two STFTs) through convolutions in time; they learn to
tell real from made by least squares (arXiv 1611.04076), and the decoder learns to deceive them and
to match what they see inside (arXiv 1910.06711). Thrown away after training. Know spectra only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from spark.speech.codec import N_MELS

WIDTH = 128
RATE = 5e-4
RESOLUTIONS = ((512, 160), (1024, 256))  # (n_fft, hop) of the critics that see STFTs
_FLOOR = 1e-2  # as in the decoder's spectral loss
_KERNELS = ((3, 1), (5, 1), (5, 2), (5, 1))  # (kernel, dilation) of each layer
_SLOPE = 0.1

Spectrum = Callable[[Tensor], Tensor]


def log_stft(n_fft: int, hop: int) -> Spectrum:
    """A function from samples (B, n) to log magnitudes (B, n_fft // 2 + 1, frames), about one."""

    def spectrum(samples: Tensor) -> Tensor:
        window = torch.hann_window(n_fft, device=samples.device)
        magnitudes = torch.stft(samples, n_fft, hop, window=window, return_complex=True).abs()
        return (torch.log(magnitudes + _FLOOR) + 2) / 2

    return spectrum


class Critic(nn.Module):
    """One view of the sound: its `bins` of a spectrum, and a verdict for every frame."""

    def __init__(self, spectrum: Spectrum, bins: int) -> None:
        super().__init__()
        self.spectrum = spectrum
        widths = [bins, *[WIDTH] * len(_KERNELS)]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv1d(before, after, kernel, dilation=step, padding=step * (kernel // 2))
            )
            for before, after, (kernel, step) in zip(widths, widths[1:], _KERNELS, strict=False)
        )
        self.verdict = weight_norm(nn.Conv1d(WIDTH, 1, 3, padding=1))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Verdicts (B, 1, frames), one is real and nought is made, and what each layer saw."""
        seen, x = [], self.spectrum(samples)
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), _SLOPE)
            seen.append(x)
        return self.verdict(x), seen


class Critics(nn.Module):
    """Critics of the mel spectrum and of RESOLUTIONS, with their optimiser."""

    def __init__(self, log_mel: Spectrum) -> None:
        """`log_mel` maps samples (B, n) to (B, frames, N_MELS) in nepers."""
        super().__init__()
        mel = Critic(lambda samples: (log_mel(samples).transpose(1, 2) + 3) / 2, N_MELS)
        others = (Critic(log_stft(*sizes), sizes[0] // 2 + 1) for sizes in RESOLUTIONS)
        self.critics: Sequence[Critic] = nn.ModuleList([mel, *others])  # type: ignore[assignment]
        self.optimiser = torch.optim.AdamW(self.parameters(), lr=RATE, betas=(0.8, 0.99))

    def learn(self, made: Tensor, real: Tensor, falling: float) -> float:
        """One step towards telling the two apart; the loss, half a unit a critic at a loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * falling
        loss = real.new_zeros(())
        for critic in self.critics:
            loss = loss + ((critic(real)[0] - 1) ** 2).mean()
            loss = loss + (critic(made.detach())[0] ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def deceived(self, made: Tensor, real: Tensor) -> Tensor:
        """What the decoder is to lower: being told from real, and half the relative distance of
        what the layers see."""
        self.requires_grad_(False)
        loss = real.new_zeros(())
        for critic in self.critics:
            with torch.no_grad():
                _, wanted = critic(real)
            verdict, seen = critic(made)
            loss = loss + ((verdict - 1) ** 2).mean()
            for x, y in zip(seen, wanted, strict=True):
                loss = loss + 0.5 * (x - y).abs().mean() / y.abs().mean()
        self.requires_grad_(True)
        return loss
