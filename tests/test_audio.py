"""Sound files: int16 in, the same int16 out; resampling against scipy and closed forms."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import resample_poly

from spark.speech import audio


@given(arrays(np.int16, st.integers(0, 300)))
def test_wav_bytes_hold_the_same_samples(pcm):
    samples, rate = soundfile.read(io.BytesIO(audio.wav_bytes(pcm, 16_000)), dtype="int16")
    assert rate == 16_000
    assert np.array_equal(samples, pcm)


@given(arrays(np.int16, st.integers(0, 100)))
def test_float_and_back_is_exact(pcm):
    assert np.array_equal(audio.to_pcm(audio.to_float(pcm)), pcm)


def test_to_pcm_clips_and_refuses_nan():
    assert audio.to_pcm([1.0, -1.0, 2.0, -2.0, 0.0]).tolist() == [32767, -32768, 32767, -32768, 0]
    with pytest.raises(ValueError, match="not numbers"):
        audio.to_pcm([0.0, float("nan")])


def test_quiet_sound_is_not_made_louder(tmp_path):
    quiet = (100 * np.sin(np.arange(1600) / 7)).astype(np.int16)
    audio.write_wav(tmp_path / "quiet.wav", quiet, 16_000)
    samples, rate = audio.read_wav(tmp_path / "quiet.wav")
    assert rate == 16_000
    assert np.array_equal(samples, quiet)
    assert soundfile.info(tmp_path / "quiet.wav").subtype == "PCM_16"


def test_stereo_is_averaged(tmp_path):
    both = np.stack([np.full(10, 100), np.full(10, 300)], axis=1).astype(np.int16)
    soundfile.write(tmp_path / "stereo.wav", both, 8_000)
    samples, _ = audio.read_wav(tmp_path / "stereo.wav")
    assert samples.tolist() == [200] * 10


@pytest.mark.parametrize(
    ("subtype", "step"),
    [("FLOAT", 0.51), ("DOUBLE", 0.51), ("PCM_32", 0.51), ("PCM_24", 0.51), ("PCM_U8", 256)],
)
def test_files_of_any_depth_hold_the_same_sound(tmp_path, subtype, step):
    """libsndfile reads a float file as whole numbers, which are all 0, unless asked for floats."""
    tone = 0.5 * np.sin(np.arange(2000) / 20)
    soundfile.write(tmp_path / "tone.wav", tone, 8_000, subtype=subtype)
    samples, rate = audio.read_wav(tmp_path / "tone.wav")
    assert rate == 8_000
    assert np.abs(samples - 32768 * tone).max() <= step


def test_a_file_of_no_numbers_is_named(tmp_path):
    soundfile.write(tmp_path / "odd.wav", np.array([0.1, np.nan, 0.2]), 8_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"odd\.wav holds samples that are not numbers"):
        audio.read_wav(tmp_path / "odd.wav")


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_the_first_channel_that_is_not_silent(tmp_path, silent):
    """Opposite channels, whose mean is silence."""
    tone = (8000 * np.sin(np.arange(100) / 9)).astype(np.int16)
    channels = [np.zeros_like(tone)] * silent + [tone, -tone]
    soundfile.write(tmp_path / "stereo.wav", np.stack(channels, axis=1), 8_000)
    samples, _ = audio.read_wav(tmp_path / "stereo.wav", first_channel=True)
    assert np.array_equal(samples, tone)
    assert not audio.read_wav(tmp_path / "stereo.wav")[0].any()


def test_resample_agrees_with_scipy_on_a_tone():
    rate, new_rate = 24_000, 16_000
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    ours = audio.resample(tone, rate, new_rate).astype(float)
    theirs = resample_poly(tone.astype(float), 2, 3)
    middle = slice(1000, -1000)
    assert len(ours) == new_rate
    assert np.abs(ours[middle] - theirs[middle]).max() < 0.005 * 8000


def test_resample_to_the_same_rate_changes_nothing():
    pcm = np.arange(50, dtype=np.int16)
    assert np.array_equal(audio.resample(pcm, 16_000, 16_000), pcm)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((1, 3), np.int16), np.zeros(3, np.int32)])
def test_only_mono_int16_is_written(bad):
    with pytest.raises(ValueError, match="mono int16"):
        audio.wav_bytes(bad, 16_000)


def test_a_file_that_is_no_sound_is_named(tmp_path):
    (tmp_path / "words.wav").write_text("these are words")
    with pytest.raises(ValueError, match=r"words\.wav is not a sound file"):
        audio.read_wav(tmp_path / "words.wav")
    with pytest.raises(ValueError, match=r"words\.wav is not a sound file"):
        audio.length_of(tmp_path / "words.wav")
