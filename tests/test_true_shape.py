"""The large models' shapes with random weights, narrow ones here: what is timed, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode, true_shape
from benchmarks.baseline import reference_model
from spark import graphs, hardware
from spark.cache import Leg
from spark.engine import Engine
from spark.graphs import Graphs
from spark.heads import base_head
from spark.models import glm4_voice, step_audio_2
from spark.sampling import SamplingSettings
from spark.schedule import Spark
from spark.transformer import Transformer


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As deep as the real ones and with as many ids, 32 wide."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    found = {}
    for family in (step_audio_2.FAMILY, glm4_voice.FAMILY):
        rotary = 8 if family.shape.family == "qwen2" else 4
        shape = replace(family.shape, **small, rotary_dim=rotary)
        found[family.name] = replace(family, shape=shape)
    monkeypatch.setattr(true_shape, "FAMILIES", found)


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    command = ["--random", "--no-compile", "--device", "cpu", *options]
    assert decode.main(command) == 0
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


@pytest.mark.parametrize(
    ("name", "tokens", "depth"),
    # Depths as the paper has them: one chunk of 4 is F S S F, one of 26 has 9 F and 17 S.
    [("step-audio-2-mini", 40, 25.0), ("glm-4-voice-9b", 39, (9 * 40 + 17 * 37) / 26)],
)
def test_all_policies_are_timed_over_the_scripted_layout(
    name: str, tokens: int, depth: float, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, "--model", name, "--tokens", str(tokens), "--repeats", "1")
    family = true_shape.FAMILIES[name]
    assert (result["model"], result["dtype"], result["random"]) == (name, "bfloat16", True)
    assert result["layers"] == family.shape.num_hidden_layers
    by_name = {row["policy"]: row for row in result["rows"]}
    assert by_name["spark"]["mean_depth_speech"] == pytest.approx(depth)
    assert by_name["full"]["mean_depth_speech"] == family.shape.num_hidden_layers
    assert by_name["fixed"]["mean_depth_speech"] == family.default_exit
    sure = by_name["confidence"]  # at the same exit as SPAR-K, until 8 are pending
    assert family.default_exit <= sure["mean_depth_speech"] < depth
    assert by_name["spark"]["traffic_ratio"] < 1
    for key in (
        "load_s",
        "load_gb",
        "weights_gb",
        "prefill_ms",
        "peak_gb",
        "generate_ms_per_token",
        "generate_static_ms_per_token",
    ):
        assert result[key] > 0
    assert result["prompt_tokens"] == (65 if name.startswith("step") else 64)


@pytest.mark.parametrize("name", ["step-audio-2-mini", "glm-4-voice-9b"])
@torch.inference_mode()
def test_weights_are_the_published_names_and_generates_are_the_same(
    name: str, tmp_path: Path
) -> None:
    wanted = true_shape.TrueShape(name, 3, "cpu")
    lm, _ = true_shape.load(wanted, tmp_path)
    family = true_shape.FAMILIES[name]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(family.weight_names(wanted.shape))
    ids = torch.tensor([lm.encode_prompt("")])
    body = lm.transformer
    states = body.run_layers(
        0, 3, body.embed(ids), torch.arange(ids.shape[1]), body.new_cache(ids.shape[1])
    )
    theirs = reference_model(lm)(ids).logits
    torch.testing.assert_close(base_head(lm).logits(states), theirs, rtol=2**-6, atol=0.02)
    again, _ = true_shape.load(wanted, tmp_path)  # from the same files
    assert torch.equal(again.transformer.unembedding, body.unembedding)


@pytest.mark.parametrize("name", ["step-audio-2-mini", "glm-4-voice-9b"])
def test_replies_keep_to_the_layout_and_cost_what_others_cost(name: str, tmp_path: Path) -> None:
    lm, _ = true_shape.load(true_shape.TrueShape(name, 4, "cpu"), tmp_path)
    engine, whole, plain = true_shape.engines(lm, 50)
    told = true_shape.script(lm, 50)
    policy = Spark(lm.default_exit)
    made = engine.generate(engine.prefill(lm.encode_prompt("")), policy, SamplingSettings(), 50)
    steps = list(made)
    assert [step.token_id for step in steps] == told
    assert all(step.modality.value == step.slot.value for step in steps)
    assert {step.head for step in steps} == {"full", "speech", "untrained-speech"}
    made = whole.generate(whole.prefill(lm.encode_prompt("")), policy, SamplingSettings(), 50)
    assert {step.head for step in made} == {"full", "untrained"}
    assert isinstance(plain, Engine)


def test_layers_in_eight_bits_are_timed_too(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--model", "step-audio-2-mini", "--layers", "4", "--bits", "8",
                 "--tokens", "12", "--repeats", "1")  # fmt: skip
    assert result["weights"] == "int8"
    full = next(row for row in result["rows"] if row["policy"] == "full")
    assert full["ms_per_token"] > 0
    for name in ("generate_ms_per_token", "floor_ms_per_token", "floor_ratio"):
        assert result[name] is None  # which would take all layers widened


def test_true_shapes_are_replayed_from_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, with the calls themselves for records."""
    made = []

    def with_graphs(body: Transformer) -> None:
        body.graphs = Graphs(body, lambda: lambda call: call)
        made.append(body.graphs)

    monkeypatch.setattr(graphs, "prepare", with_graphs)
    result = run(capsys, "--model", "step-audio-2-mini", "--layers", "4", "--tokens", "24",
                 "--repeats", "2")  # fmt: skip
    assert result["graphs"] > 2
    assert result["graphs_trouble"] is None
    assert result["rows"][-1]["policy"] == decode.PLAIN
    (found,) = made
    assert found.trouble is None
    exit_at = true_shape.FAMILIES["step-audio-2-mini"].exits_of(4)[1]
    ways = {kind.legs for kind in found.kinds if kind.ending is not None}
    assert {(Leg(0, 4, 1),), (Leg(0, exit_at, 1),)} < ways
    assert any(way[-1].low == exit_at and way[-1].count > 1 for way in ways)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "embedded"], "there is step-audio-2-mini and glm-4-voice-9b, not embedded"),
        (["--model", "glm-4-voice-9b", "--layers", "41"], "from 2 to 40"),
        (["--model", "glm-4-voice-9b", "--layers", "1"], "from 2 to 40"),
        (["--model", "glm-4-voice-9b", "--device", "tpu7"], "there is no device 'tpu7'"),
    ],
)
def test_what_cannot_be_built(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode.main(["--random", *options]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "2"], "--layers: for --random only"),
        (["--model", "random", "--device", "cpu"], "--device: for --random only"),
        (["--device", "cuda"], "the embedded model runs on the CPU"),  # reaches the model
    ],
)
def test_no_option_is_left_unheard(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode.main(options) == 2
    assert says in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    command = ["--random", "--model", "step-audio-2-mini", "--device", "cpu",
               "--folder", str(folder)]  # fmt: skip
    monkeypatch.setattr(hardware, "free_memory", lambda where: 10**6)
    assert decode.main(command) == 2
    assert "GiB on the CPU and 0.0 GiB are free" in capsys.readouterr().err
    assert not folder.exists()
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    narrowed = true_shape.TrueShape("step-audio-2-mini", 2, "cpu")
    with pytest.raises(ValueError, match=r"GiB of disk and 0\.0 GiB are free"):
        true_shape.load(narrowed, folder)
    assert not list(folder.glob("*.safetensors"))
