"""How GLM-4-Voice hears: half of Whisper's large encoder, pooled to 12.5 Hz and quantised.

Names and numbers as in the published glm-4-voice-tokenizer: causal convolutions, attention over
the past and one's own block of 4 s, the mean of 4 states, the nearest row of a codebook. A prompt
then holds plain ids, so the language model knows nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spark.models.base import Heard
from spark.models.checkpoint import Checkpoint, CheckpointError, read_json, whole_numbers
from spark.models.family import Hearing
from spark.models.recordings import heard_samples
from spark.models.strict import expect, fill, nbytes
from spark.models.vocoding import Parts
from spark.speech.audio import Pcm
from spark.speech.mel import WHISPER_BINS, WHISPER_HOP, whisper_mel
from spark.speech.whisper import Block

PARTS = Parts(
    "GLM-4-Voice's speech tokenizer",
    "zai-org/glm-4-voice-tokenizer",
    ("config.json", "model.safetensors"),
    nbytes=1_460_000_000,
)
_PART = 480_000  # samples, 30 s
_WHAT = "the speech tokenizer"
# What the architecture fixes beside the numbers of config.json.
_FIXED = {
    "quantize_causal_block_size": 200,
    "pooling_kernel_size": 4,
    "pooling_type": "avg",
    "encoder_causal_convolution": True,
}
_UNUSED = ("ema_count", "ema_weight", "embed_positions2.weight")  # of training, and of a decoder
_NAMES = (
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)


class SpeechTokenizer(nn.Module):
    """16 kHz sound to codes at 12.5 Hz.

    Args:
        config: fields of the published config.json.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["d_model"], config["encoder_ffn_dim"]
        heads, layers = config["encoder_attention_heads"], config["quantize_position"]
        self.block, self.pool = config["quantize_causal_block_size"], config["pooling_kernel_size"]
        self.conv1 = nn.Conv1d(config["num_mel_bins"], width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(config["max_source_positions"], width)
        self.layers = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.codebook = nn.Embedding(config["quantize_vocab_size"], width)

    def encode(self, samples: Tensor) -> Tensor:
        """Codes (ceil(n / 1280),) of at most 30 s of 16 kHz samples (n,)."""
        step = WHISPER_HOP * 2 * self.pool
        padded = F.pad(samples, (0, -len(samples) % step))
        return self.quantize(whisper_mel(padded), -(-len(samples) // WHISPER_HOP))

    def quantize(self, mel: Tensor, valid: int) -> Tensor:
        """Codes (T / 8,) of a log-mel (bins, T) whose first `valid` frames are sound."""
        states = self.states(mel.to(self.codebook.weight), valid)
        pooled = F.avg_pool1d(states.t(), self.pool).t()
        return torch.cdist(pooled.float(), self.codebook.weight.float()).argmin(dim=1)

    def states(self, mel: Tensor, valid: int) -> Tensor:
        """States (T / 2, D) after the last layer."""
        hidden = F.gelu(self.conv1(F.pad(mel[None], (2, 0))))  # padded on the left: causal
        states = F.gelu(self.conv2(F.pad(hidden, (2, 0)))).transpose(1, 2)
        places = torch.arange(states.shape[1], device=states.device)
        states = states + self.embed_positions.weight[places]
        blocks = places // self.block
        seen = (places <= places[:, None]) | (blocks == blocks[:, None])
        seen &= places < (valid + 1) // 2
        for layer in self.layers:
            states = layer(states, seen[None, None])
        return states[0]


PUBLISHED = {
    **_FIXED, "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20,
    "quantize_position": 16, "num_mel_bins": 128, "max_source_positions": 1500,
    "quantize_vocab_size": 16384,
}  # fmt: skip


@cache
def published_bytes() -> int:
    """Of the published speech tokenizer."""
    with torch.device("meta"):
        return nbytes(SpeechTokenizer(PUBLISHED))


class GlmListener:
    """Turns recordings into codes between the marks of a recording.

    Args:
        tokenizer: of speech.
        begin: id of `<|begin_of_audio|>`.
        end: id of `<|end_of_audio|>`.
        first_code: id of the first code.
    """

    def __init__(self, tokenizer: SpeechTokenizer, begin: int, end: int, first_code: int) -> None:
        self._tokenizer, self._begin, self._end = tokenizer, begin, end
        self._first = first_code

    @torch.inference_mode()
    def hear(self, pcm: Pcm, rate: int) -> tuple[Heard, ...]:
        """One run of ids of a mono recording (n,) at `rate` Hz; see `Listener`."""
        device = self._tokenizer.codebook.weight.device
        parts = heard_samples(pcm, rate).to(device).split(_PART)
        codes = [code for part in parts for code in self._tokenizer.encode(part).tolist()]
        return (Heard((self._begin, *(self._first + code for code in codes), self._end)),)


@dataclass(frozen=True)
class TokenizerFiles:
    """A speech tokenizer's files, checked as far as that reads no weights.

    Attributes:
        config: its config.json.
        checkpoint: its weights, open.
        names: of the tensors it needs: ours, and theirs.
    """

    config: Mapping[str, Any]
    checkpoint: Checkpoint
    names: Mapping[str, str]

    def planned(self) -> SpeechTokenizer:
        """It without weights."""
        with torch.device("meta"):
            return SpeechTokenizer(self.config)

    def read(self, device: torch.device | str = "cpu") -> SpeechTokenizer:
        """It on a device, in float32 as published: nearest rows are told apart by little.

        Raises:
            CheckpointError: a tensor holds no numbers.
        """
        tokenizer = self.planned().to_empty(device=device)
        state = {ours: self.checkpoint.tensor(theirs) for ours, theirs in self.names.items()}
        fill(tokenizer, state, _WHAT)
        return tokenizer


def open_tokenizer(folder: Path) -> TokenizerFiles:
    """The speech tokenizer of a folder with the files of `PARTS`.

    Raises:
        CheckpointError: a file is missing or damaged, or not of this model.
    """
    config = read_json(folder, "config.json")
    needed = ("d_model", "encoder_ffn_dim", "encoder_attention_heads", "quantize_position",
              "num_mel_bins", "max_source_positions", "quantize_vocab_size")  # fmt: skip
    sizes = whole_numbers(config, needed, f"config.json of {_WHAT}")
    other = [name for name, value in _FIXED.items() if config.get(name) != value]
    if sizes["d_model"] % sizes["encoder_attention_heads"]:
        other.append("encoder_attention_heads")
    if sizes["num_mel_bins"] != WHISPER_BINS:
        other.append("num_mel_bins")
    if other:
        raise CheckpointError(
            f"config.json of {_WHAT} has no usable {', '.join(other)}: it is of another model; "
            f"take {PARTS.repo}"
        )
    checkpoint = Checkpoint.open(folder)
    names = {
        _own_name(name): name
        for name in checkpoint.shapes
        if name not in _UNUSED and not _is_surplus(name, config["quantize_position"])
    }
    files = TokenizerFiles(config, checkpoint, names)
    shapes = {ours: checkpoint.shapes[theirs] for ours, theirs in names.items()}
    expect(files.planned(), shapes, _WHAT)
    return files


def offered(folder: Path, begin: int, end: int, first_code: int) -> tuple[Hearing | None, str]:
    """What hears beside a model's folder, or why nothing does; numbers as of `GlmListener`.

    Raises:
        CheckpointError: see `open_tokenizer`; a file that is there has to be right.
    """
    if (found := PARTS.found(folder)) is None:
        return None, PARTS.reason(folder)
    files = open_tokenizer(found)
    size = nbytes(files.planned())
    return Hearing(
        lambda _: size,
        lambda device, _: GlmListener(files.read(device), begin, end, first_code),
    ), ""


def _own_name(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _is_surplus(name: str, layers: int) -> bool:
    """Whether a tensor belongs to layers above the codebook, which some copies still hold."""
    number = re.match(r"layers\.(\d+)\.", name)
    return number is not None and int(number[1]) >= layers
