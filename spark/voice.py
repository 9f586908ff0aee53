"""A reply's sound while its tokens come: codes in as they stand, samples out as they are certain.

Says also when a listener could have heard the first of them. Knows a vocoder's stream and the
clock; knows no model, no policy and no page.
"""

from __future__ import annotations

import time

import numpy as np

from spark.models.base import Pcm, Vocoder, VocoderStream


class Voice:
    """One reply's.

    Codes must be final: what was pushed cannot be taken back.

    Args:
        vocoder: None where the model has none; then nothing is ever heard.
        live: whether all of the sound is wanted; else the stream ends with its first samples.

    Attributes:
        first_ms: when the first samples could be played; None before, or without any.
    """

    def __init__(self, vocoder: Vocoder | None, live: bool = False) -> None:
        self._stream: VocoderStream | None = vocoder.stream() if vocoder else None
        self._live = live
        self._spent_ms = 0.0  # the vocoder's
        self.first_ms: float | None = None

    def say(self, code: int, since_ms: float) -> Pcm:
        """Samples (n,) that are certain after this code; often none.

        Args:
            code: the next.
            since_ms: from the prompt to this code, the vocoder's own work apart.
        """
        return self._give(since_ms, [code])

    def end(self, since_ms: float) -> Pcm:
        """The samples that are left once the reply is over."""
        return self._give(since_ms, None)

    def _give(self, since_ms: float, codes: list[int] | None) -> Pcm:
        if self._stream is None:
            return np.zeros(0, np.int16)
        start = time.perf_counter()
        samples = self._stream.flush() if codes is None else self._stream.push(codes)
        self._spent_ms += 1e3 * (time.perf_counter() - start)
        if len(samples) and self.first_ms is None:
            self.first_ms = since_ms + self._spent_ms
        if codes is None or (len(samples) and not self._live):
            self._stream = None
        return samples
