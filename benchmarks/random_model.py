"""The model a benchmark is asked for; by `random` one of the embedded model's shape.

That one has random weights and needs no files. It speaks no language, but its replies keep to the
layout: rows of text are long, so that text slots hold text, and in speech slots only speech and
control rows are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spark import models
from spark.heads import untrained_head
from spark.modality import Interleave, Vocabulary
from spark.models.base import SpokenLM
from spark.models.loading import say
from spark.transformer import Transformer

N_TEXT, N_CODES = 2400, 1000
CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": N_TEXT + N_CODES + 6,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def _state(seed: int) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 0.05 * torch.randn(*shape, generator=make)

    state = {
        "model.embed_tokens.weight": normal(CONFIG["vocab_size"], 256),
        "model.norm.weight": torch.ones(256),
        "lm_head.weight": normal(CONFIG["vocab_size"], 256),
    }
    state["lm_head.weight"][:N_TEXT] *= 20
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        state[f"{layer}input_layernorm.weight"] = torch.ones(256)
        state[f"{layer}post_attention_layernorm.weight"] = torch.ones(256)
        for name, rows in (("q", 256), ("k", 128), ("v", 128)):
            state[f"{layer}self_attn.{name}_proj.weight"] = normal(rows, 256)
            state[f"{layer}self_attn.{name}_proj.bias"] = normal(rows)
        state[f"{layer}self_attn.o_proj.weight"] = normal(256, 256)
        for name, shape in (("gate", (512, 256)), ("up", (512, 256)), ("down", (256, 512))):
            state[f"{layer}mlp.{name}_proj.weight"] = normal(*shape)
    return state


def named(name: str, **options: Any) -> SpokenLM:
    """The model of that name, `random` for this one; options and errors as of `models.load`."""
    return load() if name == "random" else models.load(name, told=say, **options)


def load(seed: int = 0) -> SpokenLM:
    """The model, float32 on the CPU; prompts are 32 tokens derived from the text's length."""
    marks = range(N_TEXT + N_CODES, N_TEXT + N_CODES + 6)
    bot, eot, start, end, pad, filler = marks
    words = Vocabulary(
        size=N_TEXT + N_CODES + 6,
        speech_start=N_TEXT,
        n_codes=N_CODES,
        stop_ids=(eot,),
        control_ids=tuple(marks),
        filler=filler,
        tts_pad=pad,
        tts_start=start,
        tts_end=end,
    )
    lm = SpokenLM(
        name="random",
        title="Random weights of the embedded shape",
        transformer=Transformer.from_state_dict(_state(seed), CONFIG),
        vocabulary=words,
        layout=Interleave(1, 4),
        encode_prompt=lambda text: [bot, *range(len(text), len(text) + 30), start],
        decode_text=lambda ids: " ".join(str(i) for i in ids),
        max_tokens=600,
        candidate_exits=(5, 7, 9, 11, 12),
        default_exit=11,
    )
    lm.exit_heads = {layer: untrained_head(lm, "speech") for layer in lm.candidate_exits}
    return lm
