"""Word errors against hand counts, the recogniser on its own prompts, predicted MOS against the
package that ships the network."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speechmos import dnsmos

from spark.metrics import mos, wer
from spark.speech.audio import read_wav, resample

WORDS = st.lists(st.sampled_from(["the", "tide", "turns", "at", "noon", "today"]), max_size=8).map(
    " ".join
)


def edits(ref, hyp):
    """Levenshtein distance over words, the textbook way."""
    row = list(range(len(hyp) + 1))
    for i, wanted in enumerate(ref, 1):
        previous, row = row, [i]
        for j, got in enumerate(hyp, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (wanted != got)))
    return row[-1]


@given(WORDS.filter(bool), WORDS)
def test_rate_is_the_textbook_distance(ref, hyp):
    expected = edits(ref.split(), hyp.split()) / len(ref.split())
    assert wer.word_error_rate(ref, hyp) == pytest.approx(expected)


@given(WORDS, WORDS)
def test_alignment_spells_both_sides_and_costs_the_distance(ref, hyp):
    pairs = wer.aligned(ref, hyp)
    assert [left for _, left, _ in pairs if left] == ref.split()
    assert [right for _, _, right in pairs if right] == hyp.split()
    assert sum(op != "equal" for op, _, _ in pairs) == edits(ref.split(), hyp.split())
    assert all((op == "equal") == (left == right) for op, left, right in pairs)


def test_case_punctuation_and_digits_are_no_errors():
    assert wer.word_error_rate("19 minus 8 is 11.", "Nineteen minus eight is eleven") == 0


def test_a_reference_without_words_has_no_rate():
    with pytest.raises(ValueError, match="at least one word"):
        wer.word_error_rate("...", "hello")


def hum(seconds, rate=16_000, seed=0):
    """A voiced-like buzz with syllables: not speech, but sound a predictor can judge."""
    t = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).normal(size=len(t)) * 0.05
    return (4000 * (buzz * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * t)) + noise)).astype(np.int16)


@pytest.mark.parametrize("seconds", [0.7, 2.3, 9.01, 11.4])
def test_predicted_mos_is_the_packages(seconds):
    pcm = hum(seconds)
    theirs = dnsmos.run(pcm.astype(np.float32) / 32768, sr=16_000)["p808_mos"]
    assert mos.predict(pcm, 16_000) == pytest.approx(float(theirs), abs=1e-4)


def test_other_rates_are_resampled():
    at_24k = mos.predict(hum(2.0, 24_000), 24_000)
    at_16k = mos.predict(hum(2.0, 16_000), 16_000)
    assert at_24k == pytest.approx(at_16k, abs=0.3)


@pytest.mark.parametrize("pcm", [np.zeros(0, np.int16), np.zeros(32_000, np.int16), hum(0.3)])
def test_nothing_to_judge_is_none(pcm):
    assert mos.predict(pcm, 16_000) is None


def test_too_short_or_silent_sound_has_no_words():
    assert wer.transcribe(np.zeros(100, np.int16), 16_000) == ""


def test_a_transcript_does_not_depend_on_the_clips_before_it():
    clip = hum(1.5, seed=3)
    first = wer.transcribe(clip, 16_000)
    wer.transcribe((hum(2.0, seed=4) * 0.1).astype(np.int16), 16_000)
    assert wer.transcribe(clip, 16_000) == first


def test_it_hears_real_speech():
    # `flite -voice slt -t "the tide turns at noon"`, as FLAC
    pcm, rate = read_wav(Path(__file__).parent / "data" / "tide.flac")
    assert wer.transcribe(pcm, rate) == "the tide turns at noon"
    assert wer.transcribe(resample(pcm, rate, 24_000), 24_000) == "the tide turns at noon"
    assert 2.5 < mos.predict(pcm, rate) < 4.5
