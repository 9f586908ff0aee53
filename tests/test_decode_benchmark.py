"""The decode benchmark prints what its contract says, and its baseline is the same model."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import decode, random_model, rows
from benchmarks.baseline import reference_model
from spark.acceptance import ALWAYS, EXACT
from spark.engine import Engine, Generation
from spark.evaluation import speed
from spark.modality import Slot
from spark.models import load
from spark.sampling import SamplingSettings
from spark.schedule import ConfidenceExit, FullDepth, Spark
from spark.trace import Step
from tests.tiny import tiny_lm, tiny_prompt


def test_the_last_line_is_the_contracts_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = f"--model random --repeats 2 --tokens 11 --no-compile --out {tmp_path}/a/decode.json"
    monkeypatch.setattr(sys, "argv", ["decode", *options.split()])
    decode.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "a" / "decode.json").read_text()) == result
    assert {"model", "device", "dtype", "threads", "rows", "generate_ms_per_token"} <= result.keys()
    assert {"speedup_over_generate", "floor_ratio", "depth_cut_realised"} <= result.keys()
    assert result["generate_compiled_ms_per_token"] is None
    by_name = {row["policy"]: row for row in result["rows"]}
    assert {"full", "spark", "confidence", "fixed"} <= by_name.keys()
    for row in result["rows"]:
        assert row["tokens_per_s"] == pytest.approx(1000 / row["ms_per_token"])
        assert row["gb_per_s"] > 0
        assert row["lowest"] <= row["ms_per_token"] <= row["highest"]
        assert sum(kind["steps"] for kind in row["kinds"].values()) == 2 * 11
        assert all(kind["ms"] > 0 for kind in row["kinds"].values())
    for name in ("copy_gb_per_s", "reading_gb_per_s", "floor_gb_per_s", "policies_gb"):
        assert result[name] > 0
    full, spark = by_name["full"], by_name["spark"]
    assert (full["traffic_ratio"], full["time_ratio"], full["mean_depth_speech"]) == (1, 1, 14)
    assert spark["mean_depth_speech"] == 12.5
    assert {"speech, full"} == {name for name in full["kinds"] if "speech" in name}
    assert {"speech, exit", "speech, refresh"} <= spark["kinds"].keys()
    assert by_name["fixed"]["kinds"].keys() >= {"speech, exit"}
    assert "speech, refresh" not in by_name["fixed"]["kinds"]
    cut = (1 - spark["time_ratio"]) / (1 - spark["traffic_ratio"])
    assert result["depth_cut_realised"] == spark["cut_realised"] == pytest.approx(cut)
    assert full["cut_realised"] is None
    assert result["generate_static_ms_per_token"] > 0
    assert result["speedup_over_static_generate"] > 0
    assert result["floor_ratio"] > 0
    assert result["reading_ratio"] > 0
    old = [{k: v for k, v in row.items() if k != "kinds"} for row in result["rows"]]
    with pytest.raises(ValueError, match=r"lacks 'kinds'.*Run .*benchmarks\.decode"):
        speed.tables({"decode": result | {"rows": old}})
    told = speed.tables({"decode": result})
    line = next(text for text in told.splitlines() if text.startswith("| spark |"))
    assert f"| {spark['ms_per_token']:.2f} ({spark['lowest']:.2f} to " in line
    assert f" | {spark['tokens_per_s']:.0f} |" in line
    kinds = [text for text in told.splitlines() if text.startswith("| spark |")][1]
    assert f"| {spark['kinds']['speech, exit']['ms']:.2f} |" in kinds
    assert f"| {100 * spark['traffic_ratio']:.1f} % | {100 * spark['time_ratio']:.1f} % |" in line
    assert f"is {result['speedup_over_generate']:.1f} times as fast" in told
    assert "(not measured where that is compiled)" in told


def test_full_depth_is_asked_through_heads_that_cannot_end_a_reply() -> None:
    lm = load("embedded")
    replies = []
    sure = ConfidenceExit("max_prob", 0.5, lm.candidate_exits)
    for policy, acceptance in ((FullDepth(), ALWAYS), (sure, EXACT)):
        engine = decode.endless(Engine(lm, outside_mass=False))
        start = engine.prefill(lm.encode_prompt("Hello, who are you?"))
        made = engine.generate(start, policy, SamplingSettings(seed=2), 60, acceptance=acceptance)
        replies.append([step.token_id for step in made])
    assert len(replies[0]) == 60
    assert replies[0] == replies[1]


def test_every_policy_is_timed_over_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends its replies does not here, and the clock runs between steps too."""
    lm = replace(tiny_lm(0), encode_prompt=lambda text: tiny_prompt("hello"))
    words, engine = lm.vocabulary, Engine(lm)
    start = engine.prefill(lm.encode_prompt(""))
    assert len(list(engine.generate(start, FullDepth(), SamplingSettings(seed=0)))) < 100
    step = Generation.__next__

    def slow(made: Generation) -> Step:
        time.sleep(0.002)  # a loop's own work, outside the engine's clock
        return step(made)

    monkeypatch.setattr(Generation, "__next__", slow)
    got = decode.measure(lm, decode.contenders(lm, *decode.engines(lm)), {}, repeats=1, tokens=100)
    assert set(got.runs) == {decode.WHOLE_HEAD, "full", "spark", "confidence", "fixed"}
    for name, (run,) in got.runs.items():
        assert len(run.trace.steps) == 100
        assert run.trace.finish == "length"
        assert not {step.token_id for step in run.trace.steps} & {*words.stop_ids, words.tts_end}
        inside = sum(step.elapsed_ms for step in run.trace.steps) / 100
        assert got.ms[name][0] > inside + 2


@pytest.mark.long
def test_full_depth_beats_generate_on_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same arithmetic, every row at every step, at least 1.5 times as fast."""
    monkeypatch.setattr(sys, "argv", ["decode", "--repeats", "5", "--no-compile"])
    decode.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["model"] == "embedded"
    assert result["speedup_over_generate"] >= 1.5


@torch.inference_mode()
def test_the_baseline_computes_the_same() -> None:
    """transformers' model, given the engine's reply, finds its greedy tokens too."""
    lm = random_model.load()
    engine = Engine(lm, speech_row_head=False)
    ids = lm.encode_prompt("hello")
    greedy = SamplingSettings(temperature=0)
    reply = [step.token_id for step in engine.generate(engine.prefill(ids), FullDepth(), greedy, 8)]
    logits = reference_model(lm)(torch.tensor([ids + reply])).logits[0]
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == reply


def test_random_replies_keep_to_the_layout() -> None:
    lm = random_model.load()
    engine = Engine(lm, outside_mass=False)
    start = engine.prefill(lm.encode_prompt("hello"))
    steps = list(engine.generate(start, Spark(11), SamplingSettings(), 30))
    kept = sum(step.modality.value == step.slot.value for step in steps)
    assert kept >= 0.9 * len(steps)
    assert sum(step.slot is Slot.SPEECH for step in steps) == 24


def test_the_real_time_factor_is_time_over_speech() -> None:
    """Of the codes, at their rate; nothing is told where the rate is unknown."""
    lm = random_model.load()
    engine = decode.endless(Engine(lm, outside_mass=False))
    start = engine.prefill(lm.encode_prompt("hello"))
    made = engine.generate(start, FullDepth(), SamplingSettings(), 60)
    for _ in made:
        pass
    trace = replace(made.trace, frame_rate=12.5)
    seconds = len(trace.codes()) / 12.5
    assert seconds > 1
    assert rows.real_time_factor(rows.Run(trace, 500.0)) == pytest.approx(0.5 / seconds)
    assert rows.real_time_factor(rows.Run(replace(trace, frame_rate=None), 500.0)) is None
