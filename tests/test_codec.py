"""The embedded codec: streams equal whole clips, codes equal a plain search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark.speech import source_filter
from spark.speech.codec import (
    CODE_SAMPLES,
    DIMENSIONS,
    FRAMES,
    LOOK_AHEAD,
    MEASURES,
    N_CODES,
    SHARPNESS,
    Codec,
    Encoder,
    nearest,
    sharpened,
)
from spark.speech.source_filter import HOP, N_BINS, N_FFT


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    untrained = Codec()
    untrained.decoder.outward.bias.data[1:] = -3.0
    return untrained.eval()


@settings(max_examples=15)
@given(data=st.data())
def test_a_stream_gives_the_samples_of_the_whole_clip(codec: Codec, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, N_CODES - 1), min_size=1, max_size=19))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=4)))
    stream, pieces = codec.stream(), []
    for start, end in zip([0, *cuts], [*cuts, len(codes)], strict=True):
        pieces.append(stream.push(codes[start:end]))
    pieces.append(stream.flush())
    whole = codec.decode(codes)
    assert whole.shape == (CODE_SAMPLES * len(codes),)
    assert whole.dtype == np.int16
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_sound_comes_before_the_end(codec: Codec) -> None:
    stream = codec.stream()
    assert len(stream.push([1, 2, 3, 4])) == 0  # the first chunk is all look-ahead
    assert len(stream.push([5, 6, 7, 8])) > 3 * CODE_SAMPLES


def test_nothing_in_nothing_out(codec: Codec) -> None:
    assert len(codec.decode([])) == 0


@pytest.mark.parametrize("code", [-1, N_CODES])
def test_a_code_that_is_none_is_refused(codec: Codec, code: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        codec.decode([code])


def test_a_frame_is_heard_at_its_place(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, seen = 22, 0

    def controls(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nonlocal seen
        frames = features.shape[1]
        pulse = torch.full((1, frames, N_BINS), -20.0)
        noise = pulse.clone()
        if 0 <= (place := FRAMES * LOOK_AHEAD + frame - seen) < frames:
            noise[:, place] = -3.0
        seen += frames
        return torch.full((1, frames), 100.0), pulse, noise

    monkeypatch.setattr(codec.decoder, "controls", controls)
    energy = codec.decode([0] * 12).astype(np.float64) ** 2
    end = (frame + 1) * HOP
    assert energy[end - N_FFT : end].sum() > 0.99 * energy.sum() > 0


def test_sharpening_enlarges_the_distance_from_the_frames_around() -> None:
    filters = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(0))
    after = sharpened(filters)
    assert after.shape == (2, 7, 3)
    for t in range(7):
        here, around = filters[:, t + 2], filters[:, t : t + 5].mean(1)
        torch.testing.assert_close(after[:, t] - around, (1 + SHARPNESS) * (here - around))


def test_nearest_is_the_plain_search() -> None:
    points, centres = torch.randn(50, DIMENSIONS), torch.randn(33, DIMENSIONS)
    plain = [min(range(33), key=lambda k: float(((p - centres[k]) ** 2).sum())) for p in points]
    assert nearest(points, centres).tolist() == plain


def test_a_code_depends_on_its_neighbours_and_on_nothing_far() -> None:
    torch.manual_seed(0)
    encoder = Encoder().double()
    for block in encoder.blocks:
        torch.nn.init.ones_(block.scale)
    measures = torch.randn(1, 40, MEASURES, dtype=torch.float64)
    other = measures.clone()
    other[0, 20] += 3.0
    with torch.no_grad():
        moved = (encoder.refined(other) - encoder.refined(measures)).abs().sum(2)[0] > 1e-9
    assert moved.nonzero()[:, 0].tolist() == list(range(8, 33))


def test_pulses_are_the_sum_of_their_harmonics() -> None:
    f0 = torch.full((1, 400), 181.0, dtype=torch.float64)
    cycles = torch.cumsum(f0 / source_filter.SAMPLE_RATE, dim=1)
    k = torch.arange(1, 8000 // 181 + 1, dtype=torch.float64)
    plain = torch.cos(2 * torch.pi * cycles[0, :, None] * k).sum(1) * (2 / len(k)) ** 0.5
    torch.testing.assert_close(
        source_filter.pulse_train(f0, cycles)[0].double(), plain, atol=1e-4, rtol=0
    )


def test_minimum_phase_gives_back_a_filter_whose_zeros_lie_inside() -> None:
    rng = np.random.default_rng(0)
    half = 0.85 * rng.random(6) * np.exp(1j * np.pi * rng.random(6))
    taps = np.poly(np.concatenate([half, half.conj()])).real  # such a filter is minimum-phase
    magnitude = torch.tensor(np.abs(np.fft.rfft(taps, source_filter.N_FFT)))
    spectrum = source_filter.minimum_phase(torch.log(magnitude))
    found = torch.fft.irfft(spectrum, n=source_filter.N_FFT).numpy()
    np.testing.assert_allclose(found[: len(taps)], taps, atol=1e-5)


def test_a_file_brings_the_codec_back_in_half_precision(codec: Codec, tmp_path) -> None:
    codec.save(tmp_path / "codec.safetensors")
    first = Codec.load(tmp_path / "codec.safetensors")
    for name, value in first.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, codec.state_dict()[name], atol=1e-4, rtol=1e-3)
    first.save(tmp_path / "again.safetensors")
    again = Codec.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.decode([5, 6, 7]), first.decode([5, 6, 7]))
