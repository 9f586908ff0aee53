"""Exit heads fitted to a large model's own replies: what is learnt, resuming, every refusal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.baseline import reference_model
from spark import hardware
from spark.heads import untrained_head
from spark.modality import Slot
from spark.models import load
from spark.training import exit_heads
from spark.training.exit_fitting import Fitting, fitting_bytes, slot_states
from spark.training.own_replies import lesson
from tests.checkpoints import write_glm, write_step
from tests.tiny import tiny_lm, tiny_prompt

PROMPTS = "hello\n\n  the capital \nhello world\n"
QUICK = ["--epochs", "4", "--rate", "0.01", "--max-tokens", "60"]
NAMES = {"step": "step-audio-2-mini-exit-heads", "glm": "glm-4-voice-9b-exit-heads"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("exit-heads")
    return {"step": write_step(home / "step"), "glm": write_glm(home / "glm-4")}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def arguments(folder: Path, prompts: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(folder), "--prompts", str(prompts), "--out", str(out),
            "--work", str(out.parent / "work"), *QUICK, *more]  # fmt: skip


@pytest.mark.parametrize("family", ["step", "glm"])
def test_heads_come_nearer_to_full_depth_on_the_models_own_replies(
    family: str, folders: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"{NAMES[family]}.safetensors"
    longer = arguments(folders[family], prompts, out, "--epochs", "25", "--rate", "0.004")
    assert exit_heads.main(longer) == 0
    assert not load(str(folders[family])).exit_heads
    lm = load(str(folders[family]), heads=out, dtype=torch.float32)  # bf16 logits hide the rest
    assert set(lm.exit_heads) == set(lm.candidate_exits)
    assert any(f"({out.name})" in note for note in lm.notes)
    with safe_open(str(out), framework="pt") as file:
        about = file.metadata()
    assert about["replies"] == "3"
    assert about["licence"] == lm.licence
    # On the replies it was fitted to: divergence from full depth, of the head against untrained.
    reply = json.loads((tmp_path / "work" / exit_heads.REPLIES).read_text().splitlines()[0])
    taught = lesson(lm, lm.encode_prompt("hello"), reply)
    states = slot_states(lm, taught.ids, taught.keep, lm.candidate_exits)
    base = untrained_head(lm, "speech")
    full = base.logits(states[lm.transformer.num_layers]).softmax(-1)
    for layer, head in lm.exit_heads.items():
        assert head.row_ids is not None
        assert torch.equal(head.row_ids, lm.vocabulary.speech_rows())
        near, far = (
            float((full * (full.log() - h.logits(states[layer]).log_softmax(-1))).sum())
            for h in (head, base)
        )
        # What is left is bf16's rounding of the saved rows, most of all where little was missing.
        assert near < (0.7 if layer == 2 else 1) * far


def test_states_are_transformers_and_slots_those_an_exit_is_asked_about() -> None:
    lm = tiny_lm(0)
    prompt, words = tiny_prompt("hello"), lm.vocabulary
    code, text = words.speech_start, 3
    # text, 4 codes, text, 1 code, then text in a speech slot (a surprise), 4 codes
    reply = [text, code, code + 1, code + 2, code + 3, text, code, text, code, code, code, code]
    taught = lesson(lm, prompt, reply)
    assert taught.ids[0].tolist() == [*prompt, *reply][:-1]
    asked = [i for i, kept in enumerate(taught.keep[0].tolist()) if kept]
    # The states before each token: of slots of speech, but for the one after the surprise.
    spoken = [1, 2, 3, 4, 6, 7, 9, 10, 11]
    assert asked == [len(prompt) - 1 + place for place in spoken]
    layout = lm.layout.start(words, prompt[-1])
    for place, token in enumerate(reply):
        assert (layout.slot is Slot.SPEECH and not layout.disagreed) == (place in spoken)
        layout.advance(token)
    states = slot_states(lm, taught.ids, taught.keep, (1, 3))
    with torch.no_grad():
        hidden = reference_model(lm).model(taught.ids, output_hidden_states=True).hidden_states
    for layer in (1, 3):
        torch.testing.assert_close(states[layer], hidden[layer][0, asked], atol=1e-5, rtol=1e-5)


def test_memory_is_counted_as_the_heads_take_it() -> None:
    lm = tiny_lm(0)
    fitting = Fitting(lm, (1, 3))
    one = sum(p.nbytes for p in fitting.heads[1].parameters())
    assert fitting_bytes(lm, (1, 3)) == 2 * 3 * one + 2 * one


def killed_when(told: str, command: list[str], env: dict[str, str]) -> None:
    """Run a command and kill it, with no chance to tidy up, once it has told something."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(told):
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail(f"it never told {told!r}")
    assert process.returncode == -signal.SIGKILL


def test_a_killed_fitting_goes_on_to_the_same_heads(
    folders: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole" / "heads.safetensors", tmp_path / "cut" / "heads.safetensors"
    whole.parent.mkdir()
    assert exit_heads.main(arguments(folders["step"], prompts, whole)) == 0
    cut = arguments(folders["step"], prompts, out, "--checkpoint-seconds", "0")
    command = [sys.executable, "-m", "spark.training.exit_heads", *cut]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed_when("reply 2 of 3", command, env)
    replies = out.parent / "work" / exit_heads.REPLIES
    assert 2 <= len(replies.read_bytes().splitlines()) <= 3
    with replies.open("ab") as file:
        file.write(b"[1517")  # as a kill within a write leaves it
    killed_when("step 5 of 12", command, env)
    assert not out.exists()
    kept = out.parent / "work" / exit_heads.FITTING
    with safe_open(str(kept), framework="pt") as file:
        assert int(file.metadata()["step"]) >= 5
    assert exit_heads.main(cut) == 0
    assert not kept.exists()
    assert replies.read_bytes() == (whole.parent / "work" / exit_heads.REPLIES).read_bytes()
    ours, theirs = load_file(out), load_file(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """What a command says that ends with 2: the last line."""
    capsys.readouterr()
    assert exit_heads.main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: give a text file"),
        (b" \n\n", "holds no prompts"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
        ("hello\n\u4f60\u597d\n".encode(), "line 2: .*does not know"),
    ],
)
def test_prompts_that_are_none(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    said = refused(capsys, arguments(Path("embedded"), path, tmp_path / "heads.safetensors"))
    assert re.search(says, said)
    assert not (tmp_path / "work").exists()


def test_what_cannot_be_fitted_is_said_at_once(
    folders: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, out = folders["step"], tmp_path / "heads.safetensors"

    def said(*more: str, folder: Path = step, place: Path = out) -> str:
        return refused(capsys, arguments(folder, prompts, place, *more))

    assert "holds speech" in said("--max-tokens", "1")
    assert "begun otherwise (longest reply)" in said("--max-tokens", "2")
    assert "no exit at layer 9: choose from 2, 3" in said("--exits", "9")
    assert "--epochs" in said("--epochs", "0")
    assert "--rate" in said("--rate", "0")
    assert "take glm-4-heads.safetensors" in said(folder=folders["glm"])
    assert "no file can be made" in said(place=prompts / "heads.safetensors")
    monkeypatch.setattr(hardware, "free_memory", lambda where: 10**9)
    monkeypatch.setattr(exit_heads, "fitting_bytes", lambda lm, exits: 2 * 10**9)
    assert "1.9 GiB beside the model and 0.9 GiB are free" in said("--max-tokens", "1")
    assert "--exits 3" in said("--max-tokens", "1")


def test_nothing_fitted_is_overwritten_and_a_damaged_checkpoint_is_named(
    folders: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.safetensors"
    command = arguments(folders["step"], prompts, out, "--exits", "3")
    assert exit_heads.main(command) == 0
    assert "fitted heads already" in refused(capsys, command)
    assert "fitted heads already" in refused(  # the shipped ones
        capsys, ["--model", "embedded", "--prompts", str(prompts)]
    )
    out.unlink()
    long = tmp_path / "long.txt"
    long.write_text("hello\n" + "hello world " * 300)
    assert "long.txt, line 2: " in refused(capsys, [*command, "--prompts", str(long)])
    (tmp_path / "work" / exit_heads.FITTING).write_bytes(b"half a file")
    assert "is damaged: delete it" in refused(capsys, command)
    (tmp_path / "work" / exit_heads.FITTING).unlink()
    kept = tmp_path / "work" / exit_heads.REPLIES
    for line in ("[1, 2", "5", "[1, 158720]", '["one"]'):
        kept.write_text(line + "\n")
        assert "replies.jsonl is damaged: delete it" in refused(capsys, command)


def test_heads_of_another_model_and_damaged_ones_are_refused(
    folders: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heads.safetensors"
    assert exit_heads.main(arguments(folders["step"], prompts, out, "--exits", "3")) == 0
    other = write_step(tmp_path / "other", seed=1)
    for name in (str(other), str(folders["glm"]), "embedded"):
        with pytest.raises(ValueError, match="heads fitted on another model: fit them anew"):
            load(name, heads=out)
    for content, says in (
        (out.read_bytes()[:5000], "is cut off, damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is cut off, damaged"),
    ):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=says):
            load(str(folders["step"]), heads=tmp_path / "bad.safetensors")
    with safe_open(str(out), framework="pt") as file:
        metadata = file.metadata()
    parts = load_file(out)
    del parts["3.gain"]
    save_file(parts, tmp_path / "part.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"lacks a part of its heads \('3.gain'\)"):
        load(str(folders["step"]), heads=tmp_path / "part.safetensors")
    save_file(parts, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds no exit heads"):
        load(str(folders["step"]), heads=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        load(str(folders["step"]), heads=tmp_path / "missing.safetensors")


def test_heads_beside_a_model_are_found_and_named(folders: dict[str, Path], prompts: Path) -> None:
    """Without --out they lie where the page finds them, under a name that the licence allows."""
    folder = folders["glm"]
    lm = load(str(folder))
    assert lm.heads_file == folder / "glm-4-voice-9b-exit-heads.safetensors"
    assert any("none are fitted" in note and "exit_heads" in note for note in lm.notes)
