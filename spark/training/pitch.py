"""Pitch of the teacher's voice, by WORLD (pyworld). Needed for training and encoding only."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np

from spark.speech.source_filter import HOP, SAMPLE_RATE

LOWEST, HIGHEST = 80.0, 400.0  # Hz


def available() -> bool:
    """Whether pitch can be measured on this machine."""
    return find_spec("pyworld") is not None


def pitch(samples: np.ndarray) -> np.ndarray:
    """f0 in Hz at the end of each 10 ms hop of int16 samples (n,): (n // 160,), float32.

    Negative where unvoiced, with the pitch interpolated from the voiced frames around.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyworld imports the deprecated pkg_resources
        import pyworld  # type: ignore[import-untyped]

    wave = samples.astype(np.float64)
    period = 1000 * HOP / SAMPLE_RATE
    rough, times = pyworld.dio(wave, SAMPLE_RATE, LOWEST, HIGHEST, frame_period=period)
    f0 = pyworld.stonemask(wave, rough, times, SAMPLE_RATE)
    frames = np.arange(1, len(samples) // HOP + 1)  # f0[i] is the pitch at sample i * HOP
    voiced = f0 > 0
    if not voiced.any():
        return np.full(len(frames), -180.0, np.float32)
    filled = np.interp(np.arange(len(f0)), np.flatnonzero(voiced), f0[voiced]).clip(LOWEST, HIGHEST)
    signed = np.where(voiced, filled, -filled)
    return signed[np.minimum(frames, len(f0) - 1)].astype(np.float32)
