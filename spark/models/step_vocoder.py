"""Step-Audio-2-mini's voice: token2wav, codes at 25 Hz to sound at 24 kHz, in pieces or whole.

As the published streaming code does it: pieces of 25 codes that look at three more, the sound of 8
mel frames made twice and cross-faded. The published code for whole utterances makes other sound of
the same codes, since every frame then sees every other; `whole` is that. Chance is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spark.models.family import Speaking
from spark.models.step_flow import LOOK_AHEAD, FlowState, StepFlow, Voice
from spark.models.step_voice import Prompter
from spark.models.strict import fill, nbytes, read_pickled
from spark.models.vocoding import EMPTY, Parts, Whole, crossfaded, joined, pcm_of, seeded
from spark.speech.audio import Pcm
from spark.speech.hift import Hift, HiftShape, resolved

SAMPLE_RATE, FRAME_RATE = 24_000, 25.0
PIECE = 25  # codes
HIFT = HiftShape(SAMPLE_RATE, (8, 5, 3), (16, 11, 7), (7, 7, 11), phase_by_frame=True)
PARTS = Parts(
    "Step-Audio-2-mini's voice",
    "stepfun-ai/Step-Audio-2-mini",
    tuple(
        f"token2wav/{name}"
        for name in ("flow.pt", "hift.pt", "speech_tokenizer_v2_25hz.onnx", "campplus.onnx")
    ),
    nbytes=1_231_000_000,
    own=True,
    packages=("onnxruntime",),
)
VOICE = Parts(
    "a recording to take the voice from", PARTS.repo, ("assets/default_female.wav",),
    nbytes=1_000_000, own=True,
)  # fmt: skip
_HELD = 8  # mel frames made again with the next piece


class StepVocoder:
    """Codes to sound in a prompt's voice; see `Vocoder`.

    Args:
        flow: codes to mel.
        hift: mel to sound.
        voice: of the prompt.
    """

    sample_rate, frame_rate = SAMPLE_RATE, FRAME_RATE

    def __init__(self, flow: StepFlow, hift: Hift, voice: Voice) -> None:
        self.flow, self.hift, self.voice = flow, hift, voice
        self._begun: FlowState | None = None

    def decode(self, codes: Sequence[int]) -> Pcm:
        """The pieces of a stream, joined."""
        return joined(self.stream(), codes)

    def stream(self) -> StepStream:
        """A stream that gives 0.84 s when it has 28 codes, then 1 s with each 25 more."""
        return StepStream(self, self._after_the_prompt().copy())

    @torch.inference_mode()
    def _after_the_prompt(self) -> FlowState:
        """The flow's state after the voice's recording, made at first use: a GPU that is lent for
        each run is not there when the model is loaded."""
        if self._begun is None:
            self._begun = self.flow.begin(self.voice)
        return self._begun

    @torch.inference_mode()
    def whole(self, codes: Sequence[int]) -> Pcm:
        """Sound of all codes in one pass."""
        mel = self.flow.whole(list(codes), self.voice)
        return pcm_of(self.hift(mel, seeded(0))[0])


class StepStream:
    """See `VocoderStream`; where pieces end depends on the codes' number alone."""

    def __init__(self, vocoder: StepVocoder, state: FlowState) -> None:
        self._vocoder, self._state = vocoder, state
        self._waiting: list[int] = []
        self._pieces = 0
        self._mel: Tensor | None = None  # of the last `_HELD` frames, and their source and sound
        self._source: Tensor | None = None
        self._sound: Tensor | None = None

    def push(self, codes: Sequence[int]) -> Pcm:
        """Samples of the pieces that are complete with these codes."""
        self._waiting += codes
        ready = [EMPTY]
        while len(self._waiting) >= PIECE + LOOK_AHEAD:
            ready.append(self._piece(self._waiting[: PIECE + LOOK_AHEAD], last=False))
            del self._waiting[:PIECE]
        return np.concatenate(ready)

    def flush(self) -> Pcm:
        """Samples of the last piece."""
        codes, self._waiting = self._waiting, []
        return self._piece(codes, last=True) if codes else EMPTY

    @torch.inference_mode()
    def _piece(self, codes: list[int], last: bool) -> Pcm:
        made = self._vocoder
        mel = made.flow.piece(codes, made.voice, self._state, last)
        if self._mel is not None:
            mel = torch.cat((self._mel, mel), dim=2)
        sound, source = made.hift(mel, seeded(self._pieces), self._source)
        if self._sound is not None:
            sound = crossfaded(sound, self._sound)
        held = _HELD * made.hift.shape.hop
        self._mel, self._source = mel[:, :, -_HELD:], source[:, :, -held:]
        self._sound, self._pieces = sound[:, -held:], self._pieces + 1
        return pcm_of(sound if last else sound[:, :-held])


@cache
def published_bytes() -> int:
    """Of the published networks."""
    with torch.device("meta"):
        return nbytes(StepFlow()) + nbytes(Hift(HIFT))


@dataclass(frozen=True)
class Sound:
    """All of token2wav, read and checked, on the CPU."""

    flow: StepFlow
    hift: Hift
    voice: Voice

    @classmethod
    def read(cls, folder: Path, voice: Path) -> Sound:
        """From a folder with the files of `PARTS`, to speak like a recording.

        Args:
            folder: see `Parts.found`.
            voice: a sound file of 1 to 30 s.

        Raises:
            CheckpointError: a file is damaged or of another model.
            ValueError: the recording cannot be used.
        """
        inside = folder / "token2wav"
        prompter = Prompter(inside / "speech_tokenizer_v2_25hz.onnx", inside / "campplus.onnx")
        flow, hift = StepFlow(), Hift(HIFT)
        fill(flow, read_pickled(inside / "flow.pt"), "flow.pt")
        state = read_pickled(inside / "hift.pt")
        plain = {name.removeprefix("generator."): tensor for name, tensor in state.items()}
        fill(hift, resolved(plain), "hift.pt")
        return cls(flow, hift, prompter.voice(voice))

    def on(self, device: torch.device, whole: bool = False) -> StepVocoder | Whole:
        """The vocoder on its device, in float32.

        Args:
            device: where it runs.
            whole: one pass over all codes, as for evaluation; else in pieces.
        """
        voice = replace(
            self.voice, mel=self.voice.mel.to(device), speaker=self.voice.speaker.to(device)
        )
        made = StepVocoder(self.flow.to(device), self.hift.to(device), voice)
        return Whole(made.whole, SAMPLE_RATE, FRAME_RATE) if whole else made


def offered(folder: Path, voice: Path | None) -> tuple[Speaking | None, str]:
    """What makes the sound, or why there is none; reads no file.

    Args:
        folder: of the model.
        voice: a sound file; None for the published voice.
    """
    if reason := PARTS.reason(folder):
        return None, reason
    if voice is None:
        if reason := VOICE.reason(folder):
            return None, f"{reason}; or name another with --voice"
        assets = VOICE.found(folder)
        assert assets is not None
        voice = assets / VOICE.files[0]
    found = PARTS.found(folder)
    assert found is not None

    def read(device: torch.device, whole: bool) -> StepVocoder | Whole:
        return Sound.read(found, voice).on(device, whole)

    return Speaking(published_bytes(), read), ""
