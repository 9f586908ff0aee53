"""The decode benchmark prints what its contract says, and its baseline is the same model."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import decode, random_model
from spark.engine import Engine
from spark.modality import Slot
from spark.sampling import SamplingSettings
from spark.schedule import FullDepth, Spark


def test_the_last_line_is_the_contracts_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--model random --repeats 2 --tokens 11 --no-compile"
    monkeypatch.setattr(sys, "argv", ["decode", *options.split()])
    decode.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"model", "device", "dtype", "threads", "rows", "generate_ms_per_token"} <= result.keys()
    assert {"speedup_over_generate", "floor_ratio", "depth_cut_realised"} <= result.keys()
    assert result["generate_compiled_ms_per_token"] is None
    by_name = {row["policy"]: row for row in result["rows"]}
    assert {"full", "spark", "confidence", "fixed"} <= by_name.keys()
    for row in result["rows"]:
        assert row["tokens_per_s"] == pytest.approx(1000 / row["ms_per_token"])
        assert row["gb_per_s"] > 0
    full, spark = by_name["full"], by_name["spark"]
    assert (full["traffic_ratio"], full["time_ratio"], full["mean_depth_speech"]) == (1, 1, 14)
    assert spark["mean_depth_speech"] == 12.5
    cut = (1 - spark["time_ratio"]) / (1 - spark["traffic_ratio"])
    assert result["depth_cut_realised"] == pytest.approx(cut)
    assert result["floor_ratio"] > 0


@torch.inference_mode()
def test_the_baseline_computes_the_same() -> None:
    """transformers' model, given the engine's reply, finds its greedy tokens too."""
    lm = random_model.load()
    engine = Engine(lm, speech_row_head=False)
    ids = lm.encode_prompt("hello")
    greedy = SamplingSettings(temperature=0)
    reply = [step.token_id for step in engine.generate(engine.prefill(ids), FullDepth(), greedy, 8)]
    logits = decode.reference_model(lm)(torch.tensor([ids + reply])).logits[0]
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == reply


def test_random_replies_keep_to_the_layout() -> None:
    lm = random_model.load()
    engine = Engine(lm, outside_mass=False)
    start = engine.prefill(lm.encode_prompt("hello"))
    steps = list(engine.generate(start, Spark(11), SamplingSettings(), 30))
    kept = sum(step.modality.value == step.slot.value for step in steps)
    assert kept >= 0.9 * len(steps)
    assert sum(step.slot is Slot.SPEECH for step in steps) == 24
