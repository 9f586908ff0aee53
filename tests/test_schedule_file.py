"""Schedules as files: read back, refused for another model, taken by command, benchmark, page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pandas as pd
import pytest

from benchmarks import decode
from spark import compare, schedule_file
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule
from spark.schedule_file import ScheduleFile
from spark.shelf import Shelf
from spark.ui import ComparePage
from tests.tiny import tiny_lm

SCHEDULE = PositionSchedule((None, 3, 2, 1))


@pytest.fixture(scope="module")
def lm() -> SpokenLM:
    return tiny_lm()


@pytest.fixture
def path(lm: SpokenLM, tmp_path: Path) -> Path:
    file = tmp_path / "schedule.json"
    ScheduleFile.of(lm, SCHEDULE, provenance={"seed": 1}, measured={"depth": 2.5}).write(file)
    return file


def test_a_file_is_read_back(lm: SpokenLM, path: Path) -> None:
    read = schedule_file.read(path)
    assert read.schedule(lm) == SCHEDULE
    assert (read.provenance, read.measured) == ({"seed": 1}, {"depth": 2.5})
    assert schedule_file.named(str(path), lm) == "f-3-2-1"
    assert schedule_file.named("triple", lm) == "triple"


def test_another_model_is_refused(lm: SpokenLM, path: Path) -> None:
    read = schedule_file.read(path)
    with pytest.raises(ValueError, match="for the model tiny, not for small"):
        read.schedule(replace(lm, name="small"))
    with pytest.raises(ValueError, match="other weights of tiny: calibrate anew"):
        read.schedule(tiny_lm(1))
    with pytest.raises(ValueError, match="groups of 1 text and 4 speech"):
        read.schedule(replace(lm, layout=Interleave(3, 7)))
    with pytest.raises(ValueError, match=r"exits at layer 1: Tiny .* has 2, 3"):
        read.schedule(replace(lm, candidate_exits=(2, 3), exit_heads={}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speech": ["11", None]}, "speech.0"),
        ({"speech": [0]}, "speech.0"),
        ({"format": "spark-schedule-9"}, "format"),
        ({"base_head": "x"}, "base_head"),
        ({"extra": 1}, "extra"),
        ({"head": "borrowed"}, "head"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(path: Path, change: dict, words: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"no schedule of this lab: {words}"):
        schedule_file.read(path)


def test_files_that_are_none(lm: SpokenLM, path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        schedule_file.read(path.with_name("other.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match="Invalid JSON"):
        schedule_file.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        schedule_file.read(path)
    path.write_text(" " * (schedule_file.MOST_BYTES + 1))
    with pytest.raises(ValueError, match="too large"):
        schedule_file.read(path)


def test_the_command_takes_a_file(lm, path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(compare, "load", lambda name, told: lm)
    out = tmp_path / "out"
    asked = ["--prompt", "hello", "--no-listen", "--out", str(out), "--schedule"]
    assert compare.main([*asked, str(path)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["schedule"] == "f-3-2-1"
    trace = pd.read_csv(out / "spark.trace.csv", keep_default_na=False)
    assert {1, 2, 3, 4} <= set(trace[trace.slot == "speech"].depth)
    assert compare.main([*asked, "f-3-9"]) == 2
    assert "there is no exit at layer 9" in capsys.readouterr().err
    other = tmp_path / "other.json"
    ScheduleFile.of(tiny_lm(1), SCHEDULE).write(other)
    assert compare.main([*asked, str(other)]) == 2
    assert "other weights of tiny" in capsys.readouterr().err


def test_the_benchmark_takes_a_schedule(lm: SpokenLM, path: Path) -> None:
    runs = decode.contenders(lm, *decode.engines(lm), schedule_file.named(str(path), lm))
    assert next(run.policy for run in runs if run.name == "spark") == SCHEDULE


def test_the_page_takes_a_file(lm: SpokenLM, path: Path) -> None:
    with gr.Blocks():
        page = ComparePage(Shelf(lm))
    taken = page.take_schedule(str(path), "tiny")
    assert taken[page.form.schedule] == "f-3-2-1"
    assert "f-3-2-1" in taken[page.board.status]
    ScheduleFile.of(tiny_lm(1), SCHEDULE).write(path)
    refused = page.take_schedule(str(path), "tiny")
    assert page.form.schedule not in refused
    assert "other weights" in refused[page.board.status]
    path.write_text("{}")
    told = page.take_schedule(str(path), "tiny")[page.board.status]
    assert "The file is no schedule" in told
    assert str(path.parent) not in told
