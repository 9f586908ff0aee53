"""GLM-4-Voice-9B on synthetic checkpoints: weights, ids, prompts, layout, commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GlmConfig, GlmForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

from spark import compare, models
from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.heads import base_head
from spark.modality import Modality, Slot
from spark.models import glm4_voice
from spark.models.base import Heard, PromptError, SpokenLM, Turn
from spark.models.checkpoint import CheckpointError
from spark.models.glm4_voice import FIRST_SPEECH, MARKS, SYSTEM_SPEECH, SYSTEM_TEXT
from spark.schedule import FullDepth, Spark
from tests.checkpoints import glm_config, glm_marks, write_glm
from tests.large import GREEDY, offered, reply, scripted

TEXT, CODE, USER = 70, FIRST_SPEECH + 5, MARKS["<|user|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm(tmp_path_factory.mktemp("glm") / "mine", layers=4)


@pytest.fixture(scope="module")
def lm(folder: Path) -> SpokenLM:
    return models.load(str(folder), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Tokenizer:
    """transformers' conversion of the same ranks, with the marks as special tokens."""
    marks = [name for name, _ in sorted(glm_marks().items(), key=lambda item: item[1])]
    return TikTokenConverter(
        str(folder / "tokenizer.model"), extra_special_tokens=marks
    ).converted()


def ids_of(reference: Tokenizer, text: str) -> list[int]:
    return list(reference.encode(text, add_special_tokens=False).ids)


def transformers_model(folder: Path, dtype: torch.dtype) -> GlmForCausalLM:
    """GlmForCausalLM from the same files, mapped by hand as the notes on the model have it."""
    raw = json.loads((folder / "config.json").read_text())
    config = GlmConfig(
        vocab_size=168960, hidden_size=32, intermediate_size=48,
        num_hidden_layers=raw["num_layers"], num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, rms_norm_eps=3.90625e-08, attention_bias=True, tie_word_embeddings=False,
        max_position_embeddings=512,
    )  # fmt: skip
    stored = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored |= load_file(shard)
    state = {
        "model.embed_tokens.weight": stored["transformer.embedding.word_embeddings.weight"],
        "model.norm.weight": stored["transformer.encoder.final_layernorm.weight"],
        "lm_head.weight": stored["transformer.output_layer.weight"],
    }
    for i in range(raw["num_layers"]):
        old, new = f"transformer.encoder.layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias"):
            q, k, v = stored[f"{old}self_attention.query_key_value.{kind}"].split((32, 16, 16))
            state |= {f"{new}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", (q, k, v),
                                                                          strict=True)}  # fmt: skip
        state[new + "self_attn.o_proj.weight"] = stored[old + "self_attention.dense.weight"]
        state[new + "mlp.gate_up_proj.weight"] = stored[old + "mlp.dense_h_to_4h.weight"]
        state[new + "mlp.down_proj.weight"] = stored[old + "mlp.dense_4h_to_h.weight"]
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            state[new + norm] = stored[old + norm]
    model = GlmForCausalLM(config)
    model.load_state_dict(state, strict=True)
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
    ids = torch.tensor([lm.encode_prompt("hello world")[-60:]])
    body = lm.transformer
    states = body.run_layers(0, 4, body.embed(ids), torch.arange(60), body.new_cache(60))
    ours, theirs = base_head(lm).logits(states), model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=bound)


def test_greedy_replies_are_generates(folder: Path, lm: SpokenLM) -> None:
    ids = lm.encode_prompt("the capital")
    theirs = transformers_model(folder, torch.float32).generate(
        torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=USER, pad_token_id=0
    )
    engine = Engine(lm, speech_row_head=False, outside_mass=False)
    made = engine.generate(engine.prefill(ids), FullDepth(), GREEDY, 30)
    assert [step.token_id for step in made] == theirs[0, len(ids) :].tolist()


def test_the_published_shape_is_the_one_on_record() -> None:
    config = glm_config(
        layers=40, hidden_size=4096, ffn_hidden_size=13696, num_attention_heads=32,
        kv_channels=128, seq_length=8192,
    )  # fmt: skip
    shape = glm4_voice.shape_of(config)
    assert shape == glm4_voice.FAMILY.shape
    names = glm4_voice.weight_names(shape)
    assert len(names) + 1 == 284  # and the rotary buffer
    assert len(glm4_voice.sources(shape)) == 443
    weights = sum(int(torch.tensor(size).prod()) for size in names.values())
    assert weights == 9_542_557_696


def test_the_papers_exit_is_the_default_and_keeps_its_share_of_other_depths() -> None:
    exits, default = glm4_voice.FAMILY.exits_of(40)
    assert default == 37
    assert default in exits
    assert glm4_voice.FAMILY.exits_of(20)[1] == 18


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"add_bias_linear": True}, "says add_bias_linear True"),
        ({"rmsnorm": False}, "says rmsnorm False"),
        ({"multi_query_group_num": None}, "multi_query_group_num"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(changes: dict[str, object], says: str) -> None:
    config = {k: v for k, v in glm_config(**changes).items() if v is not None}
    with pytest.raises(CheckpointError, match=says):
        glm4_voice.shape_of(config)


def test_rope_ratio_scales_theta() -> None:
    assert glm4_voice.shape_of(glm_config(rope_ratio=500)).rope_theta == 5e6


# Ids


def test_ids_are_the_published_ones(lm: SpokenLM) -> None:
    words = lm.vocabulary
    assert (words.speech_start, words.speech_end) == (152353, 168737)
    assert words.stop_ids == (151336, 151329, 151338)
    assert words.modality(151328) is Modality.TEXT
    assert words.modality(152352) is words.modality(168737) is Modality.CONTROL
    assert words.modality(152353) is words.modality(168736) is Modality.SPEECH
    rows = set(words.speech_rows().tolist())
    assert len(rows) == glm4_voice.FAMILY.speech_rows
    assert set(words.stop_ids) <= rows
    assert 151337 not in rows


def test_a_tokenizer_with_other_ids_is_refused(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    path = other / "tokenizer_config.json"
    table = json.loads(path.read_text())
    table["added_tokens_decoder"]["151336"]["content"] = "<|someone|>"
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"not GLM-4-Voice-9B's: <\|user\|> missing instead"):
        models.load(str(other), dtype=torch.float32)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="no added_tokens_decoder"):
        models.load(str(other), dtype=torch.float32)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "is missing"), (b"not base64 at all", "no tiktoken ranks"), (b"%%% 1", "no tiktoken"),
     (b"-1", "impossible ones"), (b"99999999999", "impossible ones")],
)  # fmt: skip
def test_ranks_that_are_none(
    folder: Path, tmp_path: Path, content: bytes | None, says: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "tokenizer.model").unlink()
    if content is not None:
        if says == "impossible ones":  # the last of all
            ranks = (folder / "tokenizer.model").read_bytes().splitlines()
            content = b"\n".join((*ranks[:-1], ranks[-1].split()[0] + b" " + content))
        (other / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.model.*{says}"):
        models.load(str(other), dtype=torch.float32)


# Prompts


def dialogue(lm: SpokenLM) -> glm4_voice.GlmPrompts:
    assert isinstance(lm.dialogue, glm4_voice.GlmPrompts)
    return lm.dialogue


def test_the_system_texts_are_the_trained_ones() -> None:
    assert SYSTEM_SPEECH.endswith("26 audio tokens. ")
    assert SYSTEM_TEXT.endswith("26 audio tokens.")
    assert "a speech instruction" in SYSTEM_SPEECH
    assert "a text instruction" in SYSTEM_TEXT
    assert "in a interleaved manner, with 13 text token followed by 26" in SYSTEM_TEXT


def test_a_typed_prompt_is_what_the_published_code_writes(
    lm: SpokenLM, reference: Tokenizer
) -> None:
    written = (
        f"[gMASK]<sop><|system|>\n{SYSTEM_TEXT}<|user|>\nhello world, 1234?"
        "<|assistant|>streaming_transcription\n"
    )
    assert lm.encode_prompt("hello world, 1234?") == ids_of(reference, written)
    assert lm.encode_prompt("x")[:3] == [151331, 151333, 151335]


@pytest.mark.parametrize(
    "text", ["hello world", "It's 12345 — Größe\n\n  東京ok", "the the  capital's\r\n"]
)
def test_text_is_split_as_transformers_converter_splits_it(
    lm: SpokenLM, reference: Tokenizer, text: str
) -> None:
    words = dialogue(lm)._words
    assert words.encode(text) == ids_of(reference, text)
    assert words.decode(words.encode(text)) == text


def test_spoken_prompts_have_a_system_text_of_their_own(lm: SpokenLM, reference: Tokenizer) -> None:
    codes = (MARKS["<|begin_of_audio|>"], CODE, CODE + 1, MARKS["<|end_of_audio|>"])
    asked = dialogue(lm).encode([Turn("user", heard=(Heard(codes),))])
    written = f"[gMASK]<sop><|system|>\n{SYSTEM_SPEECH}<|user|>\n"
    end = "<|assistant|>streaming_transcription\n"
    assert asked.ids == [*ids_of(reference, written), *codes, *ids_of(reference, end)]
    assert asked.features == ()


def test_more_turns_and_what_it_does_not_take(lm: SpokenLM, reference: Tokenizer) -> None:
    past = (TEXT, TEXT, CODE, CODE, USER)
    turns = [Turn("user", "hello"), Turn("assistant", ids=past), Turn("user", "world")]
    written = f"[gMASK]<sop><|system|>\n{SYSTEM_TEXT}<|user|>\nhello<|assistant|>"
    assert dialogue(lm).encode(turns).ids == [
        *ids_of(reference, f"{written}streaming_transcription\n"),
        *past[:-1],
        *ids_of(reference, "<|user|>\nworld<|assistant|>streaming_transcription\n"),
    ]
    with pytest.raises(PromptError, match="its own system prompt only"):
        dialogue(lm).encode([Turn("user", "x")], system="be brief")
    with pytest.raises(PromptError, match="always answers in speech"):
        dialogue(lm).encode([Turn("user", "x")], speak=False)
    for turns in ([], [Turn("assistant", "x")], [Turn("user", " ")]):
        with pytest.raises(PromptError, match="Type a question"):
            dialogue(lm).encode(turns)


def test_nobody_ends_a_turn_by_typing_a_mark(lm: SpokenLM) -> None:
    ids, plain = lm.encode_prompt("say <|user|> <|audio_3|>"), lm.encode_prompt("hello")
    assert ids.count(USER) == plain.count(USER) == 1
    assert FIRST_SPEECH + 3 not in ids


def test_a_second_turn_follows_the_first_one(lm: SpokenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lm, outside_mass=False)
    for script in ([TEXT, CODE, CODE, CODE, USER], [TEXT, CODE, CODE]):
        with monkeypatch.context() as patch:
            scripted(patch, lambda index, ids, script=script: script[index])
            first = engine.generate(
                engine.prefill(lm.encode_prompt("hello")), Spark(3), GREEDY, len(script)
            )
            for _ in first:
                pass
        finished = first.trace.finish == "stop"
        assert finished == (script[-1] == USER)
        more = dialogue(lm).follow(Turn("user", "world"), finished)
        kept = engine.prefill(more.ids, first.history())
        turns = [Turn("user", "hello"), Turn("assistant", ids=tuple(script)),
                 Turn("user", "world")]  # fmt: skip
        anew = engine.prefill(dialogue(lm).encode(turns).ids)
        assert kept.ids == anew.ids
        torch.testing.assert_close(kept.cache.rows(3), anew.cache.rows(3), atol=1e-5, rtol=1e-4)


# Layout


def test_blocks_of_13_and_26(lm: SpokenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ([TEXT] * 13 + [CODE] * 26) * 2
    scripted(monkeypatch, lambda index, ids: script[index])
    trace = reply(lm, Spark(3), lm.encode_prompt("hello"), 78, head="untrained")
    assert trace.ids() == script
    depths = [s.depth for s in trace.steps]
    assert depths[:13] == [4] * 13
    assert depths[13:39] == ([4, 3, 3] * 9)[:26]
    assert depths[39:52] == [4] * 13
    assert depths[52:78] == ([4, 3, 3] * 9)[:26]
    # The paper's 38 of 40: 9 of 26 in full at exit 37.
    assert pytest.approx(38.04, abs=0.005) == (9 * 40 + 17 * 37) / 26


def test_once_the_text_is_over_only_speech_follows(
    lm: SpokenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [TEXT] * 13 + [CODE] * 26 + [TEXT] * 4 + [CODE] * 40 + [USER]
    scripted(monkeypatch, lambda index, ids: script[index])
    trace = reply(lm, Spark(3), lm.encode_prompt("hello"), 100, head="untrained")
    assert trace.finish == "stop"
    assert len(trace.codes()) == 66
    first = 13 + 26 + 4  # the code that came in a text slot
    assert trace.steps[first].slot is Slot.TEXT
    assert (trace.steps[first + 1].depth, trace.steps[first + 1].head) == (4, "full")
    tail = trace.steps[first + 1 :]
    assert {s.slot for s in tail} == {Slot.SPEECH}
    assert {s.chunk for s in tail} == {1}
    assert [s.depth for s in tail[2:8]] == [4, 3, 3, 4, 3, 3]
    assert trace.steps[-1].slot is Slot.SPEECH


def test_a_stop_in_a_speech_slot_is_never_an_exit_heads_without_control_rows(
    lm: SpokenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is wanted from the second code on; only heads that have its row can give it."""
    codes = torch.arange(lm.vocabulary.speech_start, lm.vocabulary.speech_end)
    blind = replace(lm, exit_heads={3: base_head(lm).restricted(codes)})

    def choose(index: int, ids: torch.Tensor | None) -> int:
        if index < 13:
            return TEXT
        return USER if index > 13 and offered(ids, USER) else CODE

    scripted(monkeypatch, choose)
    trace = reply(blind, Spark(3), lm.encode_prompt("hello"), 30)
    assert [(s.depth, s.head) for s in trace.steps[14:17]] == [
        (3, "exit3"), (3, "exit3"), (4, "speech")]  # fmt: skip
    assert trace.finish == "stop"
    with monkeypatch.context() as patch:
        scripted(patch, choose)
        seeing = reply(lm, Spark(3), lm.encode_prompt("hello"), 30, head="untrained")
    assert (seeing.steps[-1].depth, seeing.finish) == (3, "stop")


# Commands


def test_compare_runs_all_three_policies_on_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_glm(tmp_path / "tiny-glm", layers=2, seq_length=420)
    out = tmp_path / "out"
    asked = ["--model", str(folder), "--prompt", "hello", "--out", str(out), "--device", "cpu"]
    assert compare.main([*asked, "--system", "be brief"]) == 2
    assert "its own system prompt only" in capsys.readouterr().err
    assert compare.main(asked) == 0
    assert "Built with glm-4." in capsys.readouterr().err
    details = json.loads((out / "details.json").read_text())
    assert details["conversation"] == []
    summary = json.loads((out / "summary.json").read_text())
    assert [p["name"] for p in summary["policies"]] == ["full", "spark", "confidence"]
    assert (summary["settings"]["temperature"], summary["settings"]["top_p"]) == (0.2, 0.8)
    for policy in summary["policies"]:
        assert policy["n_text"] >= 13
        assert policy["audio_s"] == policy["n_speech"] / 12.5
        assert policy["mos_predicted"] is None
        assert policy["wer_vs_text"] is None


def test_the_models_own_settings_are_the_papers(lm: SpokenLM) -> None:
    plain = CompareSettings.of(lm)
    assert plain.schedule == "triple"
    assert plain.policies(lm)[1].exit_layers() == (lm.default_exit,)
    assert lm.licence.startswith("Built with glm-4.")
    assert lm.system_prompt is None
    assert any("none are fitted" in note for note in lm.notes)
    assert glm4_voice.FAMILY.heads_name.startswith("glm-4")
