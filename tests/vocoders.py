"""The large models' vocoders in the small: shapes, weights that follow from their names, files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spark.models.glm_flow import GlmFlow, GlmFlowShape
from spark.models.glm_vocoder import GlmVocoder
from spark.models.step_flow import StepFlow, StepFlowShape, Voice
from spark.models.step_vocoder import StepVocoder
from spark.speech.hift import Hift, HiftShape, resolved

M = TypeVar("M", bound=nn.Module)
CODES = 128
STEP_FLOW = StepFlowShape(
    codes=CODES, width=16, heads=2, inner=24, layers=2, up_layers=1, depth=2, head_dim=8
)
GLM_FLOW = GlmFlowShape(
    codes=CODES, width=16, heads=2, inner=24, layers=2, channels=16, blocks=1, middle=2,
    decoder_heads=2, head_dim=8,
)  # fmt: skip
STEP_HIFT = HiftShape(24_000, (8, 5, 3), (16, 11, 7), (7, 7, 11), True, width=16)
GLM_HIFT = HiftShape(22_050, (8, 8), (16, 16), (7, 11), False, width=8)


def numbers(name: str, *shape: int, scale: float = 0.3) -> Tensor:
    """Normal numbers that follow from a name, on any machine and version of torch."""
    made = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy((scale * made).astype(np.float32))


def named_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights for names and shapes; the pitch is that of a voice."""
    state = {name: numbers(name, *shape) for name, shape in shapes.items()}
    if "f0_predictor.classifier.bias" in state:
        state["f0_predictor.classifier.bias"] = torch.tensor([150.0])
    return state


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def filled(module: M) -> M:
    """The module with `named_state`, as if weight normalisation had been resolved."""
    module.load_state_dict(resolved(named_state(shapes_of(module))))
    return module.eval().requires_grad_(False)


def some_codes(count: int, seed: int = 0) -> list[int]:
    return [int(code) for code in np.random.RandomState(seed).randint(CODES, size=count)]


def some_voice(codes: int = 9) -> Voice:
    mel = numbers("voice.mel", 2 * codes, 80, scale=1.0)
    return Voice(some_codes(codes, seed=9), mel, numbers("voice.speaker", 192, scale=1.0))


def set_noise(flow: StepFlow | GlmFlow, frames: int = 600) -> None:
    """Noise that follows from a name, in place of torch's."""
    flow.noise = numbers("noise", 80, frames, scale=1.0)


def step_vocoder() -> StepVocoder:
    return StepVocoder(filled(StepFlow(STEP_FLOW)), filled(Hift(STEP_HIFT)), some_voice())


def glm_vocoder() -> GlmVocoder:
    return GlmVocoder(filled(GlmFlow(GLM_FLOW)), filled(Hift(GLM_HIFT)))


def split(state: Mapping[str, Tensor], spelling: tuple[str, str]) -> dict[str, Tensor]:
    """A vocoder's state as it is published: weights of its normalised layers in two parts."""
    found = {}
    for name, tensor in state.items():
        normed = name.endswith(".weight") and tensor.dim() == 3 and "source_downs" not in name
        if not normed:
            found[name] = tensor
            continue
        gain = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
        base = name.removesuffix(".weight")
        found[f"{base}.{spelling[0]}"], found[f"{base}.{spelling[1]}"] = gain, 2.0 * tensor
    return found


SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


# ONNX files, written field by field (protobuf's wire format, ONNX's onnx.proto)


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _value(name: str, kind: int, *dims: int | str) -> bytes:
    shape = b"".join(
        _field(1, _field(1, dim) if isinstance(dim, int) else _field(2, dim)) for dim in dims
    )
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _node(op: str, given: str, made: str, **attributes: int | list[int]) -> bytes:
    body = b"".join(_field(1, name) for name in given.split()) + _field(2, made) + _field(4, op)
    for name, value in attributes.items():
        if isinstance(value, int):
            inside = _field(1, name) + _field(3, value) + _field(20, 2)
        else:
            inside = _field(1, name) + b"".join(_field(8, v) for v in value) + _field(20, 7)
        body += _field(5, inside)
    return body


def _model(nodes: list[bytes], given: list[bytes], made: bytes, weights: bytes = b"") -> bytes:
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "g") + weights
    graph += b"".join(_field(11, value) for value in given) + _field(12, made)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def write_voice_models(folder: Path) -> None:
    """Stand-ins with the published models' names and forms: the loudest bin of each 40 ms as its
    code, and a fixed projection of the mean filter bank as the speaker."""
    pool = _node("MaxPool", "feats", "pooled", kernel_shape=[4], strides=[4])
    loudest = _node("ArgMax", "pooled", "codes", axis=1, keepdims=0)
    tokenizer = _model(
        [pool, loudest],
        [_value("feats", 1, 1, 128, "T"), _value("feats_length", 6, 1)],
        _value("codes", 7, 1, "N"),
    )
    (folder / "speech_tokenizer_v2_25hz.onnx").write_bytes(tokenizer)
    matrix = numbers("campplus", 80, 192).numpy()
    weights = _field(1, 80) + _field(1, 192) + _field(2, 1) + _field(8, "w")
    weights = _field(5, weights + _field(9, matrix.tobytes()))
    squares = _node("Mul", "input input", "power")
    mean = _node("ReduceMean", "power", "mean", axes=[1], keepdims=0)
    product = _node("MatMul", "mean w", "output")
    speaker = _model(
        [squares, mean, product], [_value("input", 1, "B", "T", 80)],
        _value("output", 1, "B", 192), weights,
    )  # fmt: skip
    (folder / "campplus.onnx").write_bytes(speaker)
