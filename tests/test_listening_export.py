"""From a study to its evidence: ratings, export, analysis; the ready study; the Gradio pages."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from listening_test import analyse, decode, enrolment, export, ready, report_factors
from listening_test.columns import RATING_COLUMNS
from listening_test.gate import SECRET_VARIABLE
from listening_test.hosting import Studies, StudyState
from listening_test.levelling import StimulusError
from listening_test.prepared import NotPrepared, load_prepared
from listening_test.server import attach
from listening_test.stimuli import prepare
from listening_test.store import StoreMismatch
from listening_test.study import load_study
from listening_test.ui import admin as admin_page
from listening_test.ui import public as ui
from tests.listening import SYSTEMS, Rater, prepared_study, write_study
from tests.tiny import tiny_lm, tiny_prompt


def key_of(study_dir: Path) -> dict[str, str]:
    with open(study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        return {row["stimulus_id"]: row["system"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Studies]]:
    """A study that three raters have taken: quokka gets 5, marmoset 3, zebrafish 1 or 2."""
    study_dir = prepared_study(tmp_path_factory.mktemp("rated"))
    studies = Studies()
    hosted = studies.open(study_dir)
    app = FastAPI()
    attach(app, studies)
    key = key_of(study_dir)
    with TestClient(app) as client:
        raters = [Rater(client) for _ in range(3)]
        states = [rater.start() for rater in raters]
        while states[0]["state"] != "done":
            for rater, state in zip(raters, states, strict=True):
                rater.fetch(state)
            time.sleep(0.51)
            for number, (rater, state) in enumerate(zip(raters, states, strict=True)):
                system = key[_stimulus(hosted, state)]
                score = {"quokka": 5, "marmoset": 3, "zebrafish": 1 + number % 2}[system]
                reply = rater.post("rating", rater.body(state, score, comment="@rater"))
                states[number] = reply.json()["next"]
    yield study_dir, studies
    studies.close()


def _stimulus(hosted: Any, state: dict[str, Any]) -> str:
    query = "SELECT stimulus_id FROM clips WHERE token = ?"
    found = hosted.store.run(lambda db: db.execute(query, (state["clips"][0],)).fetchone()[0])
    return str(found.result())


def test_ratings_become_evidence(
    rated: tuple[Path, Studies], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir, _ = rated
    assert export.main([str(study_dir), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    with open(tmp_path / "out" / "ratings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*RATING_COLUMNS, "system", "system_b"]
    assert len(rows) == 3 * 10
    key = key_of(study_dir)
    assert all(row["system"] == key[row["stimulus_id"]] for row in rows)
    assert all(row["comment"] == "'@rater" for row in rows)
    assert analyse.main([str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: values["mos"] for name, values in result["systems"].items()} == {
        "quokka": 5, "marmoset": 3, "zebrafish": pytest.approx(4 / 3),
    }  # fmt: skip
    assert result["excluded"] == {"trial_type: practice": 3}
    # study.json makes the first system of the study file the reference, and gives the margin.
    pairs = {(pair["a"], pair["b"]): pair for pair in result["pairs"]}
    assert set(pairs) == {
        ("quokka", "zebrafish"),
        ("marmoset", "zebrafish"),
        ("marmoset", "quokka"),
    }
    worse = pairs["marmoset", "quokka"]
    # Always 5 against always 3: without any spread a gap of two points is no verdict either.
    assert (worse["difference"], worse["non_inferior"], worse["margin"]) == (-2, None, 0.2)
    assert pairs["quokka", "zebrafish"]["non_inferior"] is True


def test_export_leaves_the_study_as_it_was(rated: tuple[Path, Studies], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with sqlite3.connect(rated[0] / "data" / "ratings.sqlite3") as served:
        shutil.copytree(rated[0], copy, ignore=shutil.ignore_patterns("ratings.sqlite3*"))
        with sqlite3.connect(copy / "data" / "ratings.sqlite3") as closed:
            served.backup(closed)
    closed.close()

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    before = contents()
    assert export.export(copy, tmp_path / "out") == len(export.exported_frame(rated[0])[0])
    assert contents() == before
    (copy / "data" / "ratings.sqlite3").write_bytes(b"torn")
    with pytest.raises(export.ExportError, match="cannot be read"):
        export.export(copy, tmp_path / "out")


def test_the_blinded_file_has_no_system(rated: tuple[Path, Studies]) -> None:
    text = (rated[0] / "data" / "ratings.csv").read_text(encoding="utf-8")
    assert not [name for name in (*SYSTEMS, '"system"') if name in text]
    assert len(text.splitlines()) == 31


def test_export_refuses_what_cannot_be_joined(
    rated: tuple[Path, Studies], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "key/stimuli.csv" in capsys.readouterr().err
    fresh = prepared_study(tmp_path)
    assert export.main([str(fresh), "--out", str(tmp_path / "out")]) == 2
    assert "no ratings yet" in capsys.readouterr().err
    (fresh / "data").mkdir()
    database = rated[0] / "data" / "ratings.sqlite3"
    (fresh / "data" / "ratings.sqlite3").write_bytes(database.read_bytes())
    wal = database.with_name("ratings.sqlite3-wal")
    (fresh / "data" / wal.name).write_bytes(wal.read_bytes())
    key = (fresh / "key" / "stimuli.csv").read_text(encoding="utf-8").splitlines()
    (fresh / "key" / "stimuli.csv").write_text("\n".join(key[:3]) + "\n", encoding="utf-8")
    assert export.main([str(fresh), "--out", str(tmp_path / "out")]) == 2
    assert "are not in" in capsys.readouterr().err


@pytest.fixture
def tiny_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stimuli decoded by the tiny model instead of the embedded one."""
    talkative = tiny_lm(max_tokens=40, ends=False)
    lm = replace(talkative, encode_prompt=lambda text: tiny_prompt(text.replace(":", "")))
    monkeypatch.setattr(decode, "_model", lambda name: lm)


def wait_until_open(studies: Studies) -> StudyState:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        (state,) = studies.states()
        if state.status != "preparing":
            return state
        time.sleep(0.05)
    raise AssertionError("the ready study is still being prepared")


@pytest.mark.usefixtures("tiny_decoder")
def test_the_ready_study_is_decoded_once_and_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = ready.ensure_ready_study(tmp_path)
    state = wait_until_open(studies)
    assert (state.status, state.message) == ("open", "")
    assert state.study_dir is not None
    assert state.trials_per_rater == 24
    first = load_prepared(state.study_dir)
    assert len(first.stimuli) == 3 * 8 + 1
    assert set(key_of(state.study_dir).values()) == {"full", "spark", "confidence"}
    studies.close()
    # A second start finds the clips and decodes nothing.
    monkeypatch.setattr(ready, "prepare", lambda *given: pytest.fail("prepared again"))
    again = ready.ensure_ready_study(tmp_path)
    assert wait_until_open(again).study_dir == state.study_dir
    again.close()
    assert load_prepared(state.study_dir) == first


@pytest.mark.usefixtures("tiny_decoder")
def test_a_prompt_the_model_cannot_take_names_its_item(tmp_path: Path) -> None:
    text = ready.READY_STUDY.read_text(encoding="utf-8")
    path = tmp_path / "study.yaml"
    path.write_text(
        text.replace("What is the capital of Norway?", "挪威的首都？"), encoding="utf-8"
    )
    with pytest.raises(StimulusError, match="item norway: This model cannot read"):
        prepare(load_study(path), tmp_path / "out")


def test_a_ready_study_that_fails_says_so_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(name: str) -> None:
        raise ValueError("there is no model here")

    monkeypatch.setattr(decode, "_model", no_model)
    studies = ready.ensure_ready_study(tmp_path)
    state = wait_until_open(studies)
    assert state.status == "failed"
    assert "there is no model here" in state.message
    assert "Not available" in ui._cards(studies.states())


def test_a_prepared_study_of_ones_own_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = prepared_study(tmp_path)
    studies = Studies()
    ready.offer_study(study_dir, studies)
    state = wait_until_open(studies)
    assert (state.status, state.study_dir, state.path) == ("open", study_dir, "/listen/small")
    studies.close()
    with pytest.raises(NotPrepared, match="holds no prepared study"):
        ready.offer_study(tmp_path / "none", Studies())

    def refuse(self: Studies, folder: Path) -> None:
        raise StoreMismatch("ratings of another study")

    monkeypatch.setattr(Studies, "open", refuse)
    broken = Studies()
    ready.offer_study(study_dir, broken)
    state = wait_until_open(broken)
    assert (state.status, state.message) == ("failed", "ratings of another study")
    broken.close()


def test_the_listen_page_tells_state_and_escapes(rated: tuple[Path, Studies]) -> None:
    _, studies = rated
    card = ui._cards(studies.states())
    assert 'href="/listen/small"' in card
    assert "3 of 8 planned sessions complete" in card
    assert "27 ratings so far" in card
    assert not [name for name in SYSTEMS if name in card]
    shy = StudyState("x", "<b>title</b>", "failed", "<i>why</i>")
    assert "<b>" not in ui._cards([shy])
    assert "<i>" not in ui._cards([shy])
    assert "being prepared" in ui._cards([StudyState("x", "t", "preparing")])


@pytest.fixture(scope="module")
def closed(rated: tuple[Path, Studies]) -> tuple[Path, Studies]:
    """The same study when it is closed; no test after these needs it open."""
    hosted = rated[1].get("small")
    assert hosted is not None
    hosted.store.run(lambda db: enrolment.close_study(db, time.time())).result()
    return rated


@pytest.mark.parametrize("space", [None, "someone/lab"])
def test_a_space_says_that_its_ratings_die(
    monkeypatch: pytest.MonkeyPatch, space: str | None
) -> None:
    monkeypatch.delenv(ui.SPACE_VARIABLE, raising=False)
    if space:
        monkeypatch.setenv(ui.SPACE_VARIABLE, space)
    with gr.Blocks(analytics_enabled=False) as demo:
        ui.listen_page(Studies())
    config = json.dumps(demo.get_config_file(), default=str)
    assert ("emptied at every restart" in config) is bool(space)
    assert ("download the export" in config) is bool(space)


def test_no_page_of_the_app_names_a_system(
    rated: tuple[Path, Studies], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "right")
    _, studies = rated
    with gr.Blocks(analytics_enabled=False) as demo:
        ui.listen_page(studies)
        ui.results_page(studies, demo)
        admin_page.admin_page(studies)
    config = json.dumps(demo.get_config_file(), default=str)
    assert "right" not in config.replace("copyright", "").split()
    assert not [name for name in SYSTEMS if name in config]


def test_a_talker_is_in_the_key_and_in_the_report_and_nowhere_that_is_served(
    tmp_path: Path,
) -> None:
    path = write_study(tmp_path / "source")
    before = load_study(path)
    text = path.read_text()
    for number, talker in enumerate(("Voice-F", "Voice-F", "Voice-M")):
        named = f"- {{id: text-{number}, talker: {talker}}}\n"
        text = text.replace(f"- id: text-{number}\n", named)
    path.write_text(text)
    study = load_study(path)
    assert study.sha256 != before.sha256
    study_dir = tmp_path / "study"
    prepare(study, study_dir)
    with open(study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        told = {(row["item_id"], row["talker"]) for row in csv.DictReader(file)}
    assert told == {
        ("text-0", "Voice-F"), ("text-1", "Voice-F"), ("text-2", "Voice-M"), ("text-p", ""),
    }  # fmt: skip
    served = b"".join(file.read_bytes() for file in (study_dir / "serve").rglob("*.*"))
    assert b"text-0" in served
    assert b"Voice" not in served
    nothing = pd.DataFrame()
    told = report_factors._design(report_factors.Evidence(nothing, nothing, {}, study=study))
    assert str(told).endswith(" Talkers: Voice-F (2 texts), Voice-M (1 text).")
