"""Public question sets in the layouts of three toolkits, and what is said of broken ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from huggingface_hub.errors import LocalEntryNotFoundError
from pyarrow import parquet

from spark.evaluation import __main__ as evaluation
from spark.evaluation import datasets, fingerprint
from spark.evaluation.datasets import DataError
from spark.evaluation.suite import Item, limited
from spark.models import hub
from spark.speech.audio import read_wav, wav_bytes

TONE = (8000 * np.sin(np.arange(8000) / 5)).astype(np.int16)  # half a second at 16 kHz


def write_csv(root: Path, name: str, rows: Sequence[dict[str, Any]], sound: bool = True) -> Path:
    """A subset as OpenAudioBench has it."""
    folder = root / "eval_datas" / name
    (folder / "audios").mkdir(parents=True)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["audio_filename", *rows[0]])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({"audio_filename": f"{number}.mp3", **row})
            if sound:
                soundfile.write(folder / "audios" / f"{number}.mp3", TONE, 16_000)
    return folder


def write_parquet(folder: Path, rows: Sequence[dict[str, Any]], name: str = "test-00000") -> None:
    """Rows with sound in them, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    sound = {"bytes": wav_bytes(TONE, 16_000), "path": "q.wav"}
    table = pyarrow.Table.from_pylist([{**row, "audio": sound} for row in rows])
    parquet.write_table(table, folder / f"{name}.parquet")


def load(name: str, root: Path, spoken: bool = False) -> list[Item]:
    return datasets.load([name], str(root), spoken, root / "scratch")


ROWS: dict[str, list[dict[str, Any]]] = {
    "llama_questions": [{"Questions": "Who?", "Answer": "Ann"}, {"Questions": "2?", "Answer": "2"}],
    "web_questions": [{"question": "Where?", "answers": '["Rome", "Roma"]'}],
    "trivia_qa": [{"question": "What?", "answer_normalized_aliases": "['a dog', \"dog's\"]"}],
    "alpaca_eval": [{"instruction": "Tell me a joke.", "output": "A joke."}],
    "reasoning_qa": [{"Prompt": "How many?", "参考答案": "Three, since ..."}],
}
RIGHT = {
    "llama_questions": ("Ann",),
    "web_questions": ("Rome", "Roma"),
    "trivia_qa": ("a dog", "dog's"),
    "alpaca_eval": ("A joke.",),
    "reasoning_qa": ("Three, since ...",),
}


@pytest.mark.parametrize("name", ROWS)
def test_open_audio_bench(name: str, tmp_path: Path) -> None:
    folder = write_csv(tmp_path, name, ROWS[name])
    items = load(name, tmp_path, spoken=True)
    assert [item.item_id for item in items] == [f"{name}-{n:05d}" for n in range(len(ROWS[name]))]
    assert {item.family for item in items} == {name}
    assert items[0].prompt == next(iter(ROWS[name][0].values()))
    assert items[0].aliases == RIGHT[name]
    assert items[0].rule == ("judge" if name in ("alpaca_eval", "reasoning_qa") else "alias")
    assert items[0].audio == str(folder / "audios" / "0.mp3")
    assert read_wav(items[0].audio)[1] == 16_000
    assert load(name, tmp_path)[0].audio is None  # typed


def test_several_sets_of_one_folder_and_a_share_of_each(tmp_path: Path) -> None:
    for name, rows in ROWS.items():
        write_csv(tmp_path, name, rows * 4, sound=False)
    items = datasets.load(list(ROWS), str(tmp_path), False, tmp_path)
    assert list(dict.fromkeys(item.family for item in items)) == list(ROWS)
    few = limited(items, 6)
    assert {name: sum(item.family == name for item in few) for name in ROWS} == {
        "llama_questions": 2, "web_questions": 1, "trivia_qa": 1, "alpaca_eval": 1,
        "reasoning_qa": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "folder"), [("alpaca_eval", "alpacaeval"), ("alpaca_eval_full", "alpacaeval_full")]
)
def test_voice_bench(name: str, folder: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / folder, [{"prompt": "Tell me a joke."}, {"prompt": "Why?"}])
    items = load(name, tmp_path, spoken=True)
    assert [item.prompt for item in items] == ["Tell me a joke.", "Why?"]
    assert items[0].aliases == ()
    assert items[0].audio is not None
    samples, rate = read_wav(items[0].audio)
    assert rate == 16_000
    np.testing.assert_array_equal(samples, TONE)


def test_ultra_eval_audio_as_on_the_hub(tmp_path: Path) -> None:
    """Parquet in data/, a list column, other splits left alone."""
    folder = tmp_path / "speech-web-questions" / "data"
    write_parquet(folder, [{"question": "Where?", "answers": ["Rome", "Roma", "Rome"]}])
    write_parquet(folder, [{"question": "Trained on", "answers": ["x"]}], "train-00000")
    (only,) = load("web_questions", tmp_path)
    assert (only.prompt, only.aliases) == ("Where?", ("Rome", "Roma"))
    assert load("web_questions", folder.parent) == [only]  # the set's own folder


def test_ultra_eval_audio_as_saved_to_disk(tmp_path: Path) -> None:
    """The stream of record batches that `datasets` writes."""
    folder = tmp_path / "llama-questions"
    folder.mkdir()
    table = pyarrow.Table.from_pylist([{"question": "Who?", "answer": "Ann"}])
    path = str(folder / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (only,) = load("llama_questions", tmp_path)
    assert (only.prompt, only.aliases) == ("Who?", ("Ann",))


def test_ultra_eval_audio_as_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "llama-questions"
    (folder / "raw").mkdir(parents=True)
    soundfile.write(folder / "raw" / "q.wav", TONE, 16_000)
    lines = [{"question": "Who?", "answer": 7, "WavPath": "raw/q.wav"}]
    path = folder / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    (only,) = load("llama_questions", tmp_path, spoken=True)
    assert only.aliases == ("7",)
    assert only.audio == str(folder / "raw" / "q.wav")
    path.write_text(path.read_text() + "{")
    with pytest.raises(DataError, match=r"test\.jsonl, line 2 is no JSON"):
        load("llama_questions", tmp_path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="is no record but list"):
        load("llama_questions", tmp_path)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"Question": "Who?", "Answer": "x"}],
         "no column for the question of Llama Questions: expected Questions or question, "
         "found audio_filename, Question, Answer"),
        ([{"Questions": "Who?", "Reply": "x"}], "no column for the answer"),
        ([{"Questions": "Who?", "Answer": "x"}, {"Questions": " ", "Answer": "x"}],
         "row 2: the question is empty"),
        ([{"Questions": "Who?", "Answer": ""}], "row 1: the answer is empty"),
        ([{"Questions": "Who?", "Answer": "[]"}], "row 1: there is no answer"),
        ([{"Questions": "Who?", "Answer": "['a' 'b"}], "no list that can be read"),
    ],
)  # fmt: skip
def test_broken_rows_are_named(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    write_csv(tmp_path, "llama_questions", rows, sound=False)
    with pytest.raises(DataError, match=f"(?s)llama_questions.csv.*{says}"):
        load("llama_questions", tmp_path)


def test_recordings_must_be_there_and_inside(tmp_path: Path) -> None:
    rows = [{"Questions": "Who?", "Answer": "x"}]
    folder = write_csv(tmp_path, "llama_questions", rows, sound=False)
    with pytest.raises(DataError, match=r"row 1: the recording 0\.mp3 is not in llama_questions"):
        load("llama_questions", tmp_path, spoken=True)
    soundfile.write(tmp_path / "outside.wav", TONE, 16_000)
    table = folder / "llama_questions.csv"
    table.write_text(table.read_text().replace("0.mp3", "../../outside.wav"))
    with pytest.raises(DataError, match="is not in llama_questions"):
        load("llama_questions", tmp_path, spoken=True)
    table.write_text("Questions,Answer\nWho?,x\n")
    with pytest.raises(DataError, match="no column of recordings"):
        load("llama_questions", tmp_path, spoken=True)
    assert len(load("llama_questions", tmp_path)) == 1
    table.write_text("Questions,Answer\n")
    with pytest.raises(DataError, match="holds no rows"):
        load("llama_questions", tmp_path)


def test_a_place_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no suite qa: use builtin or alpaca_eval"):
        datasets.load(["qa"], str(tmp_path), False, tmp_path)
    with pytest.raises(DataError, match="there is no folder nowhere: give --data"):
        datasets.load(["trivia_qa"], "nowhere", False, tmp_path)
    with pytest.raises(DataError, match=r"holds no trivia_qa: looked for eval_datas/trivia_qa"):
        load("trivia_qa", tmp_path)


def test_the_hub_is_asked_for_the_set_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def fetched(repo: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repo, repo_type, allow_patterns))
        if repo == "me/gone":
            raise LocalEntryNotFoundError("offline")
        write_parquet(tmp_path / "data", [{"question": "What?", "answer": ["x"]}])
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    (only,) = datasets.load(["trivia_qa"], None, False, tmp_path)
    assert only.aliases == ("x",)
    assert asked[0][:2] == ("TwinkStart/speech-triavia-qa", "dataset")
    with pytest.raises(ValueError, match=r"me/gone could not be fetched.*check the name"):
        datasets.load(["trivia_qa"], "me/gone", False, tmp_path)


def test_a_recordings_bytes_make_the_run_not_its_place(tmp_path: Path) -> None:
    items = []
    for number, folder in enumerate(("here", "there", "other")):
        (tmp_path / folder).mkdir()
        sound = tmp_path / folder / "q.wav"
        soundfile.write(sound, TONE[number // 2 :], 16_000)
        items.append(Item("i", "web_questions", "test", "Where?", "Rome", "", audio=str(sound)))
    here, there, other = map(fingerprint._asked, items)
    assert here == there != other


def test_the_command_says_what_it_cannot_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path, "web_questions", ROWS["web_questions"])
    place = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for given, says in (
        (["--suite", "web_questions", "--spoken", *place], "takes no spoken prompt"),
        (["--suite", "builtin", *place], "stands alone"),
        (["--suite", "web_questions,nope", *place], "no suite nope"),
    ):
        assert evaluation.main(given) == 2
        assert says in capsys.readouterr().err


def test_sound_is_of_any_container(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, 16_000, format="FLAC")
    folder = tmp_path / "alpacaeval"
    folder.mkdir()
    row = {"prompt": "Why?", "audio": {"bytes": buffer.getvalue(), "path": "x.flac"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "test.parquet")
    (only,) = load("alpaca_eval", tmp_path, spoken=True)
    assert only.audio is not None
    assert only.audio.endswith(".flac")
    np.testing.assert_array_equal(read_wav(only.audio)[0], TONE)
