"""One clip's way to the common form: rate, edges, loudness, 16-bit PCM, and the low-pass anchors.

What cannot be measured or would clip is an error, never passed through: a louder clip is
preferred, and that would be mistaken for the system.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyloudnorm
import soundfile
import soxr
from scipy import signal

Samples = npt.NDArray[np.float64]

EDGE_S = 0.2
# Silence: 60 dB below the clip's peak, in 5 ms steps.
_SILENCE_DB = -60.0
# BS.1770 measures blocks of 400 ms.
_SHORTEST_S = 0.4
# BS.1534's low-pass anchor of 3.5 kHz is 50 dB down at 4.5 kHz; here at the same ratio, 60 dB.
_ANCHOR_STOP = 4.0 / 3.5
_ANCHOR_STOP_DB = 60.0


class StimulusError(ValueError):
    """A clip is missing or cannot be levelled; the message names it and the remedy."""


@dataclass(frozen=True)
class Levelled:
    """A finished clip: int16 samples and what was measured on the way."""

    pcm: npt.NDArray[np.int16]
    sample_rate: int
    lufs_in: float
    lufs_out: float
    true_peak_dbtp: float
    gain_db: float
    leading_silence_ms: float
    trailing_silence_ms: float

    @property
    def wav(self) -> bytes:
        """The clip as a WAV file: a 44-byte header and samples, no other chunk."""
        file = io.BytesIO()
        soundfile.write(file, self.pcm, self.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def level(samples: Samples, rate: int, target_rate: int, lufs: float, name: str) -> Levelled:
    """Bring a clip to the common form.

    Args:
        samples: (n,) or (n, channels), full scale 1.
        rate, target_rate: Hz.
        lufs: BS.1770 integrated loudness to reach.
        name: of the clip, for messages.

    Raises:
        StimulusError: not measurable (too short, silent, not finite) or would clip.
    """
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not np.isfinite(mono).all():
        raise StimulusError(f"{name}: holds samples that are not numbers; make the file again.")
    if rate != target_rate:
        mono = soxr.resample(mono, rate, target_rate, quality="VHQ")
    mono, leading, trailing = _trim(mono, target_rate, name)
    if len(mono) < _SHORTEST_S * target_rate:
        raise StimulusError(
            f"{name}: {len(mono) / target_rate:.2f} s of sound is too short to measure its "
            f"loudness ({_SHORTEST_S} s at least). Take a longer clip, or leave the item out."
        )
    meter = pyloudnorm.Meter(target_rate)
    before = float(meter.integrated_loudness(mono))
    if not np.isfinite(before):
        raise StimulusError(f"{name}: is silent, its loudness cannot be measured. Replace it.")
    gain = lufs - before
    scaled = mono * 10 ** (gain / 20)
    peak = _true_peak_db(scaled)
    if peak > 0:
        raise StimulusError(
            f"{name}: would clip at {lufs:g} LUFS (true peak {peak:+.1f} dBTP). "
            f"Set `loudness_lufs: {np.floor(lufs - peak):g}` or lower in the study file."
        )
    pcm = np.clip(np.rint(scaled * 32768), -32768, 32767).astype(np.int16)
    after = float(meter.integrated_loudness(pcm / 32768))
    return Levelled(pcm, target_rate, before, after, peak, gain, leading, trailing)


def _trim(mono: Samples, rate: int, name: str) -> tuple[Samples, float, float]:
    """Cut silence beyond EDGE_S at either end; also the silence found there, in ms."""
    step = max(1, rate // 200)
    peak = float(np.abs(mono).max(initial=0.0))
    if peak == 0:
        raise StimulusError(f"{name}: is silent or empty. Replace it.")
    loud = np.flatnonzero(np.abs(mono) > peak * 10 ** (_SILENCE_DB / 20))
    first, last = loud[0] // step * step, min(-(-(loud[-1] + 1) // step) * step, len(mono))
    edge = round(EDGE_S * rate)
    kept = mono[max(first - edge, 0) : last + edge]
    return kept, 1000 * first / rate, 1000 * (len(mono) - last) / rate


def _true_peak_db(samples: Samples) -> float:
    """True peak in dBTP, by four-fold oversampling (BS.1770-4 Annex 2)."""
    peak = max(np.abs(samples).max(), np.abs(soxr.resample(samples, 1, 4)).max())
    return float(20 * np.log10(peak))


def low_passed(samples: Samples, rate: int, cutoff: int, name: str) -> Samples:
    """An anchor: the clip without what lies above `cutoff` Hz, in time with the clip.

    Raises:
        StimulusError: the clip holds nothing above `cutoff`, so that the anchor would be the clip.
    """
    stop = cutoff * _ANCHOR_STOP
    if stop >= rate / 2:
        raise StimulusError(
            f"{name}: at {rate} Hz there is no low-pass anchor of {cutoff} Hz. Take reference "
            f"clips of more than {2 * stop:.0f} Hz, or another anchor."
        )
    taps, beta = signal.kaiserord(_ANCHOR_STOP_DB, (stop - cutoff) / (rate / 2))
    taps |= 1  # odd: a whole number of samples of delay
    kernel = signal.firwin(taps, (cutoff + stop) / 2, window=("kaiser", beta), fs=rate)
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    filtered: Samples = signal.fftconvolve(mono, kernel, mode="same")
    return filtered
