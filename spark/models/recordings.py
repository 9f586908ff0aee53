"""A recording before a model hears it: checked, and brought to 16 kHz.

Knows what no listener can take; knows no model. Messages are for the visitor.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spark.models.base import PromptError
from spark.speech.audio import Pcm, length_of, read_wav, resample, to_float
from spark.speech.mel import HEARD_RATE

SHORTEST_S = 0.1
LONGEST_S = 120.0  # with a reply of full length this is what the large models' caches hold
_RATES = (4_000, 384_000)  # Hz; outside, a file's header is wrong


def read_recording(path: str | Path) -> tuple[Pcm, int]:
    """Samples (n,) and rate in Hz of a spoken prompt's file.

    Of several channels the first that is not silent, since both models' makers take the first.

    Raises:
        PromptError: too long, which is seen before it is read.
        ValueError: the file holds no sound that can be read.
    """
    _expect_short(length_of(path))
    return read_wav(path, first_channel=True)


def heard_samples(pcm: Pcm, rate: int) -> Tensor:
    """A mono recording (n,) at `rate` Hz as float samples at 16 kHz.

    Raises:
        PromptError: empty, too short, too long, silent, or of an impossible rate.
    """
    if not _RATES[0] <= rate <= _RATES[1]:
        raise PromptError(f"A recording at {rate} Hz cannot be right: record it again.")
    seconds = len(pcm) / rate
    if seconds < SHORTEST_S:
        raise PromptError(
            "There is no recording yet: record a question, or choose a file."
            if len(pcm) == 0
            else f"That recording lasts {seconds:.2g} s: hold the microphone for at least a word."
        )
    _expect_short(seconds)
    if not pcm.any():
        raise PromptError("That recording is silent: check the microphone and record it again.")
    return torch.from_numpy(to_float(resample(pcm, rate, HEARD_RATE)))


def _expect_short(seconds: float) -> None:
    if seconds > LONGEST_S:
        raise PromptError(
            f"That recording lasts {seconds:.0f} s, a prompt may last {LONGEST_S:.0f} s: cut it, "
            "or ask in fewer words."
        )
