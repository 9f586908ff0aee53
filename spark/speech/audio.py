"""Sound in and out of files: mono, 16 bits, nothing scaled behind anyone's back.

Everything the lab compares is int16 PCM, so that no player or writer normalises one policy's
loudness and not another's. Knows files and sample rates; knows no model and no metric.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

Pcm = NDArray[np.int16]

FULL_SCALE = 32768  # int16 samples are multiples of 1/32768


def to_pcm(samples: ArrayLike) -> Pcm:
    """Float samples in [-1, 1) as int16, (n,) -> (n,); beyond full scale they are clipped.

    Raises:
        ValueError: a sample is not a number.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the sound holds samples that are not numbers")
    scaled = np.round(values * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def to_float(pcm: Pcm) -> NDArray[np.float32]:
    """int16 samples (n,) as float32 in [-1, 1), (n,)."""
    return _checked(pcm).astype(np.float32) / np.float32(FULL_SCALE)


def resample(pcm: Pcm, rate: int, new_rate: int) -> Pcm:
    """The same sound at another rate in Hz, (n,) -> about (n * new_rate / rate,)."""
    if rate == new_rate or len(pcm) == 0:
        return _checked(pcm)
    return to_pcm(soxr.resample(to_float(pcm), rate, new_rate, quality="HQ"))


def write_wav(path: str | Path, pcm: Pcm, rate: int) -> None:
    """Write int16 samples (n,) as a WAV file without tags."""
    soundfile.write(str(path), _checked(pcm), rate, format="WAV", subtype="PCM_16")


def wav_bytes(pcm: Pcm, rate: int) -> bytes:
    """The bytes `write_wav` would write."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _checked(pcm), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def length_of(path: str | Path) -> float:
    """Seconds of a sound file, by its header.

    Raises:
        ValueError: the file holds no sound that can be read.
    """
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _no_sound(path) from error


def read_wav(path: str | Path, first_channel: bool = False) -> tuple[Pcm, int]:
    """Samples (n,) and rate in Hz of a sound file.

    Args:
        path: of the file, of any format and depth that libsndfile reads.
        first_channel: take of several channels the first that is not silent; else their mean.

    Raises:
        ValueError: the file holds no sound that can be read.
    """
    try:  # as floats: libsndfile would cut a float file's samples down to whole numbers
        samples, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _no_sound(path) from error
    if not np.isfinite(samples).all():
        raise ValueError(f"{Path(path).name} holds samples that are not numbers: record it again")
    if first_channel:
        heard = [channel for channel in samples.T if channel.any()]
        return to_pcm(heard[0] if heard else samples[:, 0]), int(rate)
    return to_pcm(samples.mean(axis=1)), int(rate)


def _no_sound(path: str | Path) -> ValueError:
    return ValueError(f"{Path(path).name} is not a sound file that can be read")


def _checked(pcm: Pcm) -> Pcm:
    array = np.asarray(pcm)
    if array.dtype != np.int16 or array.ndim != 1:
        raise ValueError(
            f"expected mono int16 samples (n,), got {array.dtype} of shape {array.shape}"
        )
    return array
