"""How Step-Audio-2-mini hears: Whisper's large encoder, pooled to 25 Hz, adapted to 12.5 Hz.

Names and numbers as in its published checkpoint and code: recordings are cut every 25 s, each part
is a run of `<audio_patch>` whose embeddings its features replace. Knows nothing of the language
model but its width and three marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spark.models.base import Heard
from spark.models.checkpoint import Checkpoint, CheckpointError, whole_numbers
from spark.models.family import Hearing
from spark.models.recordings import heard_samples
from spark.models.strict import expect, fill, nbytes
from spark.speech.audio import Pcm
from spark.speech.mel import WHISPER_BINS, whisper_mel
from spark.speech.whisper import Block

PREFIXES = ("encoder.", "adapter.")  # of its tensors in the checkpoint
ADAPTED = 2048  # width between the adaptor's two linear layers
_PART = 400_000  # samples, 25 s
_TAIL = 479  # zeros after each part: three frames more
_MASKED = 2  # of its mel frames at the end


@dataclass(frozen=True)
class Shape:
    """`audio_encoder_config` of a config.json."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    llm_dim: int
    kernel_size: int
    adapter_stride: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """From a whole config.json; CheckpointError where a number is missing or impossible."""
        source = "audio_encoder_config of config.json"
        names = [field.name for field in fields(cls)]
        shape = cls(**whole_numbers(config.get("audio_encoder_config"), names, source))
        uneven = shape.n_audio_state % shape.n_audio_head
        if uneven or shape.n_mels != WHISPER_BINS:
            wrong = "n_audio_head" if uneven else "n_mels"
            raise CheckpointError(f"{source} has no usable {wrong}: fetch it again")
        return shape


class Encoder(nn.Module):
    """Log-mel at 100 Hz to states at 25 Hz."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.n_audio_state
        self.conv1 = nn.Conv1d(shape.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(shape.n_audio_ctx, width)
        blocks = (Block(width, shape.n_audio_head, 4 * width) for _ in range(shape.n_audio_layer))
        self.blocks = nn.ModuleList(blocks)
        self.after_norm = nn.LayerNorm(width)

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mels (B, bins, T) of which `lengths` (B,) frames count -> states (B, T', D), lengths."""
        states = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)
        states = states + self.positional_embedding.weight[: states.shape[1]]
        lengths = (lengths + 1) // 2
        seen = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        for block in self.blocks:
            states = block(states, seen[:, None, None])
        pooled = F.avg_pool1d(states.transpose(1, 2), 2).transpose(1, 2)
        return self.after_norm(pooled), lengths // 2


class Adapter(nn.Module):
    """States at 25 Hz to features at 12.5 Hz, as wide as the language model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.n_audio_state
        self.conv = nn.Conv1d(width, width, shape.kernel_size, shape.adapter_stride, padding=1)
        self.linear1 = nn.Linear(width, ADAPTED)
        self.linear2 = nn.Linear(ADAPTED, shape.llm_dim)

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, D) -> features (B, T', llm_dim), and how many of them count."""
        hidden = F.gelu(self.conv(states.transpose(1, 2))).transpose(1, 2)
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        return self.linear2(F.relu(self.linear1(hidden))), (lengths + 2 - kernel) // stride + 1


class Ears(nn.Module):
    """Encoder and adaptor, under the names of the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.adapter = Adapter(shape)

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, counts = self.adapter(*self.encoder(mels, lengths))
        return features, counts


PUBLISHED = Shape(n_mels=128, n_audio_ctx=1500, n_audio_state=1280, n_audio_head=20,
                  n_audio_layer=32, llm_dim=3584, kernel_size=3, adapter_stride=2)  # fmt: skip


@cache
def published_bytes(dtype: torch.dtype) -> int:
    """Of the published encoder and adaptor in that precision."""
    with torch.device("meta"):
        return nbytes(Ears(PUBLISHED), dtype)


class StepListener:
    """Turns recordings into runs of patches with their features.

    Args:
        ears: encoder and adaptor.
        marks: ids of `<audio_start>`, `<audio_patch>` and `<audio_end>`.
    """

    def __init__(self, ears: nn.Module, marks: tuple[int, int, int]) -> None:
        self._ears, self._marks = ears, marks

    @torch.inference_mode()
    def hear(self, pcm: Pcm, rate: int) -> tuple[Heard, ...]:
        """The parts of a mono recording (n,) at `rate` Hz, of 25 s at most each; see `Listener`."""
        like = next(self._ears.parameters())
        parts = heard_samples(pcm, rate).split(_PART)
        mels = [whisper_mel(F.pad(part, (0, _TAIL))) for part in parts]
        lengths = torch.tensor([mel.shape[1] - _MASKED for mel in mels], device=like.device)
        longest = max(mel.shape[1] for mel in mels)
        padded = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in mels])
        features, counts = self._ears(padded.to(like), lengths)
        start, patch, end = self._marks
        return tuple(
            Heard((start, *[patch] * count, end), rows[:count], offset=1)
            for rows, count in zip(features, counts.tolist(), strict=True)
            if count > 0
        )


def offered(
    checkpoint: Checkpoint, config: Mapping[str, Any], width: int, marks: tuple[int, int, int]
) -> Hearing:
    """What hears, from the tensors under `PREFIXES`, in the language model's precision.

    Args:
        checkpoint: the model's safetensors files.
        config: its config.json.
        width: of the language model.
        marks: see `StepListener`.

    Raises:
        CheckpointError: the tensors are not those of the config, or of another width.
    """
    shape = Shape.read(config)
    if shape.llm_dim != width:
        raise CheckpointError(
            f"the audio encoder gives {shape.llm_dim} values a patch, the language model takes "
            f"{width}: the files are of different models"
        )
    with torch.device("meta"):
        planned = Ears(shape)
    held = [name for name in checkpoint.shapes if name.startswith(PREFIXES)]
    expect(planned, {name: checkpoint.shapes[name] for name in held}, "the checkpoint")

    def read(device: torch.device, dtype: torch.dtype) -> StepListener:
        with torch.device("meta"):  # room is taken once, in the precision and place that stay
            ears = Ears(shape).to(dtype)
        ears = ears.to_empty(device=device)
        fill(ears, {name: checkpoint.tensor(name) for name in held}, "the checkpoint")
        return StepListener(ears, marks)

    return Hearing(lambda dtype: nbytes(planned, dtype), read)
