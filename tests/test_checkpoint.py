"""What can be wrong with a folder of weights, and that each is said in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spark.models import load
from spark.models.checkpoint import INDEX, Checkpoint, CheckpointError, folded, titled
from tests.checkpoints import write_glm, write_step

SECOND = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_step(tmp_path_factory.mktemp("step") / "step-folder", layers=2)


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm(tmp_path_factory.mktemp("glm") / "glm-folder", layers=2)


@pytest.fixture
def copy(step: Path, tmp_path: Path) -> Path:
    """The folder again, to be damaged; files are links until they are replaced."""
    return Path(shutil.copytree(step, tmp_path / "copy", copy_function=os.link))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Replace a shard by what `change` makes of it."""
    state = load_file(path)
    path.unlink()
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """The one sentence a folder is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load(str(folder), dtype=torch.float32, quiet=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_shard_cut_off_is_named(copy: Path) -> None:
    whole = (copy / SECOND).read_bytes()
    (copy / SECOND).unlink()
    (copy / SECOND).write_bytes(whole[: len(whole) // 2])
    said = refusal(copy)
    assert SECOND in said
    assert "cut off or damaged" in said
    assert "fetch or copy it again" in said


def test_noise_is_no_shard(copy: Path) -> None:
    (copy / SECOND).unlink()
    (copy / SECOND).write_bytes(b"\x80" * 5000)
    assert "cut off or damaged" in refusal(copy)


def test_a_download_that_is_half_done_says_what_is_missing(copy: Path) -> None:
    (copy / SECOND).unlink()
    said = refusal(copy)
    assert f"{SECOND} missing" in said
    assert "1 of 3 weight files" in said
    assert "not finished" in said


def test_a_pointer_of_git_lfs_is_told_apart(copy: Path) -> None:
    (copy / SECOND).unlink()
    (copy / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(copy)


def test_every_missing_and_every_unexpected_key_is_named(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    for number in range(2):
        gone = f"model.layers.{number}.mlp.up_proj.weight"
        shard = index["weight_map"].pop(gone)
        rewrite(copy / shard, lambda state, gone=gone: state.pop(gone))
    rewrite(copy / SECOND, lambda state: state.update(stray=torch.zeros(2)))
    (copy / INDEX).unlink()
    (copy / INDEX).write_text(json.dumps(index))
    said = refusal(copy)
    assert "lacks model.layers.{0-1}.mlp.up_proj.weight" in said
    assert "holds stray" in said


def test_an_index_that_its_shards_do_not_keep(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = SECOND
    rewrite(copy / SECOND, lambda state: state.pop("model.norm.weight", None))
    (copy / INDEX).unlink()
    (copy / INDEX).write_text(json.dumps(index))
    assert f"{SECOND} lacks model.norm.weight" in refusal(copy)


def test_an_index_cannot_lead_out_of_its_folder(copy: Path) -> None:
    (copy / INDEX).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    assert "which no model has" in refusal(copy)


def test_another_shape_than_the_configs(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    said = refusal(copy)
    assert "(48, 32), config.json says (64, 32)" in said or "config.json says (32, 64)" in said


@pytest.mark.parametrize(("value", "says"), [(0.0, "only zeros"), (float("nan"), "no numbers")])
def test_a_norm_of_zeros_or_nan_is_damage(copy: Path, value: float, says: str) -> None:
    name = "model.layers.1.input_layernorm.weight"
    shard = json.loads((copy / INDEX).read_text())["weight_map"][name]
    rewrite(copy / shard, lambda state: state[name].fill_(value))
    said = refusal(copy)
    assert name in said
    assert says in said


def test_another_familys_folder_is_refused_by_its_kind(step: Path, glm: Path) -> None:
    from spark.models import glm4_voice, step_audio_2

    with pytest.raises(CheckpointError, match="type 'chatglm', Step-Audio-2-mini is 'step_audio"):
        step_audio_2.load(glm)
    with pytest.raises(CheckpointError, match="type 'step_audio_2', GLM-4-Voice-9B is 'chatglm'"):
        glm4_voice.load(step)


def test_weights_under_another_familys_config(step: Path, glm: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(glm, tmp_path / "mixed"))
    shutil.copy(step / "config.json", mixed / "config.json")
    said = refusal(mixed)
    assert "lacks lm_head.weight" in said
    assert "transformer.encoder.layers.{0-1}" in said


def test_a_kind_the_lab_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"type 'llama': the lab runs Embedded .CPU., Step-Audio"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"), [(None, "missing"), ("{", "cannot be read"), ("[]", "no JSON object")]
)
def test_a_config_that_is_none(copy: Path, content: str | None, says: str) -> None:
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content)
    said = refusal(copy)
    assert "config.json" in said
    assert says in said


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint.open(tmp_path)


def test_one_file_without_an_index_will_do(tmp_path: Path) -> None:
    save_file({"a.0.b": torch.arange(6.0).reshape(3, 2)}, tmp_path / "model.safetensors")
    held = Checkpoint.open(tmp_path)
    assert held.shapes == {"a.0.b": (3, 2)}
    assert held.rows("a.0.b", 1, 3).tolist() == [[2, 3], [4, 5]]


def test_names_fold_by_layer() -> None:
    names = [f"a.{i}.b" for i in (0, 1, 2, 5, 10)]
    assert folded([*names, "c", "d.7.e"]) == "a.{0-2,5,10}.b, c, d.{7}.e"


def test_a_folder_of_the_hubs_cache_goes_by_its_repository() -> None:
    folder = Path("/x/hub/models--owner--some-name/snapshots/0123")
    assert titled(folder) == "owner/some-name"
    assert titled(Path("/x/plain")) == "plain"
