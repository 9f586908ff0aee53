"""Spoken prompts and sound of the large models, whole: from published files to a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spark.compare import compare, main
from spark.comparison import CompareSettings, Recording
from spark.engine import Engine
from spark.models import glm4_voice, glm_vocoder, load, step_audio_2, step_vocoder
from spark.models.base import PromptError, SpokenLM
from spark.models.checkpoint import CheckpointError
from spark.models.glm_flow import GlmFlow
from spark.models.step_flow import StepFlow
from spark.speech.audio import write_wav
from spark.speech.hift import Hift
from tests import vocoders as tiny
from tests.checkpoints import write_glm, write_step
from tests.test_hearing import glm_folder, noise


@pytest.fixture(scope="module")
def small() -> None:
    """The vocoders' loaders, at small widths; embeddings as large as the true ones."""
    patch = pytest.MonkeyPatch()
    step, glm = (
        type(shape)(**{**vars(shape), "codes": codes})
        for shape, codes in ((tiny.STEP_FLOW, 6561), (tiny.GLM_FLOW, 16384))
    )
    patch.setattr(step_vocoder, "StepFlow", lambda: StepFlow(step))
    patch.setattr(glm_vocoder, "GlmFlow", lambda: GlmFlow(glm))
    patch.setattr(step_vocoder, "HIFT", tiny.STEP_HIFT)
    patch.setattr(glm_vocoder, "HIFT", tiny.GLM_HIFT)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def step_folder(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    folder = write_step(tmp_path_factory.mktemp("models") / "step")
    inside = folder / "token2wav"
    inside.mkdir()
    torch.save(tiny.filled(step_vocoder.StepFlow()).state_dict(), inside / "flow.pt")
    state = tiny.filled(Hift(tiny.STEP_HIFT)).state_dict()
    torch.save({f"generator.{name}": t for name, t in state.items()}, inside / "hift.pt")
    tiny.write_voice_models(inside)
    (folder / "assets").mkdir()
    write_wav(folder / "assets" / "default_female.wav", noise(2, 24_000), 24_000)
    return folder


@pytest.fixture(scope="module")
def glm_model(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    home = tmp_path_factory.mktemp("models")
    folder = write_glm(home / "glm-4-voice-9b")
    (home / "glm-4-voice-decoder").mkdir()
    (home / "glm-4-voice-tokenizer").mkdir()
    glm_folder(home / "glm-4-voice-tokenizer")
    decoder = home / "glm-4-voice-decoder"
    torch.save(tiny.filled(glm_vocoder.GlmFlow()).state_dict(), decoder / "flow.pt")
    torch.save(tiny.filled(Hift(tiny.GLM_HIFT)).state_dict(), decoder / "hift.pt")
    return folder


@pytest.fixture(scope="module")
def step(step_folder: Path) -> SpokenLM:
    return load(str(step_folder), device="cpu")


@pytest.fixture(scope="module")
def glm(glm_model: Path) -> SpokenLM:
    return load(str(glm_model), device="cpu")


def test_step_puts_its_features_over_the_patches(step: SpokenLM) -> None:
    recording = Recording(noise(1.3, 44_100), 44_100)
    asked = CompareSettings().prompt(step, "hello", recording)
    marks = step_audio_2.MARKS
    start = asked.ids.index(marks["<audio_start>"])
    ((place, rows),) = asked.features
    assert place == start + 1
    assert asked.ids[place : place + len(rows)] == [marks["<audio_patch>"]] * len(rows)
    assert asked.ids[place + len(rows)] == marks["<audio_end>"]
    assert asked.ids[-1] == marks["<tts_start>"]


@torch.inference_mode()
def test_what_is_heard_reaches_the_model(step: SpokenLM) -> None:
    """The prefill equals a forward over embeddings with the features in their place."""
    asked = CompareSettings().prompt(step, "", Recording(noise(1.0), 16_000))
    body, engine = step.transformer, Engine(step)
    cache = engine.prefill(asked.ids, features=asked.features).cache
    states = body.embed(torch.tensor([asked.ids[:-1]]))
    ((place, rows),) = asked.features
    states[0, place : place + len(rows)] = rows.to(states)
    other = body.new_cache(len(asked.ids))
    body.run_layers(0, body.num_layers, states, torch.arange(len(asked.ids) - 1), other)
    for layer in range(body.num_layers):
        torch.testing.assert_close(cache.rows(layer), other.rows(layer))


def test_glm_writes_codes_under_its_speech_prompt(glm: SpokenLM) -> None:
    asked = CompareSettings().prompt(glm, "", Recording(noise(0.8), 16_000))
    marks = glm4_voice.MARKS
    begin, end = (asked.ids.index(marks[f"<|{side}_of_audio|>"]) for side in ("begin", "end"))
    assert end - begin - 1 == 10
    assert all(i >= glm4_voice.FIRST_SPEECH for i in asked.ids[begin + 1 : end])
    assert not asked.features


@pytest.mark.parametrize("name", ["step", "glm"])
def test_a_comparison_hears_and_sounds(name: str, request: pytest.FixtureRequest) -> None:
    lm: SpokenLM = request.getfixturevalue(name)
    assert (lm.silence, lm.deafness) == ("", "")
    lm.max_tokens = 120
    recording = Recording(noise(1.0), 16_000)
    done = compare(lm, "", CompareSettings.of(lm), recording=recording, listen=False)
    assert done.prompt == "(a recording of 1.0 s)"
    assert lm.vocoder is not None
    for reply in done.replies:
        codes = reply.trace.codes()
        assert codes, "the small model speaks"
        assert reply.pcm is not None
        assert reply.sample_rate == lm.vocoder.sample_rate
        seconds = len(reply.pcm) / reply.sample_rate
        assert seconds == pytest.approx(len(codes) / lm.vocoder.frame_rate, abs=0.02)


def test_a_model_that_only_reads_says_so() -> None:
    lm = load("embedded")
    with pytest.raises(PromptError, match="takes no spoken prompt: it reads text only"):
        compare(lm, "", recording=Recording(noise(1.0), 16_000))


def test_without_a_vocoder_the_text_still_comes(tmp_path: Path) -> None:
    lm = load(str(write_step(tmp_path / "step")), device="cpu")
    assert lm.vocoder is None
    assert "hf download stepfun-ai/Step-Audio-2-mini token2wav/flow.pt" in lm.silence
    lm.max_tokens = 20
    done = compare(lm, "hello", CompareSettings.of(lm), listen=False)
    assert all(reply.pcm is None and reply.trace.ids() for reply in done.replies)
    bare = load(str(write_glm(tmp_path / "glm-4-voice-9b")), device="cpu")
    assert "hf download zai-org/glm-4-voice-decoder flow.pt hift.pt" in bare.silence
    assert "hf download zai-org/glm-4-voice-tokenizer" in bare.deafness
    with pytest.raises(PromptError, match="glm-4-voice-tokenizer"):
        compare(bare, "", recording=Recording(noise(1.0), 16_000))


def test_the_command_line_takes_a_recording(
    step_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = tmp_path / "question.wav"
    write_wav(question, np.tile(noise(0.9, 22_050), 1), 22_050)
    given = ["--model", str(step_folder), "--device", "cpu", "--no-listen", "--whole",
             "--max-tokens", "120",
             "--prompt-audio", str(question), "--out", str(tmp_path / "out"),
             "--voice", str(step_folder / "assets" / "default_female.wav")]  # fmt: skip
    assert main(given) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["prompt"] == "(a recording of 0.9 s)"
    assert (tmp_path / "out" / "full.wav").is_file()
    question.write_text("no sound")
    assert main(given) == 2
    assert "question.wav is not a sound file" in capsys.readouterr().err


def test_a_damaged_voice_is_refused_before_the_model_is_read(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "glm-4-voice-decoder"
    home.mkdir()
    (home / "flow.pt").write_bytes(b"cut")
    (home / "hift.pt").write_bytes(b"cut")
    folder = write_glm(tmp_path / "glm-4-voice-9b")
    monkeypatch.setattr("spark.models.large.read_body", lambda *_: pytest.fail("was read"))
    with pytest.raises(CheckpointError, match=r"^flow\.pt "):
        load(str(folder), device="cpu")
    with pytest.raises(ValueError, match="one voice"):
        load(str(folder), device="cpu", voice=tmp_path / "other.wav")
