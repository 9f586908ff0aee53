"""What a large model's family is: how it is published, and how its files are understood.

Values and functions only; `spark.models.large` does with them what both families need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spark.modality import Interleave, Vocabulary
from spark.models.base import Listener, Vocoder
from spark.models.checkpoint import Checkpoint
from spark.models.turns import Prompts
from spark.models.vocoding import Parts
from spark.models.words import Words
from spark.sampling import SamplingSettings
from spark.weights import TransformerConfig

# By transformers' name: the checkpoint's name, and which rows of it (None for all).
Sources = Mapping[str, tuple[str, tuple[int, int] | None]]


@dataclass(frozen=True)
class Hearing:
    """What hears: its files are found and its names and shapes right, its weights not yet read.

    Attributes:
        nbytes: of its weights, beside a model of that precision.
        read: reads it to where the model is to be, in that precision or in one of its own; raises
            CheckpointError where its weights are damaged.
    """

    nbytes: Callable[[torch.dtype], int]
    read: Callable[[torch.device, torch.dtype], Listener]


@dataclass(frozen=True)
class Speaking:
    """What speaks: its files are there, and not yet read.

    Attributes:
        nbytes: of its weights.
        read: reads it to a device; the second is `whole` as `Options` has it. Raises
            CheckpointError where a file is damaged, ValueError where the voice cannot be used.
    """

    nbytes: int
    read: Callable[[torch.device, bool], Vocoder]


@dataclass(frozen=True)
class Family:
    """A large model as it is published, and how its files are understood.

    Attributes:
        name: in the registry.
        title: for people.
        kind: model_type of its config.json.
        repo: OWNER/NAME of the hub.
        files: patterns of the files that the language model needs.
        nbytes: of the repository's files that are fetched, as published.
        parts: what hears and speaks, where those are files of their own.
        licence: of the weights, and what it asks a page to say.
        shape: of its transformer.
        speech_rows: rows of the head that speech slots compute.
        tokens: of a prompt and a reply at most, for the memory's sake.
        exits: candidate exit layers, of its number of layers.
        default_exit: the paper's.
        heads_name: of the file of fitted heads.
        layout: how text and speech alternate.
        speech_rate: speech codes a second.
        most_tokens: of a reply.
        sampling: its makers'.
        system_prompt: its own, where another may be given.
        marks: id of every mark that it was trained with, by name.
        apart: prefixes of tensors that do not belong to the transformer.
        read_shape: a config.json's -> shape; raises CheckpointError.
        weight_names: shape -> the checkpoint's tensors and their shapes.
        sources: shape -> where each tensor under transformers' names comes from.
        words: a folder's tokenizer.
        prompts: prompt form over a tokenizer.
        vocabulary: ids by meaning, for so many rows of the embedding.
        ears: folder, checkpoint, config and width -> what hears, or why nothing does.
        voice: folder and a recording (None for the published voice) -> what speaks, or why nothing.
        beside: bytes of the published ears and voice, by the model's precision.
        derived_prefix: how names of what is made from the weights begin, where a licence asks.
    """

    name: str
    title: str
    kind: str
    repo: str
    files: tuple[str, ...]
    nbytes: int
    parts: tuple[Parts, ...]
    licence: str
    shape: TransformerConfig
    speech_rows: int
    tokens: int
    exits: tuple[int, ...]
    default_exit: int
    heads_name: str
    layout: Interleave
    speech_rate: float
    most_tokens: int
    sampling: SamplingSettings
    system_prompt: str | None
    marks: Mapping[str, int]
    apart: tuple[str, ...]
    read_shape: Callable[[Mapping[str, Any]], TransformerConfig]
    weight_names: Callable[[TransformerConfig], dict[str, tuple[int, ...]]]
    sources: Callable[[TransformerConfig], Sources]
    words: Callable[[Path], Words]
    prompts: Callable[[Words], Prompts]
    vocabulary: Callable[[int], Vocabulary]
    ears: Callable[[Path, Checkpoint, Mapping[str, Any], int], tuple[Hearing | None, str]]
    voice: Callable[[Path, Path | None], tuple[Speaking | None, str]]
    beside: Callable[[torch.dtype], int]
    derived_prefix: str = ""

    @property
    def all_nbytes(self) -> int:
        """Bytes of every file that is fetched, of what hears and speaks too."""
        return self.nbytes + sum(part.nbytes for part in self.parts if not part.own)

    def own_files(self) -> tuple[str, ...]:
        """Files of the same repository that hear or speak."""
        return tuple(name for part in self.parts if part.own for name in part.files)

    def exits_of(self, layers: int) -> tuple[tuple[int, ...], int]:
        """Candidate exits and the default for a depth; the same shares of another depth."""
        if layers == self.shape.num_hidden_layers:
            return self.exits, self.default_exit

        def scaled(layer: int) -> int:
            share = layer / self.shape.num_hidden_layers
            return min(max(round(share * layers), 1), layers - 1)

        return tuple(sorted({scaled(layer) for layer in self.exits})), scaled(self.default_exit)
