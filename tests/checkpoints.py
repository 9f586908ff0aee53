"""Checkpoints of the large models in the small: real names, dtypes, config fields and file layout.

Widths and depths are small, weights random (seeded); ids are the published ones, so that the
embeddings have as many rows as the real models'. Shards and an index, bf16, as on the hub.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from spark.models import glm4_voice, step_audio_2, step_listener

SHARDS = 3
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPOKEN_WORDS = ("the", " the", "hello", " world", "human", "assistant", "system", " capital")


def normal(make: torch.Generator, *shape: int, scale: float = 0.05) -> Tensor:
    """Random bf16 values."""
    return (scale * torch.randn(*shape, generator=make)).to(torch.bfloat16)


def write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    """The state in `SHARDS` files with an index, as transformers writes them."""
    names, placed = list(state), {}
    size = -(-len(names) // SHARDS)
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = {name: state[name].contiguous() for name in names[number * size :][:size]}
        save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level vocabulary and merges that spell `SPOKEN_WORDS`, in transformers' letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    rules = []
    for word in SPOKEN_WORDS:
        word = word.replace(" ", "Ġ")
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                rules.append(pair)
    return vocabulary, rules


def write_step_tokenizer(folder: Path, marks: dict[str, int]) -> None:
    """tokenizer.json of Qwen2.5's form: ids below 151643 are text, most never reached."""
    vocabulary, rules = merges()
    for number in range(len(vocabulary), step_audio_2.FIRST_MARK):
        vocabulary[f"\u2400{number}"] = number  # no byte is written with this letter
    tokenizer = Tokenizer(BPE(vocabulary, rules))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": not name.startswith("<audio_")}
        for name, i in sorted(marks.items(), key=lambda item: item[1])
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def step_marks() -> dict[str, int]:
    """Every added token, with stand-ins for the names that are not published."""
    marks = dict(step_audio_2.KNOWN)
    taken = set(marks.values())
    for i in range(step_audio_2.FIRST_MARK, step_audio_2.FIRST_SPEECH):
        if i not in taken:
            marks[f"<|unnamed_{i}|>"] = i
    return marks


def step_config(layers: int = 4, **text: Any) -> dict[str, Any]:
    """config.json with the published fields."""
    return {
        "architectures": ["StepAudio2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_step_audio_2.StepAudio2Config"},
        "model_type": "step_audio_2",
        "bos_token_id": 1,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_attention_groups": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": layers,
            "max_position_embeddings": 512,
            "vocab_size": 158720,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": None,
            "hidden_act": "silu",
            "eos_token_id": 151643,
            "torch_dtype": "bfloat16",
            **text,
        },
        "audio_encoder_config": {
            "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2,
            "n_audio_layer": 1, "n_codebook_size": 4096, "llm_dim": 32, "kernel_size": 3,
            "adapter_stride": 2,
        },
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def step_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights of the language model and of what hears."""
    make = torch.Generator().manual_seed(seed)
    shape = step_audio_2.shape_of(config)
    state = {}
    for name, size in step_audio_2.weight_names(shape).items():
        state[name] = normal(make, *size) + (1 if name.endswith("norm.weight") else 0)
    steer(state, "model.embed_tokens.weight", "lm_head.weight", step_phases())
    for name, tensor in step_listener.Ears(step_listener.Shape.read(config)).state_dict().items():
        state[name] = normal(make, *tensor.shape)
    return state


def step_phases() -> list[tuple[list[int], int, int]]:
    """(ids, own phase, phase asked for next) of TA4: text, then four codes; `<tts_end>` ends."""
    marks = step_audio_2.KNOWN
    first = step_audio_2.FIRST_SPEECH
    groups = [(list(range(200)), 0, 4)]
    for place in range(4):
        ids = list(range(first + place, first + 400, 4))
        groups.append((ids, 1 + place, place))
    groups.append(([marks["<tts_start>"]], 4, 9))
    groups.append(([marks["<tts_end>"]], 5, 4))
    groups.append(([marks["<|EOT|>"]], 6, 5))
    return groups


def steer(
    state: dict[str, Tensor], embedding: str, head: str, groups: list[tuple[list[int], int, int]]
) -> None:
    """Let embeddings carry a phase and head rows ask for the phase after it, as in tests.tiny."""
    size = 8
    state[embedding][:, :size] = 0
    state[head][:, :size] = 0
    state[head][:, 0] = -1  # ids outside the groups are unlikely everywhere
    for ids, own, asked in groups:
        state[embedding][ids, own % size] = 3
        state[head][ids, 0] = 0
        if asked < size:
            state[head][ids, asked] = 3


def write_step(folder: Path, layers: int = 4, seed: int = 0, **text: Any) -> Path:
    """A whole folder of Step-Audio-2-mini."""
    folder.mkdir(parents=True, exist_ok=True)
    config = step_config(layers, **text)
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, step_state(config, seed))
    write_step_tokenizer(folder, step_marks())
    return folder


def write_ranks(folder: Path, size: int) -> None:
    """tokenizer.model: every byte, then what spells `SPOKEN_WORDS`, then ranks never reached."""
    ranks = {bytes([i]): i for i in range(256)}
    for word in SPOKEN_WORDS:
        raw = word.encode()
        for end in range(2, len(raw) + 1):
            ranks.setdefault(raw[:end], len(ranks))
    for number in range(len(ranks), size):
        ranks[b"\xff\xfe\xfd" + number.to_bytes(4, "big")] = number
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")


def glm_config(layers: int = 4, **changes: Any) -> dict[str, Any]:
    """config.json with the published fields."""
    return {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "eos_token_id": [151329, 151336, 151338],
        "ffn_hidden_size": 48,
        "hidden_size": 32,
        "kv_channels": 8,
        "layernorm_epsilon": 3.90625e-08,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": layers,
        "original_rope": True,
        "pad_token_id": 151329,
        "padded_vocab_size": 168960,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": 1,
        "seq_length": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 168960,
        **changes,
    }


def glm_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights under the published names, and the rotary buffer."""
    make = torch.Generator().manual_seed(seed)
    shape = glm4_voice.shape_of(config)
    state = {
        name: normal(make, *size) + (1 if name.endswith("norm.weight") else 0)
        for name, size in glm4_voice.weight_names(shape).items()
    }
    embedding = "transformer.embedding.word_embeddings.weight"
    steer(state, embedding, "transformer.output_layer.weight", glm_phases())
    state["transformer.rotary_pos_emb.inv_freq"] = normal(make, 2)
    return state


def glm_phases() -> list[tuple[list[int], int, int]]:
    """Text asks for text or codes, codes for codes; <|user|> now and then."""
    first = glm4_voice.FIRST_SPEECH
    return [
        (list(range(200)), 0, 0),
        (list(range(first, first + 400)), 1, 1),
        ([glm4_voice.MARKS["<|user|>"]], 2, 1),
    ]


def glm_marks() -> dict[str, int]:
    """Every added token, with stand-ins for the reserved names."""
    marks = dict(glm4_voice.KNOWN)
    taken = set(marks.values())
    for i in range(glm4_voice.FIRST_MARK, glm4_voice.FIRST_SPEECH):
        if i not in taken:
            marks[f"<|reserved_{i}|>"] = i
    return marks


def write_glm(folder: Path, layers: int = 4, seed: int = 0, **changes: Any) -> Path:
    """A whole folder of GLM-4-Voice-9B."""
    folder.mkdir(parents=True, exist_ok=True)
    config = glm_config(layers, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, glm_state(config, seed))
    write_ranks(folder, glm4_voice.FIRST_MARK)
    table = {
        str(i): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                 "single_word": False, "special": True}
        for name, i in glm_marks().items()
    }  # fmt: skip
    tokenizer = {"added_tokens_decoder": table, "tokenizer_class": "ChatGLM4Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder
