"""What a spoken language model is to the rest of the lab.

A family's module (embedded, step_audio_2, ...) builds a `SpokenLM`; nothing else knows how a
family loads, writes its prompt, or turns codes into sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spark.heads import Head
from spark.modality import Interleave, Vocabulary
from spark.transformer import Transformer

Pcm = NDArray[np.int16]


class PromptError(ValueError):
    """A prompt the model cannot take; the message is for the visitor: what is wrong, what helps."""


class VocoderStream(Protocol):
    """Speech codes in, samples out, piece by piece; the pieces join to `decode` of all codes."""

    def push(self, codes: Sequence[int]) -> Pcm:
        """Samples (n,) that are certain after these codes; may be empty."""
        ...

    def flush(self) -> Pcm:
        """The samples that are left, (n,)."""
        ...


class Vocoder(Protocol):
    """Turns speech codes into sound."""

    sample_rate: int  # Hz
    frame_rate: float  # codes a second

    def decode(self, codes: Sequence[int]) -> Pcm:
        """Mono samples (n,) of all codes."""
        ...

    def stream(self) -> VocoderStream:
        """A new stream."""
        ...


@dataclass
class SpokenLM:
    """A spoken language model, loaded.

    Attributes:
        name: in the registry and on command lines.
        title: for people.
        transformer: the body, with embedding and base head.
        vocabulary: ids by meaning.
        layout: how text and speech alternate.
        encode_prompt: words -> token ids of the whole prompt; raises PromptError.
        decode_text: token ids -> words, without pads and control tokens.
        max_tokens: longest reply.
        candidate_exits: exit layers on offer.
        default_exit: the one to start with.
        exit_heads: fitted heads by exit layer.
        vocoder: None where the model gives codes only.
    """

    name: str
    title: str
    transformer: Transformer
    vocabulary: Vocabulary
    layout: Interleave
    encode_prompt: Callable[[str], list[int]]
    decode_text: Callable[[Sequence[int]], str]
    max_tokens: int
    candidate_exits: tuple[int, ...]
    default_exit: int
    exit_heads: dict[int, Head] = field(default_factory=dict)
    vocoder: Vocoder | None = None

    def __post_init__(self) -> None:
        layers = self.transformer.num_layers
        for layer in (*self.candidate_exits, self.default_exit, *self.exit_heads):
            if not 0 < layer < layers:
                raise ValueError(f"exit layer {layer} is not between 1 and {layers - 1}")
        if self.vocabulary.size != self.transformer.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {self.vocabulary.size} ids, "
                f"the transformer {self.transformer.config.vocab_size}"
            )
