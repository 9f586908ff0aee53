"""Spectra that published models hear through: Whisper's, HiFi-GAN's and Kaldi's.

Formulas and constants: Whisper's log-mel as in transformers' WhisperFeatureExtractor; the mel of
24 kHz vocoders as in HiFi-GAN (arXiv 2010.05646, section A); Kaldi's filter bank through
transformers' `spectrogram`. Knows no model and no file.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

HEARD_RATE = 16_000  # Hz, of Whisper's and Kaldi's spectra
WHISPER_HOP = 160
WHISPER_BINS = 128
_WHISPER_FFT = 400
SPOKEN_RATE = 24_000  # Hz, of the vocoder's mel
SPOKEN_HOP = 480
SPOKEN_BINS = 80
_SPOKEN_FFT = 1920


@lru_cache(maxsize=2)
def _filters(n_fft: int, bins: int, rate: int) -> Tensor:
    """Slaney's mel filters from 0 to 8 kHz, (bins, n_fft // 2 + 1)."""
    made = mel_filter_bank(n_fft // 2 + 1, bins, 0.0, 8000.0, rate, "slaney", "slaney")
    return torch.from_numpy(made.T.astype(np.float32))


def whisper_mel(samples: Tensor) -> Tensor:
    """Whisper's log-mel of 16 kHz samples (n,): (128, n // 160), floor 8 below the largest."""
    window = torch.hann_window(_WHISPER_FFT, device=samples.device)
    spectrum = torch.stft(samples, _WHISPER_FFT, WHISPER_HOP, window=window, return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    filters = _filters(_WHISPER_FFT, WHISPER_BINS, HEARD_RATE).to(samples.device)
    log_mel = (filters @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0


def spoken_mel(samples: Tensor) -> Tensor:
    """Natural-log mel of 24 kHz samples (n,), magnitudes up to 8 kHz: (80, n // 480)."""
    pad = (_SPOKEN_FFT - SPOKEN_HOP) // 2
    padded = torch.nn.functional.pad(samples[None, None], (pad, pad), mode="reflect")[0, 0]
    window = torch.hann_window(_SPOKEN_FFT, device=samples.device)
    spectrum = torch.stft(
        padded, _SPOKEN_FFT, SPOKEN_HOP, window=window, center=False, return_complex=True
    )
    magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt()
    filters = _filters(_SPOKEN_FFT, SPOKEN_BINS, SPOKEN_RATE).to(samples.device)
    return (filters @ magnitude).clamp(min=1e-5).log()


def kaldi_fbank(samples: Tensor) -> Tensor:
    """Kaldi's log filter bank of 16 kHz samples (n,) without dither: (frames, 80).

    25 ms frames every 10 ms, samples of full scale 1.
    """
    filters = mel_filter_bank(
        257, 80, 20.0, 8000.0, HEARD_RATE, None, "kaldi", triangularize_in_mel_space=True
    )
    window = window_function(_WHISPER_FFT, "povey", periodic=False)
    made = spectrogram(
        samples.numpy(), window, _WHISPER_FFT, WHISPER_HOP, fft_length=512, power=2.0,
        center=False, preemphasis=0.97, mel_filters=filters, log_mel="log",
        mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    )  # fmt: skip
    return torch.from_numpy(made.T.astype(np.float32))
