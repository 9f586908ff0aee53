"""A spoken language model of random weights in a few kilobytes, for everyone's tests.

Its weights are random but for one thing: token embeddings carry a phase (text, 1st code, 2nd
code, ...) and head rows ask for the next one, so that replies keep to the layout most of the
time, leave it now and then, and come to an end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spark.heads import Head, untrained_head
from spark.modality import Interleave, Vocabulary
from spark.models.base import Pcm, PromptError, SpokenLM
from spark.transformer import Transformer

LETTERS = "abcdefghijklmnopqrstuvwxyz '.?,0123456789"
MARKS = ("BOT", "EOT", "tts_start", "tts_end", "tts_pad")
N_CODES = 24


def tiny_vocabulary() -> Vocabulary:
    """Letters, then control marks, then codes, then the filler."""
    mark = {name: len(LETTERS) + i for i, name in enumerate(MARKS)}
    first = len(LETTERS) + len(MARKS)
    return Vocabulary(
        size=first + N_CODES + 1,
        speech_start=first,
        n_codes=N_CODES,
        stop_ids=(mark["EOT"],),
        control_ids=(*mark.values(), first + N_CODES),
        filler=first + N_CODES,
        tts_pad=mark["tts_pad"],
        tts_start=mark["tts_start"],
        tts_end=mark["tts_end"],
    )


def tiny_config(family: str = "qwen2", layers: int = 4, **changes: Any) -> dict[str, Any]:
    """A config.json in transformers' words: 4 heads, 2 of keys, width 32."""
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": tiny_vocabulary().size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    return {**config, **changes}


def random_state(config: dict[str, Any], seed: int = 0, scale: float = 0.2) -> dict[str, Tensor]:
    """A random state dict under transformers' names, float64."""
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=make, dtype=torch.float64)

    width, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    rows = {"q": config["num_attention_heads"] * head_dim}
    rows["k"] = rows["v"] = config["num_key_value_heads"] * head_dim
    state = {"model.embed_tokens.weight": normal(config["vocab_size"], width)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, size in rows.items():
            state[f"{layer}self_attn.{name}_proj.weight"] = normal(size, width)
            state[f"{layer}self_attn.{name}_proj.bias"] = normal(size)
        state[f"{layer}self_attn.o_proj.weight"] = normal(width, rows["q"])
        if config["model_type"] == "glm":
            state[f"{layer}mlp.gate_up_proj.weight"] = normal(2 * inner, width)
        else:
            state[f"{layer}mlp.gate_proj.weight"] = normal(inner, width)
            state[f"{layer}mlp.up_proj.weight"] = normal(inner, width)
        state[f"{layer}mlp.down_proj.weight"] = normal(width, inner)
        state[f"{layer}input_layernorm.weight"] = 1 + normal(width)
        state[f"{layer}post_attention_layernorm.weight"] = 1 + normal(width)
    state["model.norm.weight"] = 1 + normal(width)
    state["lm_head.weight"] = normal(config["vocab_size"], width)
    return state


def _steer(state: dict[str, Tensor], words: Vocabulary, period: int, ends: bool) -> None:
    """Make embeddings carry a phase of the group and head rows ask for the phase after it.

    Phases: 0 text, 1..period-1 codes, then one for the end of speech, which asks for a stop.
    """
    embedding, rows = state["model.embed_tokens.weight"], state["lm_head.weight"]
    phase = torch.zeros(words.size, dtype=torch.long)
    for code in range(words.n_codes):
        phase[words.speech_start + code] = 1 + code % (period - 1)
    asked = (phase - 1) % period
    phase[words.tts_start] = phase[words.filler] = period - 1
    phase[words.tts_end] = asked[list(words.stop_ids)] = period
    eye = torch.eye(period + 1, dtype=torch.float64)
    embedding[:, : period + 1] = 3 * eye[phase]
    rows[:, : period + 1] = 3 * eye[asked]
    rows[list(words.control_ids), : period + 1] *= 0.8
    rows[words.tts_end, : period + 1] *= 1.05 / 0.8  # about one group in twenty is the last
    wanted = {words.tts_pad, *((words.tts_end, *words.stop_ids) if ends else ())}
    for mark in set(words.control_ids) - wanted:
        rows[mark, : period + 1] = -1


class BleepVocoder:
    """Each code is a short tone of its own pitch; pieces join without a seam."""

    sample_rate = 8000
    frame_rate = 25.0

    def decode(self, codes: Sequence[int]) -> Pcm:
        """320 samples a code."""
        time = np.arange(320) / self.sample_rate
        tones = [8000 * np.sin(2 * np.pi * (200 + 25 * code) * time) for code in codes]
        return np.concatenate([np.zeros(0), *tones]).astype(np.int16)

    def stream(self) -> BleepStream:
        """A new stream."""
        return BleepStream(self)


@dataclass
class BleepStream:
    """Nothing is held back: a code's tone depends on no other code."""

    vocoder: BleepVocoder

    def push(self, codes: Sequence[int]) -> Pcm:
        """The codes' tones."""
        return self.vocoder.decode(codes)

    def flush(self) -> Pcm:
        """Nothing is left."""
        return self.vocoder.decode([])


def tiny_prompt(text: str) -> list[int]:
    """BOT, letters, EOT, BOT, tts_start; PromptError for anything but plain letters."""
    text = text.strip().lower()
    if not text:
        raise PromptError("The prompt is empty. Type a question or a sentence.")
    if len(text) > 200:
        raise PromptError("The prompt is too long. Use at most 200 letters.")
    if unknown := sorted(set(text) - set(LETTERS)):
        raise PromptError(f"This model cannot read {' '.join(unknown)}. Use English letters.")
    mark = {name: len(LETTERS) + i for i, name in enumerate(MARKS)}
    words = [LETTERS.index(letter) for letter in text]
    return [mark["BOT"], *words, mark["EOT"], mark["BOT"], mark["tts_start"]]


def tiny_text(ids: Sequence[int]) -> str:
    """Letters of the ids, without pads and control tokens."""
    return "".join(LETTERS[i] for i in ids if i < len(LETTERS))


def tiny_lm(
    seed: int = 0,
    layers: int = 4,
    family: str = "qwen2",
    layout: Interleave | None = None,
    dtype: torch.dtype = torch.float32,
    exits: tuple[int, ...] | None = None,
    vocoder: bool = True,
    max_tokens: int = 120,
    ends: bool = True,
    **changes: int,
) -> SpokenLM:
    """A spoken language model of random weights.

    Args:
        seed: of the weights.
        layers: depth.
        family: "qwen2" or "glm".
        layout: TA4 where None.
        dtype: of the weights.
        exits: candidate exit layers with a fitted-looking head each; all layers where None.
        vocoder: whether it can make sound.
        max_tokens: longest reply.
        ends: whether replies come to an end before that.
        changes: of the config's sizes.
    """
    layout = layout or Interleave(1, 4)
    words, config = tiny_vocabulary(), tiny_config(family, layers, **changes)
    state = random_state(config, seed, scale=0.1)
    _steer(state, words, 5, ends)
    body = Transformer.from_state_dict(state, config, dtype=dtype)
    exits = tuple(range(1, layers)) if exits is None else exits
    lm = SpokenLM(
        name="tiny",
        title="Tiny (random weights)",
        transformer=body,
        vocabulary=words,
        layout=layout,
        encode_prompt=tiny_prompt,
        decode_text=tiny_text,
        max_tokens=max_tokens,
        candidate_exits=exits,
        default_exit=exits[-1],
        vocoder=BleepVocoder() if vocoder else None,
    )
    lm.exit_heads = {layer: _exit_head(lm, layer) for layer in exits}
    return lm


def _exit_head(lm: SpokenLM, layer: int) -> Head:
    """The base head's speech rows with a small random lens, so that it is a head of its own."""
    base, width = untrained_head(lm, "speech"), lm.transformer.config.hidden_size
    make = torch.Generator().manual_seed(layer)
    lens = 0.02 * torch.randn(width, width, generator=make, dtype=torch.float64)
    bias = torch.zeros(width, dtype=base.gain.dtype)
    return Head(base.gain, base.rows, base.eps, base.row_ids, lens.to(bias.dtype), bias)
