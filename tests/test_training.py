"""Training's parts: the teacher, sequences in the TA4 layout, growing a model, exit heads."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from spark.modality import Interleave, Modality
from spark.models.embedded import _Words
from spark.speech.codec import CODE_SAMPLES, FRAME_RATE
from spark.text import normalise
from spark.training import __main__ as stages
from spark.training import (
    average,
    decoder,
    held_out,
    hints,
    initial_weights,
    language_model,
    mixture,
    questions,
    recordings,
    teacher,
)
from spark.training.sequences import (
    PREFACE,
    Writer,
    padded,
    phones_of,
    with_preface,
)
from tests.teaching import TEXTS, a_writer, spoken


@pytest.fixture(scope="module")
def writer() -> Writer:
    return a_writer()


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


def test_the_mixture_never_draws_a_held_out_pair_or_phrasing(writer: Writer) -> None:
    answers = {text: spoken(text) for text in {*TEXTS, questions.unknown_fact().answer}}
    source = mixture.Mixture(
        writer, [spoken("the tide turns at noon")], answers, mixture.Shares(), seed=1
    )
    source.rng = random.Random(4)
    kinds = ("sum", "difference")  # the others' answers do not name the pair
    held_out = {f.answer for f in questions.facts() if f.held_out and f.kind in kinds}
    questions_drawn = [source._question(practice=0.5) for _ in range(5000)]
    assert not held_out & {answer for _, answer in questions_drawn}
    outside = set(map(normalise, questions.outside()))
    assert not outside & {prompt for prompt, _ in questions_drawn}
    facts: dict[str, list[questions.Fact]] = {}
    for fact in questions.facts():
        facts.setdefault(fact.answer, []).append(fact)
    for prompt, answer in questions_drawn:
        for fact in facts.get(answer, []):
            assert not questions.is_held_out_phrasing(prompt, fact), prompt


def test_practice_goes_beyond_what_is_known_and_its_sums_are_right() -> None:
    value = {questions.number_words(str(n)): n for n in range(81)}
    held_out = {(f.kind, f.slots) for f in questions.facts() if f.held_out}
    drawn = {(fact.kind, fact.slots): fact.key for fact in questions.practice()}
    assert not held_out & drawn.keys()
    assert len(drawn) == 2 * 41 * 41 - sum(kind in ("sum", "difference") for kind, _ in held_out)
    for (kind, (x, y)), key in drawn.items():
        sign = 1 if kind == "sum" else -1
        size = value[key.removeprefix("minus ")]
        assert value[x] + sign * value[y] == (-size if key.startswith("minus ") else size)


def test_codes_survive_their_file(tmp_path: Path) -> None:
    rows = [spoken("the tide turns"), spoken("noon")]
    mixture.save_codes(tmp_path / "codes.npz", rows)
    again = mixture.load_codes(tmp_path / "codes.npz")
    assert [row.text for row in again] == [row.text for row in rows]
    for a, b in zip(again, rows, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.phones, b.phones)
        np.testing.assert_allclose(a.words, b.words)


def test_the_teacher_says_the_same_whatever_it_said_before() -> None:
    first = teacher.speak("sixteen is larger").samples
    teacher.speak("the tide turns at noon")
    np.testing.assert_array_equal(teacher.speak("sixteen is larger").samples, first)


def test_the_teacher_names_its_phones() -> None:
    names = [teacher.PHONES[i] for i in teacher.pronounce("noon")]
    assert names == ["n", "uw", "n"]
    said = with_preface(teacher.speak("noon"))
    assert said.phone_ends[-1] <= len(said.samples) / teacher.SAMPLE_RATE + 0.02
    by_code = phones_of(said, len(said.samples) // CODE_SAMPLES)
    heard = [teacher.PHONES[i] for i, _ in itertools.groupby(by_code)]
    assert heard == ["pau", "n", "uw", "n", "pau"]


def test_hints_ask_for_each_word_once_and_for_every_code(writer: Writer) -> None:
    said = {"noon": [3, 4, 3], "tide": [5, 6, 7]}
    words = hints.Hints(8, writer, said)
    row = spoken("the tide turns at noon")
    row.phones[:] = np.arange(len(row.phones)) % len(teacher.PHONES)
    exchanges = [writer.spoken("say noon", row), writer.written("say tide", "tide")]
    ids, _ = padded(exchanges, writer.pad)
    spelt, sounds = words.targets(exchanges, ids.shape[1])
    for line, known in ((0, ["noon", "tide", "noon"]), (1, ["tide", "tide"])):
        at = np.flatnonzero(spelt[line, :, 0] != -100)
        assert len(at) == len(known)
        for position, word in zip(at, known, strict=True):
            assert ids[line, position] == writer.word(word)[-1]
            asked = [i for i in spelt[line, position].tolist() if i != -100]
            assert asked == [*said[word], len(teacher.PHONES)]
    coded = (ids[0] >= writer.audio) & (ids[0] < writer.filler)
    labels = sounds[0, np.flatnonzero(coded) - 1]
    assert labels.tolist() == row.phones.tolist()
    assert int((sounds != -100).sum()) == len(row.codes)


def test_the_decoder_hears_recordings_and_answers_but_none_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings.record(["noon", "the tide turns at noon"], tmp_path / "shard-000000.npz")
    said: list[str] = []
    monkeypatch.setattr(teacher, "speak", said.append)
    (recorded,) = decoder.heard(tmp_path, most=1)
    assert len(recorded.words) == 1
    list(decoder.answers())
    held_out = {fact.answer for fact in questions.facts() if fact.held_out}
    asked = [*questions.facts(), *questions.counting(), questions.unknown_fact()]
    known = {fact.answer for fact in asked if not fact.held_out}
    assert set(said) == known
    assert len(said) == len(set(said))
    assert held_out - known
    assert set(questions.answers(held_out=True)) == set(said) | held_out


def test_the_held_out_loss_of_a_blind_model_is_that_of_a_guess(writer: Writer) -> None:
    size = writer.tokenizer.get_vocab_size()
    model = Qwen2ForCausalLM(language_model.configuration(size, layers=1))
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = [spoken("the tide turns at noon"), spoken("noon")]
    found = held_out.speech_loss(model, writer, [writer.spoken("say noon", row) for row in rows])
    assert list(found) == [1]
    assert found[1][0] == pytest.approx(math.log(size), rel=1e-5)


def test_the_held_out_loss_of_an_exit_is_that_of_the_model_cut_there(writer: Writer) -> None:
    torch.manual_seed(0)
    size = writer.tokenizer.get_vocab_size()
    model = Qwen2ForCausalLM(language_model.configuration(size, layers=8)).eval()
    exchanges = [writer.spoken("say noon", spoken("the tide turns at noon"))]
    found = held_out.speech_loss(model, writer, exchanges)
    assert list(found) == [8, 7, 5]
    for depth in (7, 5):
        model.model.layers = model.model.layers[:depth]
        model.config.num_hidden_layers = depth
        assert found[depth] == pytest.approx(
            held_out.speech_loss(model, writer, exchanges)[depth], rel=1e-5
        )
    assert len({nats for nats, _ in found.values()}) == 3


def test_hints_can_be_learnt(writer: Writer) -> None:
    torch.manual_seed(0)
    heads = hints.Hints(256, writer, {"noon": [3, 4, 3]})
    size = writer.tokenizer.get_vocab_size()
    model = Qwen2ForCausalLM(language_model.configuration(size, layers=2))
    exchanges = [writer.spoken("say noon", spoken("the tide turns at noon"))]
    ids, targets = (torch.from_numpy(x) for x in padded(exchanges, writer.pad))
    hinted = heads.targets(exchanges, ids.shape[1])
    optimiser = torch.optim.Adam([*model.parameters(), *heads.parameters()], lr=1e-2)
    losses = []
    for _ in range(20):
        plain = language_model.loss_of(model, ids, targets, writer.audio).detach()
        whole = language_model.loss_of(
            model, ids, targets, writer.audio, hints=heads, hinted=hinted
        )
        optimiser.zero_grad()
        whole.backward()
        optimiser.step()
        losses.append(float(whole.detach() - plain))
    assert losses[-1] < 0.2 * losses[0]


def test_a_grown_model_computes_the_same() -> None:
    torch.manual_seed(0)
    shallow = Qwen2ForCausalLM(language_model.configuration(300, layers=2)).eval()
    deep = language_model.grow(shallow, 5).eval()
    ids = torch.randint(300, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, shallow(ids).logits, atol=1e-5, rtol=0)
    language_model.loss_of(deep, ids, ids, 200).backward()
    fresh = deep.model.layers[2].mlp.down_proj.weight.grad
    assert fresh is not None
    assert fresh.abs().sum() > 0


def test_text_weighs_more_than_speech() -> None:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(language_model.configuration(300, layers=2))
    ids = torch.randint(300, (2, 11))
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(
            model(ids).logits.flatten(0, 1), ids.flatten(), reduction="none"
        )
        weighed = language_model.loss_of(model, ids, ids, 150)
    weights = 1 + (language_model.TEXT_WEIGHT - 1) * (ids.flatten() < 150)
    torch.testing.assert_close(weighed, (plain * weights).sum())


@pytest.fixture(scope="module")
def untrained() -> Qwen2ForCausalLM:
    """As training begins it, with 2,000 text ids."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(language_model.configuration(2300, layers=3))
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=initial_weights.EMBEDDING)
    initial_weights.lay_copying(model, text=2000, theta=language_model.ROPE_THETA)
    return model.eval()


def test_an_untrained_model_copies_already(untrained: Qwen2ForCausalLM) -> None:
    said = torch.randint(2000, (16, 12))
    ids = torch.cat([said, torch.full((16, 1), 2100), said], dim=1)
    with torch.no_grad():
        guessed = untrained(ids).logits[:, 13:-1].argmax(-1)
    assert (guessed == said[:, 1:]).float().mean() > 0.25  # by chance one in 2,300


def test_it_looks_for_the_latest_text_over_speech_and_pads(untrained: Qwen2ForCausalLM) -> None:
    said = torch.randint(2000, (16, 6))
    speech = torch.randint(2100, 2300, (16, 6, 4))
    reply = torch.cat([said[:, :, None], speech], dim=2).flatten(1)
    ids = torch.cat([said, torch.full((16, 1), 2050), reply], dim=1)
    untrained.set_attn_implementation("eager")
    with torch.no_grad():
        first = untrained(ids, output_attentions=True).attentions[0][:, 2]  # (16, T, T)
    places = torch.arange(7, ids.shape[1], 5)
    on_latest = first[:, places + 4, places]
    assert on_latest.mean() > 0.6


def test_near_codes_start_alike() -> None:
    torch.manual_seed(0)
    points = torch.randn(500, 12).repeat_interleave(2, 0) + 0.2 * torch.randn(1000, 12)
    rows = initial_weights.relate_codes(points, 64)
    near = torch.cosine_similarity(rows[::2], rows[1::2], dim=1)
    strangers = torch.cosine_similarity(rows, rows.roll(333, 0), dim=1)
    assert near.mean() > strangers.mean() + 0.5


def test_an_average_lies_between_two_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (name, layers) in enumerate([("one", 2), ("two", 2), ("deeper", 3)]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(language_model.configuration(300, layers=layers))
        language_model.save(model, tmp_path / name)
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    arguments = ["average", "--first", str(one), "--second", str(two), "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    average.main()
    a, b, found = (
        Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        for folder in (one, two, out)
    )
    for name, row in found.state_dict().items():
        expected = 0.4 * a.state_dict()[name] + 0.6 * b.state_dict()[name]
        torch.testing.assert_close(row, expected, rtol=2**-8, atol=1e-6)  # kept in bf16
    with pytest.raises(ValueError, match="different shapes"):
        average.averaged(one, tmp_path / "deeper", 0.5)


def test_training_puts_a_model_in_place_only_when_it_is_whole(tmp_path: Path) -> None:
    work, app = tmp_path / "work", tmp_path / "app"
    for name in ("average/model.safetensors", "average/config.json", "data/tokenizer.json"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("new")
    (work / "codec.safetensors").write_text("new")
    app.mkdir()
    (app / "model-00001-of-00003.safetensors").write_text("old")
    (app / "README.md").write_text("card")
    (work / "model").mkdir()
    (work / "model" / "exit_heads.safetensors").write_text("fitted on other weights")
    model = stages.assemble(work)
    assert (app / "model-00001-of-00003.safetensors").exists()
    stages.publish(model, app)
    names = {path.name for path in app.iterdir()}
    assert names == {"README.md", "model.safetensors", "config.json", "tokenizer.json",
                     "codec.safetensors"}  # fmt: skip


def test_a_second_start_keeps_the_codebook_and_its_own_codes(tmp_path: Path) -> None:
    rows = stages.stages(tmp_path, hours=1, sentences=10, workers=1)

    def finished() -> list[str]:
        return [row[0] for row in rows if stages.finished(row, tmp_path)]

    assert not finished()
    (tmp_path / "codebook.safetensors").write_text("one")
    assert finished() == ["codebook"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "codebook.safetensors").write_text("one")
    (tmp_path / "data" / "aloud.npz").touch()
    assert finished() == ["codebook", "codes"]
    (tmp_path / "codebook.safetensors").write_text("two")
    assert finished() == ["codebook"]
