"""The vocoders' files: as published, missing, damaged, and a stranger's pickle."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spark.models import glm_vocoder, step_vocoder
from spark.models.checkpoint import CheckpointError
from spark.models.glm_flow import GlmFlow, frames_of
from spark.models.step_flow import StepFlow
from spark.models.step_voice import Prompter
from spark.models.strict import fill, read_pickled
from spark.speech.audio import write_wav
from spark.speech.hift import Hift
from tests import vocoders as tiny

CPU = torch.device("cpu")


def save(folder: Path, **parts: nn.Module) -> None:
    for name, module in parts.items():
        torch.save(dict(module.state_dict()), folder / f"{name}.pt")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaders, at small widths."""
    monkeypatch.setattr(step_vocoder, "StepFlow", lambda: StepFlow(tiny.STEP_FLOW))
    monkeypatch.setattr(glm_vocoder, "GlmFlow", lambda: GlmFlow(tiny.GLM_FLOW))
    monkeypatch.setattr(step_vocoder, "HIFT", tiny.STEP_HIFT)
    monkeypatch.setattr(glm_vocoder, "HIFT", tiny.GLM_HIFT)


@pytest.fixture
def step_folder(tmp_path: Path, small: None) -> Path:
    """A model's folder with its voice."""
    inside, assets = tmp_path / "token2wav", tmp_path / "assets"
    inside.mkdir()
    assets.mkdir()
    save(inside, flow=tiny.filled(StepFlow(tiny.STEP_FLOW)))
    state = tiny.split(tiny.filled(Hift(tiny.STEP_HIFT)).state_dict(), tiny.SPELLINGS[1])
    torch.save({f"generator.{n}": t for n, t in state.items()}, inside / "hift.pt")
    tiny.write_voice_models(inside)
    speech = np.random.default_rng(0).normal(0, 3000, 3 * 22_050).astype(np.int16)
    write_wav(assets / "default_female.wav", speech, 22_050)
    return tmp_path


def test_step_loads_from_its_published_files(step_folder: Path) -> None:
    folder = step_vocoder.PARTS.found(step_folder)
    assert folder == step_folder
    voice = step_folder / step_vocoder.VOICE.files[0]
    made = step_vocoder.Sound.read(folder, voice).on(CPU)
    assert isinstance(made, step_vocoder.StepVocoder)
    assert len(made.voice.codes) == 75
    assert made.voice.mel.shape == (150, 80)
    codes = tiny.some_codes(30)
    assert len(made.decode(codes)) == 30 * 960
    once = step_vocoder.Sound.read(folder, voice).on(CPU, whole=True)
    assert len(once.decode(codes)) == 30 * 960
    longer = np.random.default_rng(1).normal(0, 3000, 31 * 8000).astype(np.int16)
    write_wav(step_folder / "long.wav", longer, 8000)
    with pytest.raises(ValueError, match=r"long\.wav lasts 31\.0 s"):
        step_vocoder.Sound.read(folder, step_folder / "long.wav")
    write_wav(step_folder / "still.wav", np.zeros(16_000, np.int16), 8000)
    with pytest.raises(ValueError, match=r"still\.wav is silent"):
        step_vocoder.Sound.read(folder, step_folder / "still.wav")


def test_what_is_missing_is_said_with_the_command(step_folder: Path) -> None:
    assert step_vocoder.PARTS.reason(step_folder) == ""
    (step_folder / "token2wav" / "campplus.onnx").unlink()
    reason = step_vocoder.PARTS.reason(step_folder)
    assert "is not here (token2wav/campplus.onnx)" in reason
    assert "`hf download stepfun-ai/Step-Audio-2-mini token2wav/flow.pt" in reason
    assert step_vocoder.offered(step_folder, None) == (None, reason)
    tiny.write_voice_models(step_folder / "token2wav")
    (step_folder / "assets" / "default_female.wav").unlink()
    sound, reason = step_vocoder.offered(step_folder, None)
    assert sound is None
    assert "(assets/default_female.wav)" in reason
    assert "--voice" in reason


def test_glm_loads_from_a_folder_beside_its_own(tmp_path: Path, small: None) -> None:
    own, voice = tmp_path / "glm-4-voice-9b", tmp_path / "glm-4-voice-decoder"
    own.mkdir()
    assert "hf download zai-org/glm-4-voice-decoder" in glm_vocoder.PARTS.reason(own)
    voice.mkdir()
    state = tiny.split(tiny.filled(Hift(tiny.GLM_HIFT)).state_dict(), tiny.SPELLINGS[0])
    torch.save(state, voice / "hift.pt")
    save(voice, flow=tiny.filled(GlmFlow(tiny.GLM_FLOW)))
    found = glm_vocoder.PARTS.found(own)
    assert found == voice
    assert (
        len(glm_vocoder.Sound.read(found).on(CPU).decode(tiny.some_codes(26)))
        == frames_of(26) * 256
    )
    once = glm_vocoder.Sound.read(found).on(CPU, whole=True)
    assert len(once.decode(tiny.some_codes(26))) == frames_of(26) * 256


class Stranger:
    """What a pickle of a stranger may hold."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Stranger, "ran", True))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "git lfs"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "cut off or damaged"),
        (lambda path: path.write_bytes(pickle.dumps(Stranger())), "more than tensors"),
        (lambda path: torch.save({"flow": Stranger()}, path), "more than tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "no table of tensors"),
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "lacks decoder.estimator"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_files_get_one_sentence(
    step_folder: Path, write: Callable[[Path], Any], words: str
) -> None:
    write(step_folder / "token2wav" / "flow.pt")
    voice = step_folder / step_vocoder.VOICE.files[0]
    with pytest.raises(CheckpointError, match=words) as caught:
        step_vocoder.Sound.read(step_folder, voice)
    assert str(caught.value).startswith("flow.pt ")
    assert "\n" not in str(caught.value)
    assert not Stranger.ran


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_wrong_with_a_file_of_tensors_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, or any bytes changed, in both of torch's formats."""
    path, buffer = tmp_path_factory.mktemp("pt") / "flow.pt", io.BytesIO()
    newer = data.draw(st.booleans())
    torch.save({"a": torch.randn(20, 20), "b.c": torch.zeros(3)}, buffer,
               _use_new_zipfile_serialization=newer)  # fmt: skip
    raw = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    places = st.tuples(st.integers(0, max(len(raw) - 1, 0)), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=20)) if raw else ():
        raw[place] = value
    path.write_bytes(raw)
    said = ""
    try:
        found = read_pickled(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    except CheckpointError as error:
        said = str(error)
    assert not said or said.startswith("flow.pt ")
    assert "\n" not in said


def test_a_damaged_voice_model_gets_one_sentence(step_folder: Path) -> None:
    inside = step_folder / "token2wav"
    names = ("speech_tokenizer_v2_25hz.onnx", "campplus.onnx")
    swapped = [(inside / name).read_bytes() for name in reversed(names)]
    for name, raw in zip(names, swapped, strict=True):
        (inside / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match="another model"):
        Prompter(inside / names[0], inside / names[1])
    (inside / names[0]).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"speech_tokenizer_v2_25hz\.onnx is cut off"):
        Prompter(inside / names[0], inside / names[1])
    (inside / names[0]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"25hz\.onnx is a Git LFS pointer.*git lfs pull"):
        Prompter(inside / names[0], inside / names[1])


def test_a_voice_model_that_takes_something_else_gets_one_sentence(
    step_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many inputs, for five recordings at once: found out when it is run."""
    inside, plain = step_folder / "token2wav", tiny._value

    def of_five(name: str, kind: int, *dims: int | str) -> bytes:
        return plain(name, kind, *(5 if dim == "B" else dim for dim in dims))

    monkeypatch.setattr(tiny, "_value", of_five)
    tiny.write_voice_models(inside)
    with pytest.raises(CheckpointError, match=r"^campplus\.onnx does not take a recording"):
        step_vocoder.Sound.read(step_folder, step_folder / step_vocoder.VOICE.files[0])


def test_a_damaged_recording_of_the_voice_is_said_with_a_remedy(step_folder: Path) -> None:
    voice = step_folder / step_vocoder.VOICE.files[0]
    voice.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"^default_female\.wav is not a sound file .*: fetch or"):
        step_vocoder.Sound.read(step_folder, voice)


def test_weights_without_numbers_are_refused(tmp_path: Path) -> None:
    hift = Hift(tiny.GLM_HIFT)
    state = dict(tiny.filled(Hift(tiny.GLM_HIFT)).state_dict())
    state["conv_pre.bias"] = torch.full_like(state["conv_pre.bias"], torch.inf)
    torch.save(state, tmp_path / "hift.pt")
    with pytest.raises(CheckpointError, match=r"conv_pre\.bias of hift\.pt holds no numbers"):
        fill(hift, read_pickled(tmp_path / "hift.pt"), "hift.pt")
