"""What the vendors' own code makes of weights that follow from their names.

    pip install --no-deps --target DIR minicpmo-utils==1.0.7 token2wav-cosyvoice==0.1.0 \\
        diffusers==0.42.1 einops==0.8.2
    PYTHONPATH=DIR python -m tests.golden.make_vocoders

The packages (Apache-2.0) hold Step-Audio-2's token2wav, and of CosyVoice what GLM-4-Voice's decoder
is made of. Stored are only the names of their weights and what they gave.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import vocoders as tiny

PATH = Path(__file__).parent / "vocoders.safetensors"
STEP_CODES = 105  # four pieces and a rest; the memory is full after the third
EVERY = 16  # bins kept of a mel


class _Anything(ModuleType):
    """Stands in for what the packages import and this does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _vendors() -> None:
    """Make the packages importable without what they need beside torch."""
    for name in (
        "cosyvoice.llm.llm", "cosyvoice.flow.flow", "cosyvoice.flow.flow_matching",
        "cosyvoice.hifigan.generator", "cosyvoice.hifigan.f0_predictor", "conformer",
        "cosyvoice.hifigan.hifigan", "cosyvoice.cli.model", "matcha.utils.audio",
        "matcha.hifigan.models", "cosyvoice.hifigan.discriminator", "cosyvoice.utils.file_utils",
        "omegaconf",
    ):  # fmt: skip
        sys.modules[name] = _Anything(name)
    spec = find_spec("stepaudio2")
    assert spec is not None
    bare = ModuleType("stepaudio2")  # its own beginning imports what is not installed
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["stepaudio2"] = bare


def _named(module: torch.nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Fill a vendor's module by the names of its weights; the names and shapes."""
    shapes = {prefix + name: shape for name, shape in tiny.shapes_of(module).items()}
    state = tiny.named_state(shapes)
    module.load_state_dict({name.removeprefix(prefix): t for name, t in state.items()})
    module.eval()
    return {name: list(shape) for name, shape in shapes.items()}


def step_flow() -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Step's flow, in pieces and whole."""
    module = importlib.import_module
    part, shape = "stepaudio2.cosyvoice2.", tiny.STEP_FLOW
    encoder = module(f"{part}transformer.upsample_encoder_v2").UpsampleConformerEncoderV2(
        input_size=shape.width, output_size=shape.width, num_blocks=shape.layers,
        num_up_blocks=shape.up_layers, attention_heads=shape.heads, linear_units=shape.inner,
    )  # fmt: skip
    dit = module(f"{part}flow.decoder_dit").DiT(
        in_channels=320, out_channels=80, depth=shape.depth, num_heads=shape.heads,
        head_dim=shape.head_dim, hidden_size=shape.width,
    )  # fmt: skip
    sizes = (shape.depth, 2, shape.heads, 1000, 2 * shape.head_dim)
    tails = (shape.depth, 2, 2 * shape.width, 2)
    dit.att_cache_buffer, dit.cnn_cache_buffer = torch.zeros(sizes), torch.zeros(tails)
    path = module(f"{part}flow.flow_matching").CausalConditionalCFM(dit)
    path.att_cache_buffer = torch.zeros(10, *sizes)
    path.cnn_cache_buffer = torch.zeros(10, *tails)
    flow = module(f"{part}flow.flow").CausalMaskedDiffWithXvec(
        input_size=shape.width, vocab_size=shape.codes, encoder=encoder, decoder=path
    )
    names = _named(flow)
    path.rand_noise = tiny.numbers("noise", 80, 600, scale=1.0)[None]
    voice, codes = tiny.some_voice(), tiny.some_codes(STEP_CODES)
    mel, speaker, prompt = voice.mel[None], voice.speaker[None], 2 * len(voice.codes)
    cache = flow.setup_cache(torch.tensor([voice.codes + voice.codes[:3]]), mel, speaker)
    found, rest, last = [], codes, False
    while not last:
        last = len(rest) < 28
        cache = {name: tensor.clone() for name, tensor in cache.items()}
        taken = torch.tensor([rest if last else rest[:28]])
        piece, cache = flow.inference_chunk(taken, speaker, cache, last_chunk=last)
        held = cache["estimator_att_cache"]  # trimmed by the vendor's caller
        if held.shape[4] > prompt + 100:
            parts = (held[:, :, :, :, :prompt], held[:, :, :, :, -100:])
            cache["estimator_att_cache"] = torch.cat(parts, dim=4)
        found.append(piece)
        rest = rest[25:]
    with mock.patch("torch.randn_like", lambda like: path.rand_noise[:, :, : like.shape[2]]):
        whole = flow.inference(
            torch.tensor([codes]), torch.tensor([len(codes)]), torch.tensor([voice.codes]),
            torch.tensor([len(voice.codes)]), mel, torch.tensor([prompt]), speaker,
        )  # fmt: skip
    pieces = torch.cat(found, dim=2)
    return names, {"step_pieces": pieces[:, ::EVERY], "step_whole": whole[:, ::EVERY]}


def hift(name: str) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """A vocoder: its pitch, its source without chance, and its filter."""
    shape = tiny.STEP_HIFT if name == "step" else tiny.GLM_HIFT
    part = "stepaudio2.flashcosyvoice.modules.hifigan"
    made = importlib.import_module(part).HiFTGenerator(
        base_channels=shape.width, sampling_rate=shape.sample_rate,
        upsample_rates=list(shape.rates), upsample_kernel_sizes=list(shape.kernels),
        source_resblock_kernel_sizes=list(shape.source_kernels),
        source_resblock_dilation_sizes=[[1, 3, 5]] * len(shape.rates),
    )  # fmt: skip
    names = _named(made)
    mel = tiny.numbers("hift.mel", 1, 80, 6, scale=1.0)
    source = tiny.numbers("hift.source", 1, 1, 6 * shape.hop)
    pitch = made.f0_predictor(mel)
    drawn = made.f0_upsamp(pitch[:, None]).transpose(1, 2)
    still = mock.Mock(return_value=mock.Mock(sample=lambda sample_shape: torch.zeros(sample_shape)))
    with (
        mock.patch("torch.randn_like", torch.zeros_like),
        mock.patch("torch.rand", lambda *size, **_: torch.zeros(*size)),
        mock.patch(f"{part}_components.layers.Uniform", still),
    ):
        sung = made.m_source(drawn)[0].transpose(1, 2)
    return names, {
        f"{name}_pitch": pitch, f"{name}_source": sung, f"{name}_sound": made.decode(mel, source),
    }  # fmt: skip


def glm_flow() -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """The three networks of GLM's flow; its encoder's mask is CosyVoice's for chunks of ten."""
    module, shape = importlib.import_module, tiny.GLM_FLOW
    encoder = module("cosyvoice.transformer.encoder").ConformerEncoder(
        input_size=shape.width, output_size=shape.width, attention_heads=shape.heads,
        linear_units=shape.inner, num_blocks=shape.layers, input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet", selfattention_layer_type="rel_selfattn",
        macaron_style=False, use_cnn_module=False, static_chunk_size=shape.block,
    )  # fmt: skip
    for layer in encoder.encoders:  # as in the CosyVoice that GLM-4-Voice's decoder came from
        layer.norm_ff.eps = layer.norm_mha.eps = 1e-5
    decoder = module("cosyvoice.flow.decoder").ConditionalDecoder(
        in_channels=320, out_channels=80, channels=[shape.channels] * 2, dropout=0.0,
        attention_head_dim=shape.head_dim, n_blocks=shape.blocks, num_mid_blocks=shape.middle,
        num_heads=shape.decoder_heads, act_fn="gelu",
    )  # fmt: skip
    stretch = module("cosyvoice.flow.length_regulator").InterpolateRegulator(80, [1, 1, 1, 1])
    names = _named(encoder, "encoder.") | _named(decoder, "decoder.estimator.")
    names |= _named(stretch, "length_regulator.")
    codes = tiny.numbers("glm.codes", 1, 37, shape.width, scale=1.0)
    given, time = tiny.numbers("glm.given", 1, 320, 51, scale=1.0), torch.tensor([0.3])
    states = tiny.numbers("glm.states", 1, 37, 80, scale=1.0)
    near = torch.nn.functional.interpolate(states.transpose(1, 2), size=254, mode="nearest")
    return names, {
        "glm_encoder": encoder(codes, torch.tensor([37]))[0],
        "glm_unet": decoder(
            given[:, :80], torch.ones(1, 1, 51), given[:, 80:160], time, cond=given[:, 160:]
        )[:, ::EVERY],
        "glm_stretch": stretch.model(near)[:, ::EVERY],
    }


def read_names(packed: str) -> dict[str, tuple[int, ...]]:
    """Names of weights and their shapes, as `main` packs them."""
    shapes = json.loads(zlib.decompress(base64.b85decode(packed)))
    return {name: tuple(shape) for name, shape in shapes.items()}


@torch.inference_mode()
def main() -> None:
    """Write the file."""
    _vendors()
    names, tensors = {}, {}
    for kind, (shapes, found) in {
        "step_flow": step_flow(), "step_hift": hift("step"), "glm_hift": hift("glm"),
        "glm_flow": glm_flow(),
    }.items():  # fmt: skip
        names[kind] = base64.b85encode(zlib.compress(json.dumps(shapes).encode())).decode()
        tensors |= {name: tensor.contiguous() for name, tensor in found.items()}
    save_file(tensors, PATH, metadata=names)


if __name__ == "__main__":
    main()
