"""The large models' vocoders: against the vendors' code, and streaming against decoding at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from spark.models import glm_vocoder, step_vocoder, vocoding
from spark.models.base import Vocoder
from spark.models.checkpoint import CheckpointError
from spark.models.glm_flow import GlmFlow, frames_of
from spark.models.step_flow import StepFlow
from spark.models.strict import fill
from spark.speech.flow import GUIDANCE, solve, times
from spark.speech.hift import Hift, resolved
from tests import vocoders as tiny
from tests.golden.make_vocoders import EVERY, PATH, STEP_CODES, read_names

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, Tensor]]:
    """The vendors' names of weights by module, and what they made of them."""
    with safe_open(PATH, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = {kind: read_names(packed) for kind, packed in file.metadata().items()}
    return names, tensors


Golden = tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, Tensor]]


# Against the vendors' code


@torch.inference_mode()
def test_steps_flow_equals_the_vendors(golden: Golden) -> None:
    names, made = golden
    flow = StepFlow(tiny.STEP_FLOW)
    fill(flow, tiny.named_state(names["step_flow"]), "flow.pt")
    tiny.set_noise(flow)
    codes, voice = tiny.some_codes(STEP_CODES), tiny.some_voice()
    state, pieces = flow.begin(voice), []
    while len(codes) >= 28:
        pieces.append(flow.piece(codes[:28], voice, state, last=False))
        codes = codes[25:]
    pieces.append(flow.piece(codes, voice, state, last=True))
    ours = torch.cat(pieces, dim=2)[:, ::EVERY]
    assert ours.shape[2] == 2 * STEP_CODES
    torch.testing.assert_close(ours, made["step_pieces"], atol=5e-4, rtol=1e-3)
    whole = flow.whole(tiny.some_codes(STEP_CODES), voice)[:, ::EVERY]
    torch.testing.assert_close(whole, made["step_whole"], atol=5e-4, rtol=1e-3)
    assert (whole - ours).abs().max() > 0.01, "pieces and one pass differ by design"


@torch.inference_mode()
def test_glms_networks_equal_the_vendors(golden: Golden) -> None:
    names, made = golden
    flow = GlmFlow(tiny.GLM_FLOW)
    beside = ("input_embedding.", "spk_embed_affine_layer.", "encoder_proj.")  # plain layers
    own = {n: s for n, s in tiny.shapes_of(flow).items() if n.startswith(beside)}
    fill(flow, tiny.named_state(names["glm_flow"] | own), "flow.pt")
    codes = tiny.numbers("glm.codes", 1, 37, 16, scale=1.0)
    torch.testing.assert_close(flow.encoder(codes), made["glm_encoder"], atol=1e-4, rtol=1e-4)
    given = tiny.numbers("glm.given", 1, 320, 51, scale=1.0)
    velocity = flow.decoder.estimator(given, torch.tensor([0.3]))[:, ::EVERY]
    torch.testing.assert_close(velocity, made["glm_unet"], atol=1e-4, rtol=1e-4)
    stretched = flow.length_regulator(tiny.numbers("glm.states", 1, 37, 80, scale=1.0), 254)
    torch.testing.assert_close(stretched[:, ::EVERY], made["glm_stretch"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "shape"), [("step", tiny.STEP_HIFT), ("glm", tiny.GLM_HIFT)])
@torch.inference_mode()
def test_hift_equals_the_vendors(golden: Golden, name: str, shape: Any) -> None:
    names, made = golden
    hift = Hift(shape)
    fill(hift, resolved(tiny.named_state(names[f"{name}_hift"])), "hift.pt")
    mel = tiny.numbers("hift.mel", 1, 80, 6, scale=1.0)
    pitch = hift.f0_predictor(mel)
    torch.testing.assert_close(pitch, made[f"{name}_pitch"], atol=1e-4, rtol=1e-4)
    assert pitch.min() > 10, "the golden source must be voiced"
    sines = 0.1 * torch.sin(2 * np.pi * hift.cycles(pitch, torch.zeros(9))).float()
    # The vendor adds up phases in single precision.
    torch.testing.assert_close(hift.m_source(sines), made[f"{name}_source"], atol=2e-3, rtol=0)
    source = tiny.numbers("hift.source", 1, 1, 6 * shape.hop)
    sound = hift.filtered(mel, source)
    torch.testing.assert_close(sound, made[f"{name}_sound"], atol=1e-5, rtol=1e-4)
    assert sound.shape == (1, 6 * shape.hop)


def test_published_sizes() -> None:
    """Bytes of the published files in float32, which leave room for nothing but the weights."""

    def size(module: type[nn.Module], *shape: Any) -> int:
        with torch.device("meta"):
            state = module(*shape).state_dict()
        return 4 * sum(tensor.numel() for tensor in state.values())

    assert size(StepFlow) == pytest.approx(623e6, rel=1e-3)
    assert size(GlmFlow) == 4 * 111_166_208  # 445 MB, 111.2 M parameters
    assert size(Hift, step_vocoder.HIFT) == pytest.approx(83.4e6, rel=5e-3)
    assert size(Hift, glm_vocoder.HIFT) == pytest.approx(81.9e6, rel=5e-3)


# Pieces against closed forms and scipy


def test_the_path_of_a_known_field() -> None:
    """Without conditions in the field, guidance cancels, and Euler's product is known."""
    noise = torch.tensor([[[1.0, -2.0]]])
    end = solve(lambda _, x, time: x * time[:, None, None], noise)
    points = times()
    assert points[0] == 0
    assert points[-1] == pytest.approx(1)
    factor = np.prod([1 + (b - a) * a for a, b in pairwise(points)])
    np.testing.assert_allclose(end.numpy(), factor * noise.numpy(), rtol=1e-5)
    told = torch.tensor([1.0, 0.0])[:, None, None]
    moved = solve(lambda _, x, time: told.expand_as(x), noise) - noise
    np.testing.assert_allclose(moved.numpy(), 1 + GUIDANCE, rtol=1e-5)


@given(st.floats(60, 400), st.integers(3, 30))
@settings(max_examples=20, deadline=None)
def test_cycles_of_a_steady_pitch(hertz: float, frames: int) -> None:
    for shape in (tiny.STEP_HIFT, tiny.GLM_HIFT):
        pitch = torch.full((1, frames), hertz)
        cycles = Hift(shape).cycles(pitch, torch.zeros(9))[0].numpy()
        inner = cycles[shape.hop : -shape.hop]
        steps = np.diff(inner, axis=0) % 1
        expected = float(pitch[0, 0]) * np.arange(1, 10) / shape.sample_rate
        np.testing.assert_allclose(steps, np.tile(expected, (len(steps), 1)), atol=1e-6)


@torch.inference_mode()
def test_the_written_spectrum_is_inverted_as_scipy_does() -> None:
    hift, caught = tiny.filled(Hift(tiny.GLM_HIFT)), []
    hift.conv_post.weight *= 0.001  # of loud random weights
    hift.conv_post.bias -= 2.0
    hift.conv_post.register_forward_hook(lambda *told: caught.append(told[2]))
    mel = tiny.numbers("istft.mel", 1, 80, 6, scale=1.0)
    sound = hift.filtered(mel, tiny.numbers("istft.source", 1, 1, 6 * 256))
    written = caught[0][0].double().numpy()
    spectrum = np.minimum(np.exp(written[:9]), 100) * np.exp(1j * np.sin(written[9:]))
    window = scipy.signal.get_window("hann", 16)
    _, theirs = scipy.signal.istft(spectrum / window.sum(), window=window, noverlap=12)
    assert (np.abs(theirs) < 0.99).mean() > 0.5, "most samples are not clipped"
    np.testing.assert_allclose(sound[0].numpy(), np.clip(theirs, -0.99, 0.99), atol=1e-4)


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_both_spellings_of_normalised_weights(spelling: tuple[str, str]) -> None:
    hift = tiny.filled(Hift(tiny.GLM_HIFT))
    state = hift.state_dict()
    back = resolved(tiny.split(state, spelling))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor)
    halved = tiny.split(state, spelling)
    del halved[f"conv_pre.{spelling[1]}"]
    with pytest.raises(CheckpointError, match=r"lacks conv_pre\.weight"):
        fill(hift, resolved(halved), "hift.pt")


# Streaming against decoding at once


@pytest.fixture(scope="module", params=["step", "glm"])
def vocoder(request: pytest.FixtureRequest) -> Vocoder:
    return tiny.step_vocoder() if request.param == "step" else tiny.glm_vocoder()


@given(data=st.data(), count=st.integers(0, 90))
@settings(max_examples=8, deadline=None)
def test_pieces_join_to_the_decoded_whole(
    vocoder: Vocoder, data: st.DataObject, count: int
) -> None:
    codes = tiny.some_codes(count, seed=count)
    stream, got, rest = vocoder.stream(), [], list(codes)
    while rest:
        size = data.draw(st.integers(1, 40))
        got.append(stream.push(rest[:size]))
        rest = rest[size:]
    joined = np.concatenate((*got, stream.flush())) if got else stream.flush()
    expected = vocoder.decode(codes)
    assert joined.dtype == np.int16
    np.testing.assert_array_equal(joined, expected)
    frames = 2 * count if vocoder.sample_rate == 24_000 else frames_of(count)
    assert len(joined) == frames * (480 if vocoder.sample_rate == 24_000 else 256)


def test_two_streams_do_not_disturb_each_other(vocoder: Vocoder) -> None:
    one, other = vocoder.stream(), vocoder.stream()
    left, right = tiny.some_codes(60, seed=1), tiny.some_codes(60, seed=2)
    sounds: tuple[list[Any], list[Any]] = ([], [])
    for begin in range(0, 60, 15):
        sounds[0].append(one.push(left[begin : begin + 15]))
        sounds[1].append(other.push(right[begin : begin + 15]))
    for made, stream, codes in zip(sounds, (one, other), (left, right), strict=True):
        joined = np.concatenate((*made, stream.flush()))
        np.testing.assert_array_equal(joined, vocoder.decode(codes))
    assert (np.concatenate(sounds[0])[:1000] != np.concatenate(sounds[1])[:1000]).any()


def test_sound_comes_as_soon_as_a_piece_is_complete() -> None:
    step, glm = tiny.step_vocoder().stream(), tiny.glm_vocoder().stream()
    assert len(step.push(tiny.some_codes(27))) == 0
    assert len(step.push([1])) == (50 - 8) * 480
    assert len(glm.push(tiny.some_codes(25))) == 0
    assert len(glm.push([1])) == (frames_of(25) - frames_of(5) - 1) * 256


def test_glm_makes_the_published_blocks() -> None:
    """And gives each all codes and the finished mel."""
    made, seen, known_frames = tiny.glm_vocoder(), [], []

    def flow(codes: list[int], known: Tensor | None) -> Tensor:
        seen.append(len(codes))
        known_frames.append(0 if known is None else known.shape[2])
        return torch.zeros(1, 80, frames_of(len(codes)) - known_frames[-1])

    def hift(mel: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 256 * mel.shape[2]), torch.zeros(1, 1, 256 * mel.shape[2])

    made.flow, made.hift = flow, hift  # type: ignore[assignment]
    assert len(made.decode(tiny.some_codes(750))) == 256 * frames_of(750)
    assert known_frames == [0, *(frames_of(count) - frames_of(5) for count in seen[:-1])]
    assert seen == [25, 75, 175, 325, 525, 725, 750]


def test_one_pass_is_a_vocoder_too(vocoder: Vocoder) -> None:
    make: Callable[..., Any] = vocoder.whole  # type: ignore[attr-defined]
    once = vocoding.Whole(make, vocoder.sample_rate, vocoder.frame_rate)
    codes = tiny.some_codes(40)
    stream = once.stream()
    assert len(stream.push(codes[:30])) == len(stream.push(codes[30:])) == 0
    np.testing.assert_array_equal(stream.flush(), once.decode(codes))
    assert len(once.decode(codes)) == len(vocoder.decode(codes))
    assert len(once.decode([])) == len(once.stream().flush()) == 0
