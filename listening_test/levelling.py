"""One clip's way to the common form: rate, edges, loudness, 16-bit PCM.

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

Samples = npt.NDArray[np.float64]

EDGE_S = 0.2
# Silence: 60 dB below the clip's peak, in 5 ms steps.
_SILENCE_DB = -60.0
# BS.1770 measures blocks of 400 ms.
_SHORTEST_S = 0.4


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
    sound = mono(samples)
    if not np.isfinite(sound).all():
        raise StimulusError(f"{name}: holds samples that are not numbers; make the file again.")
    if rate != target_rate:
        sound = soxr.resample(sound, rate, target_rate, quality="VHQ")
    sound, leading, trailing = _trim(sound, target_rate, name)
    if len(sound) < _SHORTEST_S * target_rate:
        raise StimulusError(
            f"{name}: {len(sound) / target_rate:.2f} s of sound is too short to measure its "
            f"loudness ({_SHORTEST_S} s at least). Take a longer clip, or leave the item out."
        )
    meter = pyloudnorm.Meter(target_rate)
    before = float(meter.integrated_loudness(sound))
    if not np.isfinite(before):
        raise StimulusError(f"{name}: is silent, its loudness cannot be measured. Replace it.")
    gain = lufs - before
    scaled = sound * 10 ** (gain / 20)
    peak = _true_peak_db(scaled)
    if peak > 0:
        raise StimulusError(
            f"{name}: would clip at {lufs:g} LUFS (true peak {peak:+.1f} dBTP). "
            f"Set `loudness_lufs: {np.floor(lufs - peak):g}` or lower in the study file."
        )
    pcm = np.clip(np.rint(scaled * 32768), -32768, 32767).astype(np.int16)
    after = float(meter.integrated_loudness(pcm / 32768))
    return Levelled(pcm, target_rate, before, after, peak, gain, leading, trailing)


def mono(samples: Samples) -> Samples:
    """The mean of the channels: (n,) of (n,) or (n, channels)."""
    return samples.mean(axis=1) if samples.ndim == 2 else samples


def _trim(sound: Samples, rate: int, name: str) -> tuple[Samples, float, float]:
    """Cut silence beyond EDGE_S at either end; also the silence found there, in ms."""
    step = max(1, rate // 200)
    peak = float(np.abs(sound).max(initial=0.0))
    if peak == 0:
        raise StimulusError(f"{name}: is silent or empty. Replace it.")
    loud = np.flatnonzero(np.abs(sound) > peak * 10 ** (_SILENCE_DB / 20))
    first, last = loud[0] // step * step, min(-(-(loud[-1] + 1) // step) * step, len(sound))
    edge = round(EDGE_S * rate)
    kept = sound[max(first - edge, 0) : last + edge]
    return kept, 1000 * first / rate, 1000 * (len(sound) - last) / rate


def _true_peak_db(samples: Samples) -> float:
    """True peak in dBTP, by four-fold oversampling (BS.1770-4 Annex 2)."""
    peak = max(np.abs(samples).max(), np.abs(soxr.resample(samples, 1, 4)).max())
    return float(20 * np.log10(peak))
