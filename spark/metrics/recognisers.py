"""Who writes down what was said, and when two writings are the same words.

pocketsphinx is always there; Whisper, which the paper's figures are from, where its weights are
given. Each comes with its own normaliser, as word error rates are published with them. Knows sound
and words, no model of ours.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from spark.metrics import wer
from spark.speech.audio import Pcm, resample, to_float
from spark.text import normalise

POCKETSPHINX = "pocketsphinx"
_RATE = 16_000  # Hz; Whisper's only one
_WINDOW_S = 30  # Whisper hears so much at a time, and goes by its own timestamps beyond it
_SHORTEST_S = 0.1  # shorter sound holds no word


class Recogniser(Protocol):
    """Hears speech."""

    name: str

    def transcribe(self, pcm: Pcm, rate: int) -> str:
        """Words heard in mono int16 sound (n,); empty where none are heard."""
        ...

    def normalise(self, text: str) -> str:
        """The text as words are counted, separated by single spaces."""
        ...


class Pocketsphinx:
    """The offline recogniser; its transcripts are normalised already."""

    name = POCKETSPHINX

    def transcribe(self, pcm: Pcm, rate: int) -> str:
        """As of `Recogniser`."""
        return wer.transcribe(pcm, rate)

    def normalise(self, text: str) -> str:
        """Lower-case letters, numbers as words."""
        return normalise(text, longest=None)


class Whisper:
    """Whisper in transformers, English, greedy, with the normaliser of its own word error rates.

    Args:
        folder: a checkpoint in transformers' form, such as openai/whisper-large-v3.
        device: where it runs.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        self.name = Path(folder).name
        kind = torch.float16 if device.type == "cuda" else torch.float32
        self._processor: Any = WhisperProcessor.from_pretrained(folder)
        model: Any = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=kind, use_safetensors=True
        )
        self._model = model.to(device).eval()
        spellings = self._processor.tokenizer.english_spelling_normalizer or {}
        self._normaliser: Any = EnglishTextNormalizer(spellings)

    @torch.inference_mode()
    def transcribe(self, pcm: Pcm, rate: int) -> str:
        """As of `Recogniser`; as Whisper writes, with case, marks and digits."""
        if len(pcm) < _SHORTEST_S * rate:
            return ""
        samples = to_float(resample(pcm, rate, _RATE))
        long = len(samples) > _WINDOW_S * _RATE
        heard = self._processor(
            samples, sampling_rate=_RATE, return_tensors="pt", return_attention_mask=True,
            truncation=not long, padding="longest" if long else "max_length",
        )  # fmt: skip
        many = getattr(self._model.generation_config, "is_multilingual", False)
        ids = self._model.generate(
            heard.input_features.to(self._model.device, self._model.dtype),
            attention_mask=heard.attention_mask.to(self._model.device),
            do_sample=False, return_timestamps=long,
            **({"language": "en", "task": "transcribe"} if many else {}),
        )  # fmt: skip
        (text,) = self._processor.batch_decode(ids, skip_special_tokens=True)
        return str(text).strip()

    def normalise(self, text: str) -> str:
        """Whisper's English normaliser: "twenty-one dollars" as "$21", British spelling mapped."""
        return str(self._normaliser(text)).strip()


@cache
def recogniser(name: str) -> Recogniser:
    """A recogniser, loaded once a process; Whisper goes to a GPU where there is one.

    Args:
        name: pocketsphinx, a folder with a Whisper checkpoint, or OWNER/NAME of the hub.

    Raises:
        ValueError: there is no such checkpoint, or it is no Whisper.
    """
    if name == POCKETSPHINX:
        return Pocketsphinx()
    try:
        return Whisper(name, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"no Whisper could be loaded from {name!r} ({type(error).__name__}): give --recogniser "
            "a folder with a checkpoint in transformers' form and safetensors weights, OWNER/NAME "
            "of the hub, or pocketsphinx"
        ) from error
