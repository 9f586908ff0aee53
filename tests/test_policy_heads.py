"""Exit heads on the policy's own histories, against those on clean ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spark import jsonl
from spark.calibrate import __main__ as command
from spark.calibrate import policy_heads, trials
from spark.calibrate.policy_heads import CLEAN, SHALLOW, Plan
from spark.calibrate.sweep import compared
from spark.heads import untrained_head
from spark.metrics import mos, wer
from spark.sampling import SamplingSettings
from spark.training.own_replies import lesson
from tests.tiny import tiny_lm

LM = tiny_lm(0, layers=6, exits=(2, 4))
ASKED = "--model=tiny --prompts=24 --epochs=1 --trials=16 --workers=1 --max-tokens=40"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, and ears that need no second a reply."""
    monkeypatch.setattr(policy_heads, "load", lambda name, **_: LM)
    monkeypatch.setattr(wer, "transcribe", lambda pcm, rate: f"{len(pcm) % 7} is here")
    monkeypatch.setattr(mos, "predict", lambda pcm, rate: 3 + float(pcm[5] % 10) / 10)


def run(folder: Path, *more: str) -> int:
    return command.main(["heads", str(folder), *ASKED.split(), *more])


def test_both_heads_are_fitted_and_compared(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, "--schedule", "f-4-2-2") == 0
    held = json.loads((tmp_path / "heads.json").read_text())
    rows = [(row["histories"], row["layer"]) for row in held["teacher_forced"]]
    assert rows == [(kind, layer) for kind in (CLEAN, SHALLOW) for layer in (2, 4)]
    assert {row["replies"] for row in held["teacher_forced"]} == {3}
    replies = {
        kind: [x["ids"] for x in jsonl.read(tmp_path / f"{kind}.jsonl")]
        for kind in (CLEAN, SHALLOW)
    }
    assert len(replies[CLEAN]) == len(replies[SHALLOW]) == 24
    assert replies[CLEAN] != replies[SHALLOW]
    told = capsys.readouterr().out
    assert "| shallow histories, layer 4 |" in told
    assert "f-4-2-2, 16 prompts" in told
    spoken = trials.read_lines(tmp_path / "shallow.trials.jsonl")
    assert {line["policy"] for line in spoken} == {"f", "f-4-2-2"}


def test_each_kind_learns_its_own_histories(tmp_path: Path) -> None:
    """Fitted heads lie nearer to full depth on what they learnt than those they started from."""
    run(tmp_path, "--schedule", "f-4-2-2", "--epochs", "4")
    setting = trials.Setting("tiny", "fitted", SamplingSettings(1.0), 40)
    plan = Plan(setting, "f-4-2-2", 24, 4, 16)
    start = {layer: untrained_head(LM, "speech") for layer in (2, 4)}
    for kind in (CLEAN, SHALLOW):
        lessons = policy_heads.histories(LM, plan, kind, tmp_path)
        fitted = policy_heads.fitted(LM, kind, tmp_path)
        after, before = (policy_heads.asked(LM, h, lessons, setting) for h in (fitted, start))
        for layer in (2, 4):
            kl = [sum(row["kl"] for row in rows[layer]) for rows in (after, before)]
            assert kl[0] < kl[1]


@torch.inference_mode()
def test_heads_are_asked_at_speech_slots_only() -> None:
    """Against a loop over the slots of one reply."""
    setting = trials.Setting("tiny", "fitted", SamplingSettings(0.7, 0.9), 40)
    prompt = LM.encode_prompt("hello")
    items = [policy_heads.prompts.draw("sweep", 1, 1)[0]]
    prompt = LM.encode_prompt(items[0].prompt)
    ids = trials.replies(LM, setting, "f-4-2-2", items)[0].ids()
    found = policy_heads.asked(LM, LM.exit_heads, {"x": lesson(LM, prompt, ids)}, setting)
    layout, sums, count = LM.layout.start(LM.vocabulary, prompt[-1]), torch.zeros(4), 0
    every, full = list(prompt), untrained_head(LM, "speech")
    for token in ids:
        if layout.slot == "speech" and not layout.disagreed:
            states = LM.transformer.embed(torch.tensor([every]))
            cache, after = LM.transformer.new_cache(len(every)), {}
            for low, high in ((0, 2), (2, 4), (4, 6)):
                positions = torch.arange(len(every))
                states = LM.transformer.run_layers(low, high, states, positions, cache)
                after[high] = states[0, -1:]
            ours, theirs = LM.exit_heads[2].logits(after[2]), full.logits(after[6])
            sums, count = sums + compared(ours, theirs, setting.sampling), count + 1
        layout.advance(token)
        every.append(token)
    row = found[2][0]
    assert (row["overlap"], row["kl"]) == pytest.approx((sums[:2] / count).tolist(), abs=1e-4)


def test_stopped_and_resumed_gives_the_same(tmp_path: Path, monkeypatch) -> None:
    run(tmp_path / "whole")
    real, left = jsonl.append, iter(range(3))

    def dying(path: Path, lines: list) -> None:
        real(path, lines)
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(jsonl, "append", dying)
    assert run(tmp_path / "again") == 130
    monkeypatch.setattr(jsonl, "append", real)
    assert run(tmp_path / "again") == 0
    whole, again = (
        json.loads((tmp_path / name / "heads.json").read_text()) for name in ("whole", "again")
    )
    for held in (whole, again):
        assert held["schedule"] == "f-4-4-f"  # Triple, where the folder has no schedule
        del held["setting"]
    assert whole == again


def test_what_cannot_be_asked_is_refused(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, "--schedule", "k4") == 2
    assert "give each position's exit, such as f-4-4-f" in capsys.readouterr().err
    assert run(tmp_path, "--schedule", "f-3-f-f") == 2
    assert "there is no exit at layer 3" in capsys.readouterr().err
    assert run(tmp_path, "--epochs", "0") == 2
    assert run(tmp_path, "--prompts", "4") == 2
    assert "too few replies hold speech" in capsys.readouterr().err
