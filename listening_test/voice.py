"""A voice made by code, nobody's and no system's: for setting the volume and for the room check.

Syllables of a pulse train through three resonances, with pauses between, so that it is about as
loud and as broken as speech and says nothing. Levelled like the clips of the study, it lets a rater
set the volume without having heard any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import signal

Samples = npt.NDArray[np.float64]

# Mean formants of American English men's vowels, Hz (Peterson & Barney, JASA 24, 1952, table II),
# rounded: /i/, /ae/, /a/, /u/, /3/.
_VOWELS = (
    (270, 2290, 3010), (660, 1720, 2410), (730, 1090, 2440), (300, 870, 2240), (490, 1350, 1690),
)  # fmt: skip
_BANDWIDTHS = (60, 90, 150)
# Four syllables a second, the rate at which speech is most modulated.
_SYLLABLE_S = 0.25
_PHRASE, _PAUSE_S = 5, 0.35


def voice(seconds: float, rate: int, seed: int) -> Samples:
    """(n,) samples at `rate` Hz, peak 1; `seed` draws the vowels and the melody."""
    rng = np.random.default_rng(seed)
    wanted = round(seconds * rate)
    parts: list[Samples] = []
    while sum(map(len, parts)) < wanted:
        pitch = float(rng.uniform(105, 135))
        for _ in range(_PHRASE):
            parts.append(_syllable(rng, pitch, rate))
            pitch *= 0.96  # a phrase falls
        parts.append(np.zeros(round(_PAUSE_S * rate)))
    spoken = np.concatenate(parts)[:wanted]
    made: Samples = spoken / np.abs(spoken).max()
    return made


def _syllable(rng: np.random.Generator, pitch: float, rate: int) -> Samples:
    n = round(_SYLLABLE_S * rate)
    phase = np.cumsum(np.full(n, pitch / rate))
    source = np.diff(np.floor(phase), prepend=0.0)  # one pulse a period
    # The glottis falls by 12 dB an octave, the lips give 6 back.
    sound = signal.lfilter([1.0], [1.0, -0.97], source)
    for centre, width in zip(_VOWELS[rng.integers(len(_VOWELS))], _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width / rate)
        angle = 2 * np.pi * centre / rate
        gain = 1 - 2 * radius * np.cos(angle) + radius**2  # 1 at 0 Hz: a cascade
        sound = signal.lfilter([gain], [1.0, -2 * radius * np.cos(angle), radius**2], sound)
    swell = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 0.7
    shaped: Samples = sound * swell / np.abs(sound).max()
    return shaped
