"""Screens made by code: sounds told apart over headphones only, and in a quiet room only.

Woods et al. 2017 (Attention, Perception & Psychophysics 79): three 200 Hz tones, one of them
softer, one in antiphase between the ears. Over loudspeakers the antiphase tone cancels in the air
and seems the softest. Milne et al. 2020 (Behavior Research Methods 53): three noises, one of them
with a pitch that only arises when each ear gets its own channel (Huggins pitch); a single earbud
passes the first test, but not this one. The tone of 200 Hz, and noise of
one second with 600 Hz +-6 % turned by 180 degrees in the right ear, are the authors'; levels,
ramps and gaps were chosen here.

The room check is the environment test of Naderi et al. 2020 (crowdsourcing after ITU-T P.808):
pairs of one voice under noise, 6 dB apart, which who sits in a noisy room cannot tell apart; three
of four right went best with the laboratory. That the quieter noise lies 46 dB below the voice was
chosen here.

Signals and wording alone: who must take a screen is the study file's, what is right `trials.py`'s.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from listening_test.levelling import level
from listening_test.methods import Options, Question
from listening_test.voice import voice

Headphones = Literal["woods", "huggins"]
Kind = Literal["woods", "huggins", "jnd"]
Stereo = npt.NDArray[np.float64]

RATE = 44_100
TRIALS = {"woods": 6, "huggins": 6, "jnd": 4}
_TONE_HZ = 200.0
_SOFTER_DB = -6.0
_RAMP_S = 0.1
_INTERVAL_S = 1.0
_GAP_S = 0.5
_PITCH_HZ = 600.0
_PITCH_WIDTH = 0.06
_PEAK = 0.25
_VOICE_S = 2.0
_NOISE_DB = -46.0
JND_DB = 6.0
_OPTIONS: Options = ((1, "The first"), (2, "The second"), (3, "The third"))
QUESTIONS = {
    "woods": Question(
        "headphones", "Which of the three tones was the softest?", _OPTIONS, "woods-2017"
    ),
    "huggins": Question(
        "headphones", "In which of the three noises was a faint tone hidden?", _OPTIONS,
        "huggins-2020",
    ),
    "jnd": Question(
        "environment", "Which of the two has less noise?",
        ((1, "The first"), (2, "The second"), (3, "I hear no difference")), "jnd-2020",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ScreenClip:
    """One screening trial: (n, 2) samples at RATE, full scale 1, and the right answer, 1 to 3."""

    kind: Kind
    samples: Stereo
    answer: int


def screen_clips(kind: Headphones, seed: int) -> list[ScreenClip]:
    """Six trials in which each answer is right twice, in an order drawn from the seed."""
    rng = random.Random(f"{seed}/{kind}")
    answers = [1, 2, 3] * (TRIALS[kind] // 3)
    rng.shuffle(answers)
    noise = np.random.default_rng(rng.randrange(2**32))
    make = _woods if kind == "woods" else _huggins
    return [ScreenClip(kind, _joined(make(answer, rng, noise)), answer) for answer in answers]


def room_clips(seed: int, lufs: float) -> list[ScreenClip]:
    """Four pairs under noise `JND_DB` apart, as loud as the study's clips, each ear the same.

    Each place is right twice, in an order drawn from the seed; (n, 2) samples.
    """
    rng = random.Random(f"{seed}/jnd")
    answers = [1, 2] * (TRIALS["jnd"] // 2)
    rng.shuffle(answers)
    return [ScreenClip("jnd", _room(answer, rng, lufs), answer) for answer in answers]


def _room(answer: int, rng: random.Random, lufs: float) -> Stereo:
    """The same words twice, under noise of two strengths; the right answer has the weaker one."""
    spoken = voice(_VOICE_S, RATE, rng.randrange(2**32))
    spoken = level(spoken, RATE, RATE, lufs, "room check").pcm / 32768
    noise = np.random.default_rng(rng.randrange(2**32)).standard_normal(len(spoken))
    power = float(np.mean(spoken**2)) * 10 ** (_NOISE_DB / 10)
    hiss = noise * np.sqrt(power / np.mean(noise**2)) * _ramps(len(spoken))
    intervals = []
    for number in (1, 2):
        mono = spoken + hiss * (1 if number == answer else 10 ** (JND_DB / 20))
        intervals.append(np.stack([mono, mono], axis=1))
    return _joined(intervals)


def _woods(answer: int, rng: random.Random, noise: np.random.Generator) -> list[Stereo]:
    """The right answer is softer in phase; one of the others is in antiphase at full level."""
    t = np.arange(round(_INTERVAL_S * RATE)) / RATE
    tone = _PEAK * np.sin(2 * np.pi * _TONE_HZ * t) * _ramps(len(t))
    others = [1, 2, 3]
    others.remove(answer)
    antiphase = rng.choice(others)
    intervals = []
    for number in (1, 2, 3):
        gain = 10 ** (_SOFTER_DB / 20) if number == answer else 1.0
        right = -tone if number == antiphase else tone
        intervals.append(gain * np.stack([tone, right], axis=1))
    return intervals


def _huggins(answer: int, rng: random.Random, noise: np.random.Generator) -> list[Stereo]:
    """Noise that is the same in both ears, but for a band turned by 180 degrees in one."""
    n = round(_INTERVAL_S * RATE)
    frequencies = np.fft.rfftfreq(n, 1 / RATE)
    band = np.abs(frequencies - _PITCH_HZ) <= _PITCH_WIDTH * _PITCH_HZ
    intervals = []
    for number in (1, 2, 3):
        left = noise.standard_normal(n)
        spectrum = np.fft.rfft(left)
        if number == answer:
            spectrum[band] *= -1
        both = np.stack([left, np.fft.irfft(spectrum, n)], axis=1)
        intervals.append(_PEAK / 4 * both.clip(-4, 4) * _ramps(n)[:, None])
    return intervals


def _ramps(n: int) -> npt.NDArray[np.float64]:
    """Raised-cosine rise and fall."""
    m = round(_RAMP_S * RATE)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(m) / m)
    return np.concatenate([rise, np.ones(n - 2 * m), rise[::-1]])


def _joined(intervals: list[Stereo]) -> Stereo:
    gap = np.zeros((round(_GAP_S * RATE), 2))
    parts = [part for interval in intervals for part in (interval, gap)]
    joined: Stereo = np.concatenate(parts[:-1])
    return joined
