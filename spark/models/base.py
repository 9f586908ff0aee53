"""What a spoken language model is to the rest of the lab.

A family's module (embedded, step_audio_2, ...) builds a `SpokenLM`; nothing else knows how a
family loads, writes its prompt, or turns codes into sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spark.heads import Head
from spark.modality import Interleave, Vocabulary
from spark.sampling import SamplingSettings
from spark.transformer import Transformer

Pcm = NDArray[np.int16]


class PromptError(ValueError):
    """A prompt the model cannot take; the message is for the visitor: what is wrong, what helps."""


@dataclass(frozen=True)
class Heard:
    """A recording as a prompt holds it.

    Attributes:
        ids: what stands in the prompt, marks of its begin and end included.
        features: (n, D) that take the place of the embeddings of some of the ids, or None where
            the ids say everything.
        offset: index in `ids` of the first that is replaced.
    """

    ids: tuple[int, ...]
    features: Tensor | None = None
    offset: int = 0


@dataclass(frozen=True)
class Turn:
    """One side's part of a conversation.

    Attributes:
        role: who speaks.
        text: as typed.
        heard: recordings, after the text.
        ids: a reply as it was generated, with or without its stop token; goes before `text`.
    """

    role: Literal["user", "assistant"]
    text: str = ""
    heard: tuple[Heard, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What an engine runs before a reply.

    Attributes:
        ids: of every token.
        features: (first index in `ids`, (n, D) states that replace the embeddings there).
    """

    ids: list[int]
    features: tuple[tuple[int, Tensor], ...] = ()

    @classmethod
    def of(cls, heard: Heard) -> Prompt:
        """A recording alone."""
        over = () if heard.features is None else ((heard.offset, heard.features),)
        return cls(list(heard.ids), over)

    def then(self, other: Prompt) -> Prompt:
        """This and what comes after it."""
        shifted = ((place + len(self.ids), rows) for place, rows in other.features)
        return Prompt([*self.ids, *other.ids], (*self.features, *shifted))


class Dialogue(Protocol):
    """Writes conversations in a model's own prompt form."""

    def encode(
        self, turns: Sequence[Turn], system: str | None = None, speak: bool = True
    ) -> Prompt:
        """A whole conversation that ends with the user, and the opening of the reply.

        Args:
            turns: oldest first.
            system: the system prompt; None is the model's own.
            speak: whether the reply is to be spoken; else it is text only.

        Raises:
            PromptError: the model cannot take it.
        """
        ...

    def follow(self, turn: Turn, finished: bool, speak: bool = True) -> Prompt:
        """What comes after a reply that the engine still holds (`Generation.history`).

        Args:
            turn: the user's next.
            finished: whether the reply ended with its stop token.
            speak: as for `encode`.

        Raises:
            PromptError: the model cannot take it.
        """
        ...


class Listener(Protocol):
    """Turns a recording into what a prompt holds of it."""

    def hear(self, pcm: Pcm, rate: int) -> tuple[Heard, ...]:
        """The parts of a mono recording (n,) at `rate` Hz.

        Raises:
            PromptError: too short, too long, silent.
        """
        ...


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
        speech_rate: speech codes a second where there is no vocoder to say so; None: not known.
        sampling: how its makers, or whoever measured it, draw tokens.
        dialogue: several turns; None where it takes one prompt of text.
        system_prompt: its own, where another may be given; None where none may.
        listener: spoken prompts; None where it takes none.
        silence: why there is no vocoder and what helps; empty where there is one.
        deafness: why it takes no spoken prompts and what helps; empty where it does.
        notes: for the page: device and precision with their reason, exit heads.
        licence: of the weights, and what it asks a page to say.
        heads_file: where the lab looks for fitted exit heads; None where it does not.
        derived_prefix: how names of what is made from the weights begin, where a licence asks.
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
    speech_rate: float | None = None
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(temperature=0.3))
    dialogue: Dialogue | None = None
    system_prompt: str | None = None
    listener: Listener | None = None
    silence: str = ""
    deafness: str = "it reads text only"
    notes: tuple[str, ...] = ()
    licence: str = ""
    heads_file: Path | None = None
    derived_prefix: str = ""

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
