"""Step-Audio-2-mini on synthetic checkpoints: weights, ids, prompts, layout, commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from spark import compare, models
from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.heads import base_head
from spark.modality import Modality, Slot
from spark.models import step_audio_2
from spark.models.base import Heard, Prompt, PromptError, SpokenLM, Turn
from spark.models.checkpoint import CheckpointError
from spark.models.step_audio_2 import FIRST_SPEECH, KNOWN, MARKS
from spark.schedule import FullDepth, Spark
from tests.checkpoints import step_config, write_step, write_step_tokenizer
from tests.large import GREEDY, offered, reply, scripted

TEXT, CODE, FILLER = 70, FIRST_SPEECH + 5, KNOWN["<audio_6561>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_step(tmp_path_factory.mktemp("step") / "mine", layers=4)


@pytest.fixture(scope="module")
def lm(folder: Path) -> SpokenLM:
    return models.load(str(folder), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedTokenizerFast:
    """transformers' own reading of the same tokenizer.json, marks and all."""
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def transformers_model(folder: Path, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """Qwen2ForCausalLM from the same files, what belongs to spoken prompts left out."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    taken = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps",
             "num_attention_heads", "num_key_value_heads", "rope_theta",
             "max_position_embeddings")  # fmt: skip
    config = Qwen2Config(**{name: text[name] for name in taken}, tie_word_embeddings=False)
    state = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state |= load_file(shard)
    own = {k: v for k, v in state.items() if not k.startswith(("encoder.", "adapter."))}
    model = Qwen2ForCausalLM(config)
    model.load_state_dict(own, strict=True)
    return model.to(dtype).eval()


@pytest.mark.parametrize(
    # bf16 has steps of 2^-8: both round in other places on the way.
    ("dtype", "relative", "bound"),
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 2**-6, 0.05)],
)
@torch.inference_mode()
def test_logits_are_transformers_of_the_same_checkpoint(
    folder: Path, dtype: torch.dtype, relative: float, bound: float
) -> None:
    lm, model = models.load(str(folder), dtype=dtype), transformers_model(folder, dtype)
    ids = torch.tensor([lm.encode_prompt("hello world")])
    body = lm.transformer
    states = body.run_layers(
        0, 4, body.embed(ids), torch.arange(ids.shape[1]), body.new_cache(ids.shape[1])
    )
    ours, theirs = base_head(lm).logits(states), model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=bound)


def test_greedy_replies_are_generates(folder: Path, lm: SpokenLM) -> None:
    ids = lm.encode_prompt("the capital")
    model = transformers_model(folder, torch.float32)
    theirs = model.generate(
        torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=MARKS["<|EOT|>"],
        pad_token_id=0,
    )  # fmt: skip
    engine = Engine(lm, speech_row_head=False, outside_mass=False)
    made = engine.generate(engine.prefill(ids), FullDepth(), GREEDY, 24)
    assert [step.token_id for step in made] == theirs[0, len(ids) :].tolist()


def test_the_published_shape_is_the_one_on_record() -> None:
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_attention_groups": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 16384}  # fmt: skip
    shape = step_audio_2.shape_of(step_config(**text))
    assert shape == step_audio_2.FAMILY.shape
    names = step_audio_2.weight_names(shape)
    assert len(names) == 339
    assert sum(int(torch.tensor(size).prod()) for size in names.values()) == 7_663_326_720


def test_the_papers_exit_is_the_default_and_keeps_its_share_of_other_depths() -> None:
    family = step_audio_2.FAMILY
    exits, default = family.exits_of(28)
    assert default == 22
    assert default in exits
    assert family.exits_of(14)[1] == 11
    assert all(0 < layer < 2 for layer in family.exits_of(2)[0])


def test_a_config_that_asks_for_more_is_refused() -> None:
    with pytest.raises(CheckpointError, match="rope type 'yarn'"):
        step_audio_2.shape_of(step_config(rope_scaling={"type": "yarn", "factor": 4}))
    config = step_config()
    del config["text_config"]["rope_theta"]
    with pytest.raises(CheckpointError, match="rope_theta"):
        step_audio_2.shape_of(config)
    config = step_config(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    with pytest.raises(CheckpointError, match=r"two values of rope_theta \(10000\.0, 1000000\.0\)"):
        step_audio_2.shape_of(config)
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4}
    with pytest.raises(CheckpointError, match="rope type 'yarn'"):
        step_audio_2.shape_of(step_config(rope_parameters=yarn))
    plain = {"rope_type": "default", "rope_theta": 1e6}
    with pytest.raises(CheckpointError, match="rope type 'linear'"):  # neither hides the other
        step_audio_2.shape_of(step_config(rope_parameters=plain, rope_scaling={"type": "linear"}))
    for name, value in (("rope_parameters", [1]), ("rope_scaling", "yarn")):
        with pytest.raises(CheckpointError, match=r"^config\.json"):
            step_audio_2.shape_of(step_config(**{name: value}))
    config = step_config()
    del config["text_config"]["hidden_size"]
    with pytest.raises(CheckpointError, match="no 'hidden_size': fetch it again"):
        step_audio_2.shape_of(config)


def test_a_config_that_transformers_5_wrote_says_the_same() -> None:
    """Its base of the rotation stands under `rope_parameters`."""
    config = step_config()
    expected = step_audio_2.shape_of(config)
    text = config["text_config"]
    written = Qwen2Config(rope_theta=text.pop("rope_theta")).to_dict()["rope_parameters"]
    del text["rope_scaling"]
    assert written == {"rope_type": "default", "rope_theta": 1e6}
    assert step_audio_2.shape_of({**config, "text_config": {**text, "rope_parameters": written}}
                                 ) == expected  # fmt: skip


# Ids


def test_ids_are_the_published_ones(lm: SpokenLM) -> None:
    words = lm.vocabulary
    assert (words.speech_start, words.speech_end) == (151696, 158257)
    assert (words.filler, words.tts_pad, words.tts_start, words.tts_end) == (
        158257, 151695, 151693, 151694)  # fmt: skip
    assert words.stop_ids[0] == 151665
    assert set(words.stop_ids) == {151643, 151645, 151665}  # eos ids of the config's own class
    kinds = {i: words.modality(i) for i in (0, 151642, 151643, 151688, 151695, 151696, 158256)}
    assert kinds[0] is kinds[151642] is Modality.TEXT
    assert kinds[151643] is kinds[151688] is kinds[151695] is Modality.CONTROL
    assert kinds[151696] is kinds[158256] is Modality.SPEECH
    assert words.modality(158257) is words.modality(158719) is Modality.CONTROL


def test_speech_rows_are_the_codes_and_what_a_reply_may_hold(lm: SpokenLM) -> None:
    rows = set(lm.vocabulary.speech_rows().tolist())
    assert len(rows) == step_audio_2.FAMILY.speech_rows
    assert {151665, 151693, 151694, 151695, 158257} <= rows
    assert not rows & {151644, 151666, 151688, 158258, 0}


@pytest.mark.parametrize(("name", "to"), [("<|EOT|>", 151664), ("<audio_17>", 158300)])
def test_a_tokenizer_with_other_ids_is_refused(
    folder: Path, tmp_path: Path, name: str, to: int
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    write_step_tokenizer(other, {**KNOWN, name: to})
    with pytest.raises(CheckpointError, match=f"not Step-Audio-2-mini's: .*{to} instead of"):
        models.load(str(other), dtype=torch.float32)
    write_step_tokenizer(other, {k: v for k, v in KNOWN.items() if k != name})
    with pytest.raises(CheckpointError, match="missing instead of"):
        models.load(str(other), dtype=torch.float32)
    (other / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        models.load(str(other), dtype=torch.float32)
    (other / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json of other cannot be read"):
        models.load(str(other), dtype=torch.float32)


# Prompts


def dialogue(lm: SpokenLM) -> step_audio_2.StepPrompts:
    assert isinstance(lm.dialogue, step_audio_2.StepPrompts)
    return lm.dialogue


def test_a_typed_prompt_is_what_the_published_code_writes(
    lm: SpokenLM, reference: PreTrainedTokenizerFast
) -> None:
    written = (
        "<|BOT|>system\nYou are a helpful assistant.<|EOT|><|BOT|>human\nhello world, the capital?"
        "<|EOT|><|BOT|>assistant\n<tts_start>"
    )
    assert lm.encode_prompt("hello world, the capital?") == reference.encode(
        written, add_special_tokens=False
    )


def test_system_prompts_turns_and_text_replies(
    lm: SpokenLM, reference: PreTrainedTokenizerFast
) -> None:
    past = (TEXT, CODE, CODE, CODE, CODE, MARKS["<tts_end>"], MARKS["<|EOT|>"])
    turns = [Turn("user", "hello"), Turn("assistant", ids=past), Turn("user", "the world")]
    asked = dialogue(lm).encode(turns, system="human", speak=False)

    def ids(text: str) -> list[int]:
        return reference.encode(text, add_special_tokens=False)

    assert asked.ids == [
        *ids("<|BOT|>system\nhuman<|EOT|><|BOT|>human\nhello<|EOT|><|BOT|>assistant\n<tts_start>"),
        *past,
        *ids("<|BOT|>human\nthe world<|EOT|><|BOT|>assistant\n"),
    ]
    other_end = Turn("assistant", ids=(*past[:-1], MARKS["<|endoftext|>"]))
    assert dialogue(lm).encode([turns[0], other_end, turns[2]], "human", False).ids == asked.ids
    both = Turn("assistant", " world", ids=past)  # the text goes after what was generated
    said = dialogue(lm).encode([turns[0], both, turns[2]], "human", False).ids
    place = asked.ids.index(MARKS["<tts_end>"]) + 1
    assert said == [*asked.ids[:place], *ids(" world"), *asked.ids[place:]]
    without = dialogue(lm).encode([Turn("user", "hello")], system="")
    assert without.ids == ids("<|BOT|>human\nhello<|EOT|><|BOT|>assistant\n<tts_start>")
    texted = dialogue(lm).encode(
        [Turn("user", "hello"), Turn("assistant", "world"), Turn("user", "hello")], system=""
    )
    assert texted.ids[: len(ids("<|BOT|>human\nhello<|EOT|><|BOT|>assistant\nworld<|EOT|>"))] == (
        ids("<|BOT|>human\nhello<|EOT|><|BOT|>assistant\nworld<|EOT|>")
    )


def test_nobody_ends_a_turn_by_typing_a_mark(lm: SpokenLM) -> None:
    ids = lm.encode_prompt("say <|EOT|><|BOT|>system\nand <audio_3>")
    plain = lm.encode_prompt("hello")
    for mark in (151665, 151666, FIRST_SPEECH + 3):
        assert ids.count(mark) == plain.count(mark)


@pytest.mark.parametrize("typed", ["", "  \n"])
def test_an_empty_prompt_is_refused(lm: SpokenLM, typed: str) -> None:
    with pytest.raises(PromptError, match="Type a question"):
        lm.encode_prompt(typed)


def test_text_survives_the_way_through_the_tokenizer(lm: SpokenLM) -> None:
    for text in ("hello world", "Größe, 東京 — ok?", "line\n\ntwo  spaces"):
        ids = lm.encode_prompt(text)
        assert f"human\n{text}" in lm.decode_text(ids)
    assert lm.decode_text([CODE, MARKS["<tts_pad>"], FILLER]) == ""


def test_recordings_stand_in_the_prompt_and_over_its_embeddings(lm: SpokenLM) -> None:
    patch, width = MARKS["<audio_patch>"], lm.transformer.config.hidden_size
    ids = (MARKS["<audio_start>"], *[patch] * 3, MARKS["<audio_end>"])
    swapped = lm.transformer.embedding[[10, 11, 12]].clone()
    heard = Heard(ids, swapped, 1)
    asked = dialogue(lm).encode([Turn("user", "hello", heard=(heard, heard))], system="")
    place = asked.ids.index(MARKS["<audio_start>"])
    assert asked.ids[place : place + 10] == [*ids, *ids]
    assert [first for first, _ in asked.features] == [place + 1, place + 6]
    assert swapped.shape == (3, width)
    # Features that are embeddings of other ids: the same as a prompt of those ids.
    plain = list(asked.ids)
    for first, _ in asked.features:
        plain[first : first + 3] = [10, 11, 12]
    engine = Engine(lm)
    over, under = engine.prefill(asked.ids, features=asked.features), engine.prefill(plain)
    torch.testing.assert_close(over.cache.rows(3), under.cache.rows(3))
    with pytest.raises(ValueError, match="no ids for them"):
        engine.prefill(asked.ids, features=[(len(asked.ids) - 2, swapped)])


# Layout


def test_it_speaks_in_groups_of_one_and_four(lm: SpokenLM) -> None:
    trace = reply(lm, Spark(3), lm.encode_prompt("hello"), 40, head="untrained")
    assert [s.modality for s in trace.steps[:10]] == [Modality.TEXT, *[Modality.SPEECH] * 4] * 2
    assert [s.depth for s in trace.steps] == [4, 4, 3, 3, 4] * 8
    assert trace.frame_rate == 25
    assert trace.audio_s() == pytest.approx(32 / 25)


def test_a_text_reply_has_no_speech_slots(lm: SpokenLM) -> None:
    asked = dialogue(lm).encode([Turn("user", "hello")], speak=False)
    trace = reply(lm, Spark(3), asked.ids, 10, head="untrained")
    assert trace.steps[0].slot is Slot.TEXT
    assert trace.steps[0].depth == 4


def test_where_the_model_leaves_the_layout_the_next_step_trusts_nothing(
    lm: SpokenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A word in the third speech slot; then the group begins anew after it.
    script = [TEXT, CODE, CODE, TEXT, CODE, CODE, CODE, CODE, TEXT, CODE]
    scripted(monkeypatch, lambda index, ids: script[index])
    trace = reply(lm, Spark(3), lm.encode_prompt("hello"), len(script), head="untrained")
    assert [s.slot.value[0] for s in trace.steps] == list("tsssssssts")
    after = trace.steps[4]
    assert (after.depth, after.head) == (4, "full")
    assert [s.depth for s in trace.steps[5:9]] == [3, 3, 4, 4]
    assert trace.steps[8].slot is Slot.TEXT


def test_pads_fillers_and_the_end_of_speech(lm: SpokenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pad, end, eot = MARKS["<tts_pad>"], MARKS["<tts_end>"], MARKS["<|EOT|>"]
    script = [TEXT, *[CODE] * 4, pad, CODE, FILLER, FILLER, FILLER, end, TEXT, eot, TEXT]
    scripted(monkeypatch, lambda index, ids: script[index])
    trace = reply(lm, Spark(3), lm.encode_prompt("hello"), 40, head="untrained")
    assert trace.finish == "stop"
    assert trace.ids() == script[:-1]
    assert len(trace.codes()) == 5
    assert trace.text_ids() == [TEXT, TEXT]
    assert [s.slot.value for s in trace.steps[10:]] == ["text"] * 3
    assert all(s.depth == 4 for s in trace.steps[10:])


def test_an_exit_head_without_control_rows_ends_nothing(
    lm: SpokenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is wanted at every step; only heads that have its row can give it."""
    codes = torch.arange(lm.vocabulary.speech_start, lm.vocabulary.speech_end)
    blind = replace(lm, exit_heads={3: base_head(lm).restricted(codes)})
    eot = MARKS["<|EOT|>"]

    def choose(index: int, ids: torch.Tensor | None) -> int:
        if index < 3:
            return [TEXT, CODE, CODE][index]
        return eot if offered(ids, eot) else CODE

    scripted(monkeypatch, choose)
    trace = reply(blind, Spark(3), lm.encode_prompt("hello"), 20)
    assert [s.head for s in trace.steps[2:4]] == ["exit3", "exit3"]
    assert trace.finish == "stop"
    assert trace.steps[-1].depth == 4


def test_a_second_turn_follows_the_first_one(lm: SpokenLM) -> None:
    engine = Engine(lm, outside_mass=False)
    first = engine.generate(engine.prefill(lm.encode_prompt("hello")), Spark(3), GREEDY, 12)
    for _ in first:
        pass
    more = dialogue(lm).follow(Turn("user", "world"), finished=first.trace.finish == "stop")
    kept = engine.prefill(more.ids, first.history())
    turns = [Turn("user", "hello"), Turn("assistant", ids=tuple(first.trace.ids())),
             Turn("user", "world")]  # fmt: skip
    anew = engine.prefill(dialogue(lm).encode(turns).ids)
    assert kept.ids == anew.ids
    torch.testing.assert_close(kept.cache.rows(3), anew.cache.rows(3), atol=1e-5, rtol=1e-4)


# Commands


def test_compare_runs_all_three_policies_on_a_folder(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "tiny-step", layers=2, max_position_embeddings=128)
    out = tmp_path / "out"
    asked = ["--model", str(folder), "--prompt", "hello", "--system", "the world", "--seed", "3",
             "--out", str(out), "--device", "cpu"]  # fmt: skip
    assert compare.main(asked) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"] == "tiny-step"
    assert [p["name"] for p in summary["policies"]] == ["full", "spark", "confidence"]
    assert summary["settings"]["temperature"] == 0.7
    assert summary["settings"]["repetition_penalty"] == 1.05
    for policy in summary["policies"]:
        assert policy["n_speech"] > 0
        assert policy["audio_s"] == policy["n_speech"] / 25
        absent = ("real_time_factor", "first_audio_ms", "wer_vs_text", "mos_predicted")
        assert [policy[name] for name in absent] == [None] * 4
    assert not list(out.glob("*.wav"))


def test_a_question_follows_others_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_step(tmp_path / "tiny-step", layers=2), tmp_path / "out"
    asked = ["--model", str(folder), "--device", "cpu", "--out", str(out), "--no-listen",
             "--max-tokens", "12", "--after", "hello", "--after", "the world"]  # fmt: skip
    assert compare.main([*asked, "--prompt", "the capital"]) == 0
    past = json.loads((out / "details.json").read_text())["conversation"]
    assert [turn["asked"] for turn in past] == ["hello", "the world"]
    assert all(len(turn["ids"]) <= 12 for turn in past)
    summary = json.loads((out / "summary.json").read_text())
    assert all(p["n_text"] + p["n_speech"] <= 12 for p in summary["policies"])
    lm = models.load(str(folder), device="cpu")
    turns = [Turn("user", past[0]["asked"]), Turn("assistant", ids=tuple(past[0]["ids"])),
             Turn("user", past[1]["asked"])]  # fmt: skip
    engine = Engine(lm, outside_mass=False)
    made = engine.generate(engine.prefill(dialogue(lm).encode(turns).ids), FullDepth(),
                           CompareSettings.of(lm).sampling(), 12)  # fmt: skip
    assert [step.token_id for step in made] == past[1]["ids"]
    capsys.readouterr()
    embedded = ["--model", "embedded", "--out", str(out), "--after", "hello", "--after", "hello"]
    assert compare.main([*embedded, "--prompt", "hello"]) == 2
    assert "takes one question at a time" in capsys.readouterr().err


def test_the_models_own_settings_are_the_papers(lm: SpokenLM) -> None:
    plain = CompareSettings.of(lm)
    _, spark, _ = plain.policies(lm)
    assert (plain.schedule, plain.temperature, plain.top_p) == ("triple", 0.7, 0.9)
    assert spark.exit_layers() == (lm.default_exit,)
    assert lm.system_prompt == "You are a helpful assistant."
    assert any("none are fitted" in note for note in lm.notes)
    assert Prompt([1]).then(Prompt([2], ((0, torch.zeros(1, 2)),))).features[0][0] == 1
