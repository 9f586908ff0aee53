"""Folders that are no whole model: each is refused in one sentence, by every command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from benchmarks import decode, first_audio, growth
from spark import compare
from spark.calibrate import __main__ as calibrate
from spark.evaluation import __main__ as evaluation
from spark.models import __main__ as fetching
from spark.models import embedded, hub, large, load
from spark.models.checkpoint import INDEX, CheckpointError
from spark.shelf import Shelf
from spark.training import exit_heads
from tests.checkpoints import write_glm, write_step
from tests.tiny import tiny_lm

SECOND = "model-00002-of-00003.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
WRONG_TYPE = json.dumps(
    {**json.loads((embedded.FOLDER / "config.json").read_text()), "num_attention_heads": "8",
     "head_dim": None}
)  # fmt: skip
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


def cut(size: int) -> Callable[[Path], object]:
    """The second shard breaks off after so many bytes, before its end where negative."""

    def change(folder: Path) -> None:
        put(SECOND, (folder / SECOND).read_bytes()[:size])(folder)

    return change


def other_words(folder: Path) -> None:
    """The right marks over a small vocabulary, of another model's text."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    raw["model"]["vocab"] = {word: i for word, i in vocabulary.items() if i < 50_257}
    put("tokenizer.json", json.dumps(raw))(folder)


def other_ranks(folder: Path) -> None:
    lines = (folder / "tokenizer.model").read_bytes().splitlines(keepends=True)
    put("tokenizer.model", b"".join(lines[:100_000]))(folder)


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
    *((cut(size), f"{SECOND} is cut off or damaged") for size in (7, 8, 60, 4000, -1)),
    (put("config.json", '{"model_type": ["step"]}'), r"holds a model of type \['step'\]"),
    (put("config.json", '{"model_type": null}'), "holds a model of type None"),
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
    (other_words, "it has 50257 ids of text instead of 151643; take the tokenizer files"),
    (put("added_tokens.json", "[1]"), "added_tokens.json is no JSON object"),
    (put("added_tokens.json", '{"<|EOT|>": 7}'), "not Step-Audio-2-mini's: <|EOT|> 7 instead"),
]
GLM: list[tuple[Callable[[Path], object], str]] = [
    (configured(num_layers=1.5), IMPOSSIBLE),
    (configured(layernorm_epsilon=0), IMPOSSIBLE),
    (put("tokenizer_config.json", '{"added_tokens_decoder": {"1": 3}}'), "entries that cannot"),
    (other_ranks, "it has 100000 ids of text instead of 151329; take the tokenizer files"),
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
    with pytest.raises(ValueError, match=says) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_places_that_hold_no_model(whole: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is a file: give the folder"):
        load(str(whole["step"] / "config.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing in empty"):
        load(str(tmp_path / "empty"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder that this process may not look into; root may look into any, so it steps down."""
    root = os.geteuid() == 0
    folder.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_files_that_may_not_be_read(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole["step"], tmp_path / "copy", copy_function=os.link))
    with locked(folder):
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\): see to"):
            load(str(folder))
        assert fetching.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert "Permission denied" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 5000, r"^a{80} cannot be read \(File name too long\)"),
        ("-owner/na--me", "there is no model '-owner/na--me': use one of embedded"),
        ("owner/name.git", r"there is no model 'owner/name\.git'"),
        ("a\0b", "there is no model"),
    ],
)
def test_names_that_no_model_can_have(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(name)


def test_a_qwen_of_text_alone_is_told_from_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("config.json", '{"model_type": "qwen2"}')(tmp_path)
    says = "holds a Qwen2 without a codec.safetensors, which writes text only: take step-audio-2"
    with pytest.raises(ValueError, match=says):
        load(str(tmp_path))
    monkeypatch.setattr(hub, "download", lambda *_, **__: tmp_path)
    with pytest.raises(ValueError, match=f"Owner/Qwen2-7B {says}"):
        load("Owner/Qwen2-7B")


@pytest.mark.parametrize("error", [RuntimeError("xet: reset by peer"), LocalEntryNotFoundError("")])
def test_a_download_that_breaks_off_in_any_way_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", broken)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"could not be fetched .* goes on where it stopped"):
        load("owner/name")


OUT = ("compare", "evaluation", "calibrate", "exit_heads")
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "compare": (compare.main, ["--prompt", "hello"]),
    "evaluation": (evaluation.main, []),
    "calibrate": (calibrate.main, []),
    "heads": (lambda asked: calibrate.main(["heads", "nowhere", *asked]), []),
    "exit_heads": (exit_heads.main, ["--prompts", "prompts.txt"]),
    "decode": (decode.main, []),
    "first_audio": (first_audio.main, []),
    "growth": (growth.main, []),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are called from, with a file of prompts."""
    monkeypatch.chdir(tmp_path)
    put("prompts.txt", "hello")(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_it_and_ends_with_2(
    name: str, whole: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole["glm"], here / "copy", copy_function=os.link))
    half(folder)
    command, more = COMMANDS[name]
    out = ["--out", "out"] if name in OUT else []
    assert command(["--model", str(folder), *out, *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"{SECOND} missing in copy" in said[0]


@pytest.mark.parametrize("family", ["step", "glm"])
@pytest.mark.parametrize("name", ["evaluation", "exit_heads", "decode", "calibrate", "heads"])
def test_a_missing_voice_is_said_before_the_weights_are_read(
    name: str,
    family: str,
    whole: dict[str, Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A calibration needs ears, so it ends there; the others go on to read."""

    class Read(ValueError):
        pass

    def read(*_: object) -> None:
        raise Read("the weights are read")

    monkeypatch.setattr(large, "read_body", read)
    command, more = COMMANDS[name]
    out = ["--out", "out"] if name in OUT else []
    assert command(["--model", str(whole[family]), "--device", "cpu", *out, *more]) == 2
    said = capsys.readouterr().err
    repository = {"step": "stepfun-ai/Step-Audio-2-mini", "glm": "zai-org/glm-4-voice-decoder"}
    assert f"`hf download {repository[family]} " in said
    assert ("has no sound here" in said) is (name in ("calibrate", "heads"))
    assert ("the weights are read" in said) is (name not in ("calibrate", "heads"))


def test_missing_heads_and_prompts_are_said_before_the_weights_are_read(
    whole: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(large, "read_body", lambda *_: pytest.fail("was read"))
    model = ["--model", str(whole["step"]), "--device", "cpu"]
    missing = str(tmp_path / "missing")
    asked = ["--prompt", "hello", "--out", str(tmp_path / "out"), "--heads", missing]
    assert compare.main([*model, *asked]) == 2
    assert "give the exit heads that were fitted" in capsys.readouterr().err
    assert exit_heads.main([*model, "--prompts", missing]) == 2
    assert "give a text file with one prompt a line" in capsys.readouterr().err


def test_the_shelf_says_it_too(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole["glm"], tmp_path / "copy", copy_function=os.link))
    half(folder)
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
        ("config.json", WRONG_TYPE, "copy: .*; fetch its files again"),
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
