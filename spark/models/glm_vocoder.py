"""GLM-4-Voice's voice: codes at 12.5 Hz to sound at 22,050 Hz, in growing blocks or whole.

As the published streaming demo does it: blocks of 25, 50, 100, 150, then 200 codes; all codes and
the mel so far go into each block again, 34 mel frames are made twice and cross-faded. A block waits
for one code more, so that the last piece is never empty and the end never lost. One voice; chance
is fixed. `whole` is the published code for whole utterances, one pass over all codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spark.models.family import Speaking
from spark.models.glm_flow import CODE_RATE, HOP, SAMPLE_RATE, GlmFlow, frames_of
from spark.models.strict import fill, nbytes, read_pickled
from spark.models.vocoding import EMPTY, Parts, Whole, crossfaded, joined, pcm_of, seeded
from spark.speech.audio import Pcm
from spark.speech.hift import Hift, HiftShape, resolved

BLOCKS = (25, 50, 100, 150, 200)  # codes; the last again and again
HIFT = HiftShape(SAMPLE_RATE, (8, 8), (16, 16), (7, 11), phase_by_frame=False)
PARTS = Parts(
    "GLM-4-Voice's voice", "zai-org/glm-4-voice-decoder", ("flow.pt", "hift.pt"),
    nbytes=527_000_000,
)  # fmt: skip
_AGAIN = frames_of(5)  # mel frames made again with the next block


class GlmVocoder:
    """Codes to sound; see `Vocoder`.

    Args:
        flow: codes to mel.
        hift: mel to sound.
    """

    sample_rate, frame_rate = SAMPLE_RATE, CODE_RATE

    def __init__(self, flow: GlmFlow, hift: Hift) -> None:
        self.flow, self.hift = flow, hift

    def decode(self, codes: Sequence[int]) -> Pcm:
        """The pieces of a stream, joined."""
        return joined(self.stream(), codes)

    def stream(self) -> GlmStream:
        """A stream that gives its first 1.6 s when it has 26 codes."""
        return GlmStream(self)

    @torch.inference_mode()
    def whole(self, codes: Sequence[int]) -> Pcm:
        """Sound of all codes in one pass."""
        return pcm_of(self.hift(self.flow(list(codes)), seeded(0))[0])


class GlmStream:
    """See `VocoderStream`; where blocks end depends on the codes' number alone."""

    def __init__(self, vocoder: GlmVocoder) -> None:
        self._vocoder = vocoder
        self._codes: list[int] = []
        self._done, self._blocks = 0, 0  # codes with sound, and in how many blocks
        self._mel: Tensor | None = None  # finished, (1, 80, T)
        self._again: Tensor | None = None  # to be faded out of
        self._source: Tensor | None = None  # of the last finished frame

    def push(self, codes: Sequence[int]) -> Pcm:
        """Samples of the blocks that are known not to be the last."""
        ready = [EMPTY]
        self._codes += codes
        while len(self._codes) > self._done + (size := self._size()):
            ready.append(self._block(self._done + size, last=False))
        return np.concatenate(ready)

    def flush(self) -> Pcm:
        """Samples of what is left."""
        if len(self._codes) == self._done:
            return EMPTY
        return self._block(len(self._codes), last=True)

    def _size(self) -> int:
        return BLOCKS[min(self._blocks, len(BLOCKS) - 1)]

    @torch.inference_mode()
    def _block(self, end: int, last: bool) -> Pcm:
        made = self._vocoder
        mel = made.flow(self._codes[:end], self._mel)
        if self._again is not None:
            mel = crossfaded(mel, self._again)
        if not last:
            self._again, mel = mel[:, :, -_AGAIN:], mel[:, :, :-_AGAIN]
        told = mel if self._mel is None else torch.cat((self._mel[:, :, -1:], mel), dim=2)
        sound, source = made.hift(told, seeded(self._blocks), self._source)
        self._mel = mel if self._mel is None else torch.cat((self._mel, mel), dim=2)
        self._source = source[:, :, -HOP:]
        self._done, self._blocks = end, self._blocks + 1
        return pcm_of(sound if last else sound[:, :-HOP])


@cache
def published_bytes() -> int:
    """Of the published networks."""
    with torch.device("meta"):
        return nbytes(GlmFlow()) + nbytes(Hift(HIFT))


@dataclass(frozen=True)
class Sound:
    """The decoder, read and checked, on the CPU."""

    flow: GlmFlow
    hift: Hift

    @classmethod
    def read(cls, folder: Path) -> Sound:
        """From a folder with the files of `PARTS`.

        Raises:
            CheckpointError: a file is damaged or of another model.
        """
        flow, hift = GlmFlow(), Hift(HIFT)
        fill(flow, read_pickled(folder / "flow.pt"), "flow.pt")
        fill(hift, resolved(read_pickled(folder / "hift.pt")), "hift.pt")
        return cls(flow, hift)

    def on(self, device: torch.device, whole: bool = False) -> GlmVocoder | Whole:
        """The vocoder on its device, in float32.

        Args:
            device: where it runs.
            whole: one pass over all codes, as for evaluation; else in blocks.
        """
        made = GlmVocoder(self.flow.to(device), self.hift.to(device))
        return Whole(made.whole, SAMPLE_RATE, CODE_RATE) if whole else made


def offered(folder: Path, voice: Path | None = None) -> tuple[Speaking | None, str]:
    """What makes the sound, or why there is none; reads no file.

    Args:
        folder: of the model.
        voice: must be None.

    Raises:
        ValueError: another voice is asked for.
    """
    if voice is not None:
        raise ValueError("GLM-4-Voice has one voice: leave the other out")
    if reason := PARTS.reason(folder):
        return None, reason
    found = PARTS.found(folder)
    assert found is not None

    def read(device: torch.device, whole: bool) -> GlmVocoder | Whole:
        return Sound.read(found).on(device, whole)

    return Speaking(published_bytes(), read), ""
