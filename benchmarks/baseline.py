"""What decoding is timed beside: transformers' `generate` of the same weights, and reading them.

Knows weights and token ids; knows no policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.generation import BaseStreamer, CompileConfig

from spark import hardware
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings

Way = Literal["dynamic", "static", "compiled"]


def reference_model(lm: SpokenLM) -> Any:
    """transformers' model with the same weights, for `generate`."""
    shape = lm.transformer.config
    shared: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.rms_norm_eps,
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "rope_theta": shape.rope_theta,
    }
    config: Any
    kind: Any
    if shape.family == "glm":
        bias = lm.transformer.layers[0].qkv_bias is not None
        config, kind = GlmConfig(**shared, attention_bias=bias, pad_token_id=0), GlmForCausalLM
    else:
        config, kind = Qwen2Config(**shared), Qwen2ForCausalLM
    with torch.device("meta"):
        model: Any = kind(config)
    # Tensors that lie as transformers wants them are shared: a GPU need not hold two models.
    state = {name: tensor.contiguous() for name, tensor in lm.transformer.state_dict().items()}
    model.load_state_dict(state, strict=not shape.tie_word_embeddings, assign=True)
    if shape.tie_word_embeddings:
        model.tie_weights()
    with torch.device(lm.transformer.device):  # its table is no part of the state
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.generation_config.eos_token_id = None
    return model.eval()


class Clock(BaseStreamer):
    """Notes when `generate` hands over each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then with each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""

    def ms_per_token(self) -> float:
        """From the first new token to the last: prefill apart."""
        first, last = self.times[1], self.times[-1]
        return 1e3 * (last - first) / (len(self.times) - 2)


def compiling() -> CompileConfig:
    """transformers' own compiled decoding, which it leaves out on a CPU unless told otherwise."""
    config = CompileConfig(mode="default")
    config._compile_all_devices = True  # type: ignore[assignment]
    return config


def generate_ms(model: Any, ids: list[int], tokens: int, way: Way = "dynamic") -> float:
    """Milliseconds a token of transformers' `generate` with the same sampling, prefill apart.

    Args:
        model: from `reference_model`.
        ids: the prompt.
        tokens: to be made.
        way: with a cache that grows, with one of the final size, or compiled with that; then the
            first call with a length compiles.
    """
    prompt, clock, plain = torch.tensor([ids], device=model.device), Clock(), SamplingSettings()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=True,
        temperature=plain.temperature,
        top_p=plain.top_p,
        top_k=plain.top_k,
        streamer=clock,
        cache_implementation=None if way == "dynamic" else "static",
        compile_config=compiling() if way == "compiled" else None,
        disable_compile=way != "compiled",
    )
    return clock.ms_per_token()


def matrices(lm: SpokenLM) -> list[Tensor]:
    """Every matrix a full step reads, whole head included."""
    body = lm.transformer
    blocks = [layer.dense() for layer in body.layers]
    layers = [m for layer in blocks for m in (layer.qkv, layer.output, layer.gate_up)]
    return [*layers, *(layer.down for layer in blocks), body.unembedding]


@torch.inference_mode()
def reading_ms(nbytes: int, device: torch.device) -> float:
    """Milliseconds to read so many bytes once, from one end to the other, adding them up."""
    stretch = torch.ones(nbytes // 8, dtype=torch.int64, device=device)
    return _timed(stretch.sum, device)


@torch.inference_mode()
def copying_ms(nbytes: int, device: torch.device) -> float:
    """Milliseconds to read half as many bytes and write them beside: so many move."""
    one, other = torch.ones(nbytes // 8, dtype=torch.int64, device=device).tensor_split(2)
    return _timed(lambda: other[: len(one)].copy_(one[: len(other)]), device)


@torch.inference_mode()
def floor_ms(weights: list[Tensor]) -> float:
    """Milliseconds to multiply every matrix with one vector, once."""
    vectors = {w.shape[1]: w.new_ones(w.shape[1]) for w in weights}

    def multiply() -> None:
        for weight in weights:
            torch.mv(weight, vectors[weight.shape[1]])

    return _timed(multiply, weights[0].device)


def _timed(call: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    """Milliseconds of a call, mean over `rounds` after one that does not count."""
    call()
    hardware.wait(device)
    begun = time.perf_counter()
    for _ in range(rounds):
        call()
    hardware.wait(device)
    return 1e3 * (time.perf_counter() - begun) / rounds
