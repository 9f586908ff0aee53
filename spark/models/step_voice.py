"""The prompt voice of Step-Audio-2-mini: what its vocoder has to know of a recording.

Codes of the recording and a vector of its speaker come from the two ONNX files beside the vocoder
(CosyVoice 2, arXiv 2412.10117; CAM++, arXiv 2303.00332), run by onnxruntime; the mel is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from spark.models.checkpoint import CheckpointError, refuse_pointer
from spark.models.step_flow import SPEAKER, UP, Voice
from spark.speech.audio import length_of, read_wav, resample, to_float
from spark.speech.mel import HEARD_RATE, SPOKEN_RATE, kaldi_fbank, spoken_mel, whisper_mel

if TYPE_CHECKING:
    import onnxruntime

SHORTEST_S, LONGEST_S = 1.0, 30.0  # the code book's model takes no more
_CODES = 6561


class Prompter:
    """Reads voices.

    Args:
        tokenizer: ONNX file, log-mel (1, 128, T) and its length -> codes at 25 Hz.
        speaker: ONNX file, filter bank (1, T, 80) -> (1, 192).

    Raises:
        CheckpointError: a file is damaged, or is another model.
    """

    def __init__(self, tokenizer: Path, speaker: Path) -> None:
        self._tokenizer, self._speaker = _session(tokenizer, 2), _session(speaker, 1)

    def voice(self, path: Path) -> Voice:
        """The voice of a sound file.

        Raises:
            ValueError: it is no sound, too short, too long or silent.
            CheckpointError: the models do not give what a voice is made of.
        """
        try:
            seconds = length_of(path)
        except ValueError as error:
            raise ValueError(
                f"{error}: fetch or record it again, or name another voice with --voice"
            ) from error
        if not SHORTEST_S <= seconds <= LONGEST_S:
            raise ValueError(
                f"{path.name} lasts {seconds:.1f} s; a voice is taken from "
                f"{SHORTEST_S:.0f} to {LONGEST_S:.0f} s of one person's speech"
            )
        pcm, rate = read_wav(path)
        if not pcm.any():
            raise ValueError(f"{path.name} is silent: a voice is taken from speech")
        heard = torch.from_numpy(to_float(resample(pcm, rate, HEARD_RATE)))
        mel = spoken_mel(torch.from_numpy(to_float(resample(pcm, rate, SPOKEN_RATE))))
        codes = self._codes(whisper_mel(heard).numpy())
        frames = UP * len(codes)
        mel = F.pad(mel, (0, max(frames - mel.shape[1], 0)), mode="replicate")[:, :frames]
        bank = kaldi_fbank(heard)
        speaker = _run(self._speaker, "campplus.onnx", (bank - bank.mean(0))[None].numpy())
        if speaker.size != SPEAKER or not np.isfinite(speaker).all():
            raise CheckpointError(f"campplus.onnx gives no {SPEAKER} numbers of a voice")
        return Voice(codes, mel.t(), torch.from_numpy(speaker).float())

    def _codes(self, log_mel: NDArray[np.float32]) -> list[int]:
        length = np.array([log_mel.shape[1]], np.int32)
        codes = _run(self._tokenizer, "speech_tokenizer_v2_25hz.onnx", log_mel[None], length)
        if not codes.size or codes.min() < 0 or codes.max() >= _CODES:
            raise CheckpointError("speech_tokenizer_v2_25hz.onnx gives no codes of this model")
        return [int(code) for code in codes]


def _session(path: Path, inputs: int) -> onnxruntime.InferenceSession:
    import onnxruntime  # only here: a model without sound does without it

    refuse_pointer(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own errors share no narrower base
        raise CheckpointError(
            f"{path.name} is cut off or damaged: delete it and fetch it again"
        ) from error
    if len(session.get_inputs()) != inputs:
        raise CheckpointError(f"{path.name} is another model: take the published file")
    return session


def _run(session: onnxruntime.InferenceSession, name: str, *values: NDArray[Any]) -> NDArray[Any]:
    """Its first output, flat."""
    inputs = [given.name for given in session.get_inputs()]
    try:
        found = session.run(None, dict(zip(inputs, values, strict=True)))
    except Exception as error:  # onnxruntime's own errors share no narrower base
        raise CheckpointError(
            f"{name} does not take a recording: take the published file"
        ) from error
    return np.asarray(found[0]).reshape(-1)
