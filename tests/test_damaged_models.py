"""Folders that are no whole model: each is refused in one sentence, by every command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from spark import compare
from spark.evaluation import __main__ as evaluation
from spark.models import embedded, load
from spark.models.checkpoint import INDEX, CheckpointError
from spark.shelf import Shelf
from tests.checkpoints import write_glm, write_step
from tests.tiny import tiny_lm

SECOND = "model-00002-of-00003.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
IMPOSSIBLE = "config.json gives impossible numbers"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("whole")
    return {"step": write_step(home / "step", layers=2), "glm": write_glm(home / "glm", layers=2)}


def put(file: str, content: str | bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def configured(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (config.get("text_config") or config).update(fields)
        put("config.json", json.dumps(config))(folder)

    return change


def half(folder: Path) -> None:
    (folder / SECOND).rename(folder / f"{SECOND}.incomplete")


def integers(folder: Path) -> None:
    state = load_file(folder / SECOND)
    name = sorted(state)[0]
    (folder / SECOND).unlink()
    save_file({**state, name: state[name].int()}, folder / SECOND)


BOTH: list[tuple[Callable[[Path], object], str]] = [
    (half, f"{SECOND} missing in .*the download is not finished"),
    (integers, "holds I32 numbers: it is a quantised"),
    (put(SECOND, b""), f"{SECOND} is cut off or damaged"),
    (put("config.json", POINTER), r"config\.json is a Git LFS pointer.*git lfs pull"),
    (put("config.json", '{"a":' * 100_000), r"config\.json cannot be read"),
    (put("config.json", b"\xff\xfe{}"), r"config\.json cannot be read"),
    (put(INDEX, POINTER), "is a Git LFS pointer"),
    (put(INDEX, '{"weight_map": {"a": 3}}'), "names the file 3, which no model has"),
    (configured(num_attention_heads=3), IMPOSSIBLE),
    (configured(hidden_size=-32), IMPOSSIBLE),
]
STEP: list[tuple[Callable[[Path], object], str]] = [
    (configured(num_hidden_layers="28"), IMPOSSIBLE),
    (configured(num_hidden_layers=10**9), IMPOSSIBLE),
    (configured(rope_theta=float("nan")), IMPOSSIBLE),
    (configured(num_attention_heads=0), "config.json holds no shape of a model"),
    (put("tokenizer.json", "{}"), "tokenizer.json of .* cannot be read"),
    (put("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    (put("tokenizer.json", '{"added_tokens": [{"id": 1}]}'), "added_tokens that cannot be read"),
    (put("added_tokens.json", "[1]"), "added_tokens.json is no JSON object"),
    (put("added_tokens.json", '{"<|EOT|>": 7}'), "not Step-Audio-2-mini's: <|EOT|> 7 instead"),
]
GLM: list[tuple[Callable[[Path], object], str]] = [
    (configured(num_layers=1.5), IMPOSSIBLE),
    (configured(layernorm_epsilon=0), IMPOSSIBLE),
    (put("tokenizer_config.json", '{"added_tokens_decoder": {"1": 3}}'), "entries that cannot"),
    (put("tokenizer.model", POINTER), "tokenizer.model is a Git LFS pointer"),
    (put("tokenizer.model", b"YQ== 0\n"), "lacks some of its tiktoken ranks"),
    (put("tokenizer.model", b""), "lacks some of its tiktoken ranks"),
]
CASES = [
    pytest.param(family, change, says.replace("|", r"\|"), id=f"{family}-{number}")
    for family, own in (("step", [*BOTH, *STEP]), ("glm", [*BOTH, *GLM]))
    for number, (change, says) in enumerate(own)
]


@pytest.mark.parametrize(("family", "change", "says"), CASES)
def test_one_sentence_says_what_is_wrong(
    family: str,
    change: Callable[[Path], object],
    says: str,
    whole: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(whole[family], tmp_path / "copy", copy_function=os.link))
    change(folder)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(str(folder), device="cpu", quiet=True)
    assert "\n" not in str(caught.value)


def test_places_that_hold_no_model(whole: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is a file: give the folder"):
        load(str(whole["step"] / "config.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing in empty"):
        load(str(tmp_path / "empty"))


def test_every_command_says_it_and_ends_with_2(
    whole: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(whole["glm"], tmp_path / "copy", copy_function=os.link))
    half(folder)
    out = str(tmp_path / "out")
    for command, more in ((compare.main, ["--prompt", "hello"]), (evaluation.main, [])):
        assert command(["--model", str(folder), "--out", out, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert f"{SECOND} missing in copy" in said[0]
    shelf = Shelf(tiny_lm())
    known = next(iter(shelf.infos.values()))
    shelf.infos[str(folder)] = type(known)(str(folder), "Damaged", True)
    with pytest.raises(CheckpointError, match="the download is not finished"):
        shelf.get(str(folder))  # what the page shows where it is chosen
    shelf.load_all()  # as where a GPU is lent: it stays in the menu with the reason
    assert "the download is not finished" in shelf.why_not(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("codec.safetensors", b"cut", "codec.safetensors is cut off, damaged or of another codec"),
        ("codec.safetensors", POINTER, "codec.safetensors is a Git LFS pointer"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", '{"model_type": "qwen2"}', "config.json of copy has no '"),
        (embedded.HEADS_FILE, b"cut", "is cut off, damaged or no file of exit heads"),
        ("model-00001-of-00003.safetensors", b"cut", "is cut off or damaged"),
    ],
)
def test_the_embedded_models_own_files_too(
    file: str, content: str | bytes, says: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(embedded.FOLDER, tmp_path / "copy"))
    assert (folder / file).is_file()
    put(file, content)(folder)
    with pytest.raises(ValueError, match=says) as caught:
        embedded.load(folder)
    assert "\n" not in str(caught.value)


def test_the_app_does_not_start_with_a_traceback(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded.FOLDER, tmp_path / "copy"))
    put("codec.safetensors", POINTER)(folder)
    code = (
        "import sys; from pathlib import Path; import app; from spark.models import embedded;"
        f"app.load = lambda name: embedded.load(Path({str(folder)!r}));"
        "sys.argv = ['app.py']; app.main()"
    )
    env = {**os.environ, "SPARK_LAB_DATA": str(tmp_path / "data")}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env,
                           cwd=Path(__file__).parents[1])  # fmt: skip
    assert ended.returncode == 2
    assert "codec.safetensors is a Git LFS pointer" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_app_names_a_model_that_there_is_not(tmp_path: Path) -> None:
    env = {**os.environ, "SPARK_LAB_DATA": str(tmp_path / "data")}
    ended = subprocess.run([sys.executable, "app.py", "--model", str(tmp_path / "none")], env=env,
                           capture_output=True, text=True, cwd=Path(__file__).parents[1],
                           check=False)  # fmt: skip
    assert ended.returncode == 2
    assert f"there is no model '{tmp_path / 'none'}'" in ended.stderr
    assert "Traceback" not in ended.stderr
