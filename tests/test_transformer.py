"""The transformer against transformers' Qwen2ForCausalLM and GlmForCausalLM, random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from spark.cache import KVCache
from spark.heads import Head
from spark.transformer import Transformer
from spark.weights import TransformerConfig
from tests.tiny import random_state, tiny_config

CASES: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "qwen2"},
    "qwen2, one head a key": {"family": "qwen2", "num_key_value_heads": 4},
    "qwen2, tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen2, theta of the 8 B model": {"family": "qwen2", "rope_theta": 1e6},
    "glm": {"family": "glm", "attention_bias": True},
    "glm, no bias": {"family": "glm", "attention_bias": False},
    "glm, as GLM-4-Voice": {"family": "glm", "attention_bias": True, "rms_norm_eps": 3.90625e-08},
}


def reference(config: dict[str, Any], state: dict[str, Tensor]) -> PreTrainedModel:
    """transformers' model with these weights, float32."""
    plain = {key: value for key, value in config.items() if key != "model_type"}
    if config["model_type"] == "glm":
        model: PreTrainedModel = GlmForCausalLM(GlmConfig(pad_token_id=0, **plain))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**plain))
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def pair(case: str, seed: int = 0) -> tuple[Transformer, PreTrainedModel]:
    """Our transformer and theirs, with the same weights."""
    config = tiny_config(**CASES[case])
    state = random_state(config, seed)
    if config.get("attention_bias") is False:
        state = {name: value for name, value in state.items() if not name.endswith("bias")}
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = reference(config, state)
    return Transformer.from_state_dict(model.state_dict(), model.config), model


def run(body: Transformer, ids: Tensor, start: int, cache: KVCache) -> Tensor:
    """Full-depth logits (B, T, V) of ids (B, T) at positions start..."""
    positions = torch.arange(start, start + ids.shape[1])
    states = body.run_layers(0, body.num_layers, body.embed(ids), positions, cache)
    return Head(body.final_gain, body.unembedding, body.config.rms_norm_eps).logits(states)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_prefill_and_pieces_equal_transformers(case: str) -> None:
    body, model = pair(case)
    ids = torch.randint(0, body.config.vocab_size, (2, 48), generator=torch.Generator())
    expected = model(ids).logits
    whole = run(body, ids, 0, body.new_cache(48, batch=2))
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    cache, pieces, start = body.new_cache(64, batch=2), [], 0
    for size in (1, 20, 1, 3, 22, 1):
        pieces.append(run(body, ids[:, start : start + size], start, cache))
        start += size
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["qwen2", "glm"])
@torch.inference_mode()
def test_greedy_tokens_equal_generate(case: str) -> None:
    body, model = pair(case, seed=3)
    prompt = torch.randint(0, body.config.vocab_size, (1, 17), generator=torch.Generator())
    model.generation_config.eos_token_id = None
    every = torch.ones_like(prompt)  # id 0 is an ordinary token here
    expected = model.generate(prompt, attention_mask=every, max_new_tokens=200, do_sample=False)
    cache = body.new_cache(217)
    logits = run(body, prompt, 0, cache)
    reply: list[int] = []
    for position in range(17, 217):
        reply.append(int(logits[0, -1].argmax()))
        logits = run(body, torch.tensor([reply[-1:]]), position, cache)
    assert reply == expected[0, 17:].tolist()


@pytest.mark.parametrize("case", ["qwen2", "glm"])
@torch.inference_mode()
def test_layers_can_be_run_in_ranges(case: str) -> None:
    body, _ = pair(case)
    states = body.embed(torch.tensor([[5, 9, 2]]))
    positions = torch.arange(3)
    expected = body.run_layers(0, 4, states, positions, body.new_cache(3))
    before, cache = states.clone(), body.new_cache(3)
    half = body.run_layers(0, 1, states, positions, cache)
    assert cache.lengths == [3, 0, 0, 0]
    torch.testing.assert_close(body.run_layers(1, 4, half, positions, cache), expected)
    assert torch.equal(states, before), "the states given must not be written to"


@pytest.mark.parametrize("case", CASES)
def test_weights_can_be_given_back(case: str) -> None:
    body, model = pair(case)
    given, expected = body.state_dict(), model.state_dict()
    if body.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())


@torch.inference_mode()
def test_a_batch_may_have_positions_of_its_own() -> None:
    """Two sequences at different offsets give what each gives alone."""
    body, _ = pair("qwen2")
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    positions = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10]])
    both = body.run_layers(0, 4, body.embed(ids), positions, body.new_cache(4, batch=2))
    for row in range(2):
        alone = body.embed(ids[row : row + 1])
        alone = body.run_layers(0, 4, alone, positions[row], body.new_cache(4))
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_half_precision_stays_near() -> None:
    """16-bit weights take another way through the rotation."""
    config = tiny_config("glm")
    state = random_state(config, 1, scale=0.05)
    exact = Transformer.from_state_dict(state, config, torch.float32)
    rough = Transformer.from_state_dict(state, config, torch.bfloat16)
    ids, positions = torch.arange(12)[None], torch.arange(12)
    expected = exact.run_layers(0, 4, exact.embed(ids), positions, exact.new_cache(12))
    given = rough.run_layers(0, 4, rough.embed(ids), positions, rough.new_cache(12))
    assert given.dtype is torch.bfloat16
    torch.testing.assert_close(given.float(), expected, atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type"),
        ({"use_sliding_window": True}, "sliding"),
        ({"rope_theta": None, "rope_parameters": None}, "rope_theta"),
    ],
)
def test_what_is_not_supported_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerConfig.read({**tiny_config(), **change})


def test_a_wrong_state_dict_is_refused() -> None:
    config = tiny_config()
    state = random_state(config)
    with pytest.raises(ValueError, match=r"no lm_head\.weight"):
        Transformer.from_state_dict({k: v for k, v in state.items() if k[:2] != "lm"}, config)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="up_proj"):
        Transformer.from_state_dict(state, config)


def test_a_full_cache_says_so() -> None:
    body = Transformer.from_state_dict(random_state(tiny_config()), tiny_config())
    cache = body.new_cache(2)
    states = body.embed(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match="full"):
        body.run_layers(0, 1, states, torch.arange(3), cache)
    with pytest.raises(ValueError, match="positions"):
        body.new_cache(100_000)


def test_a_fork_is_independent() -> None:
    body = Transformer.from_state_dict(random_state(tiny_config()), tiny_config())
    cache = body.new_cache(4)
    states = body.embed(torch.tensor([[1, 2]]))
    body.run_layers(0, 4, states, torch.arange(2), cache)
    fork = cache.fork(8)
    body.run_layers(0, 2, states, torch.arange(2, 4), fork)
    assert (cache.lengths, fork.lengths) == ([2] * 4, [4, 4, 2, 2])
    assert torch.equal(fork.rows(0)[:, :, :2], cache.rows(0))
    with pytest.raises(ValueError, match="fit"):
        cache.fork(1)
