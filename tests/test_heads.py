"""Heads: their logits, their slices, and how they are saved; the measures of confidence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spark.confidence import confidence, mass_outside, state_similarity
from spark.heads import Head, HeadBank, base_hash, load_heads, save_heads, untrained_head
from tests.tiny import tiny_lm


def test_logits_by_hand() -> None:
    """rows . (gain * y / rms(y)) with y = h + lens h + bias."""
    make = torch.Generator().manual_seed(0)
    gain, rows, lens, bias, h = (
        torch.randn(*shape, generator=make, dtype=torch.float64)
        for shape in ((6,), (9, 6), (6, 6), (6,), (2, 3, 6))
    )
    head = Head(gain, rows, 1e-6, lens=lens, lens_bias=bias)
    y = h.numpy() + np.einsum("ij,btj->bti", lens.numpy(), h.numpy()) + bias.numpy()
    normed = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * gain.numpy()
    expected = normed @ rows.numpy().T
    np.testing.assert_allclose(head.logits(h).numpy(), expected, rtol=1e-10)
    assert head.nbytes == 8 * (6 + 54 + 36 + 6)


def test_a_slice_has_the_wholes_logits() -> None:
    lm = tiny_lm(0)
    whole, speech = untrained_head(lm), untrained_head(lm, "speech")
    states = torch.randn(4, 32)
    ids = lm.vocabulary.speech_rows()
    torch.testing.assert_close(speech.logits(states), whole.logits(states)[:, ids])
    assert speech.covers(lm.vocabulary.control_ids)
    assert not speech.covers([0])
    assert not whole.covers([lm.vocabulary.size])
    codes = speech.restricted(torch.arange(lm.vocabulary.speech_start, lm.vocabulary.speech_end))
    assert codes.row_ids is not None
    assert codes.row_ids.tolist() == [i for i in ids.tolist() if lm.vocabulary.is_speech(i)]


def test_heads_survive_a_file(tmp_path: Path) -> None:
    lm = tiny_lm(0)
    heads = {**lm.exit_heads, 1: untrained_head(lm)}
    body = lm.transformer
    base = base_hash(body.final_gain, body.unembedding)
    save_heads(tmp_path / "heads.safetensors", heads, base)
    loaded = load_heads(tmp_path / "heads.safetensors", base)
    states = torch.randn(2, 32)
    assert list(loaded) == [1, 2, 3]
    for layer, head in heads.items():
        assert torch.equal(loaded[layer].logits(states), head.logits(states))
        assert (loaded[layer].row_ids is None) == (head.row_ids is None)
    other = tiny_lm(1).transformer
    with pytest.raises(ValueError, match="another model"):
        load_heads(tmp_path / "heads.safetensors", base_hash(other.final_gain, other.unembedding))


def test_which_head_is_asked() -> None:
    lm = tiny_lm(0, exits=(1, 2))
    lm.exit_heads[2] = untrained_head(lm)  # a fitted head with every row
    fitted = HeadBank(lm, True, "fitted")
    assert fitted.name(None, True) == "speech"
    assert fitted.name(None, False) == "full"
    assert fitted.name(1, True) == "exit1"
    assert fitted.name(1, False) == "untrained"
    assert fitted.name(2, False) == "exit2"
    assert fitted.name(3, True) == "untrained-speech"
    assert HeadBank(lm, True, "untrained").name(1, True) == "untrained-speech"
    assert HeadBank(lm, False, "untrained").name(1, True) == "untrained"
    assert HeadBank(lm, False, "fitted").name(None, True) == "full"


def test_full_depth_is_charged_with_as_many_rows_as_the_head_that_decided() -> None:
    lm = tiny_lm(0, exits=(1, 2))
    lm.exit_heads[2] = untrained_head(lm)  # a fitted head with every row
    sliced, whole = HeadBank(lm, True, "fitted"), HeadBank(lm, False, "fitted")
    for bank, unfitted in ((sliced, "speech"), (whole, "full")):
        assert bank.full_name("exit1", True) == "speech"
        assert bank.full_name("exit2", True) == bank.full_name("untrained", True) == unfitted
        assert bank.full_name("full", False) == bank.full_name("untrained", False) == "full"
    assert sliced.full_name("speech", True) == "speech"


def test_malformed_heads_are_refused() -> None:
    head = untrained_head(tiny_lm(0))
    with pytest.raises(ValueError, match="one token id a row"):
        replace(head, row_ids=torch.arange(3))
    with pytest.raises(ValueError, match="come together"):
        replace(head, lens=torch.eye(32))


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=30))
def test_measures_against_their_formulas(values: list[float]) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    p = np.exp(np.array(values) - max(values))
    p /= p.sum()
    ordered = np.sort(p)[::-1]
    expected = {
        "max_prob": ordered[0],
        "margin": ordered[0] - ordered[1],
        "entropy": 1 - stats.entropy(p) / math.log(len(p)),
    }
    for measure, value in expected.items():
        given_value = float(confidence(measure, logits))  # type: ignore[arg-type]
        assert given_value == pytest.approx(value, abs=1e-5)
    inside = torch.tensor([0, 2])
    outside = 1 - p[0] - p[2]
    assert float(mass_outside(logits, inside)) == pytest.approx(outside, abs=1e-5)


def test_state_similarity_is_a_cosine() -> None:
    a, b = torch.randn(1, 16), torch.randn(1, 16)
    expected = float(a[0] @ b[0] / a.norm() / b.norm())
    assert float(state_similarity(a, b)) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="not a measure of logits"):
        confidence("state_similarity", a)
