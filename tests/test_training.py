"""Training's parts: the teacher, sequences in the TA4 layout, growing a model, exit heads."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from spark.modality import Interleave, Modality
from spark.models.embedded import _Words
from spark.speech.codec import CODE_SAMPLES, FRAME_RATE
from spark.training import language_model, mixture, questions, teacher
from spark.training.sequences import PREFACE, Spoken, Writer, padded, train_tokenizer, with_preface

TEXTS = [fact.answer for fact in questions.facts()] + ["the tide turns at noon"] * 3


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(train_tokenizer(TEXTS))


def spoken(text: str, rate: float = 0.3) -> Spoken:
    """A text whose words are `rate` seconds long, with codes 0, 1, 2, ..."""
    words = np.array([[0.32 + rate * i, 0.32 + rate * (i + 1)] for i in range(len(text.split()))])
    length = int((words[-1, 1] + 0.2) * FRAME_RATE)
    return Spoken(text, np.arange(length, dtype=np.int16), words.astype(np.float32))


def test_the_teacher_times_every_word() -> None:
    said = teacher.speak("the tide turns at noon")
    assert said.samples.dtype == np.int16
    assert said.words.shape == (5, 2)
    assert np.all(said.words[:, 1] > said.words[:, 0])
    assert np.all(said.words[1:, 0] >= said.words[:-1, 1] - 1e-3)
    assert said.words[-1, 1] <= len(said.samples) / teacher.SAMPLE_RATE
    later = with_preface(said)
    assert not later.samples[: PREFACE * CODE_SAMPLES].any()
    np.testing.assert_allclose(later.words - said.words, PREFACE / FRAME_RATE, atol=1e-6)


def test_a_reply_follows_the_layout_to_its_end(writer: Writer) -> None:
    words = _Words(writer.tokenizer)
    row = spoken("the tide turns at noon")
    exchange = writer.spoken("say the tide turns at noon", row)
    assert exchange.ids[: exchange.start] == words.encode_prompt("Say: the tide turns at NOON!")
    state = Interleave(1, 4).start(words.vocabulary, exchange.ids[exchange.start - 1])
    for token in exchange.ids[exchange.start :]:
        assert not state.disagreed
        state.advance(token)
    assert exchange.ids[-1] in words.vocabulary.stop_ids
    reply = exchange.ids[exchange.start :]
    kinds = [words.vocabulary.modality(i) for i in reply]
    codes = [
        words.vocabulary.code(i) for i, k in zip(reply, kinds, strict=True) if k is Modality.SPEECH
    ]
    assert codes == row.codes.tolist()
    assert words.decode_text(reply) == row.text


def test_text_is_there_before_it_is_spoken(writer: Writer) -> None:
    row = spoken("the capital of peru is lima", rate=0.4)
    slots = writer.slots(row)
    first = [slots.index(writer.word(word)[0]) for word in row.text.split()]
    assert np.all(np.array(first) / FRAME_RATE * 4 < row.words[:, 0])
    assert [i for i in slots if i != writer.pad] == writer.text(row.text)


def test_padding_and_targets(writer: Writer) -> None:
    rows = [writer.written("hello", "hello nice to meet you"), writer.written("say noon", "noon")]
    ids, targets = padded(rows, writer.pad)
    for i, row in enumerate(rows):
        counted = np.flatnonzero(targets[i] != -100)
        assert counted[0] == row.start - 1
        assert targets[i, counted].tolist() == row.ids[row.start :]
        assert ids[i, : len(row.ids)].tolist() == row.ids


def test_the_mixture_never_draws_a_held_out_pair(writer: Writer) -> None:
    answers = {text: spoken(text) for text in {*TEXTS, questions.unknown_fact().answer}}
    source = mixture.Mixture(writer, [spoken("the tide turns at noon")], answers, seed=1)
    source.rng = random.Random(4)
    held_out = {fact.answer for fact in questions.facts() if fact.held_out and fact.kind == "sum"}
    questions_drawn = [source._question() for _ in range(5000)]
    assert not held_out & {answer for _, answer in questions_drawn}


def test_codes_survive_their_file(tmp_path: Path) -> None:
    rows = [spoken("the tide turns"), spoken("noon")]
    mixture.save_codes(tmp_path / "codes.npz", rows)
    again = mixture.load_codes(tmp_path / "codes.npz")
    assert [row.text for row in again] == [row.text for row in rows]
    for a, b in zip(again, rows, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_allclose(a.words, b.words)


def test_a_grown_model_computes_the_same() -> None:
    torch.manual_seed(0)
    shallow = Qwen2ForCausalLM(language_model.configuration(300, layers=2)).eval()
    deep = language_model.grow(shallow, 5).eval()
    ids = torch.randint(300, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, shallow(ids).logits, atol=1e-5, rtol=0)
    language_model.loss_of(deep, ids, ids).backward()
    fresh = deep.model.layers[2].mlp.down_proj.weight.grad
    assert fresh is not None
    assert fresh.abs().sum() > 0
