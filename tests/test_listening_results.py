"""The Results page: shut while the study runs; then figures, sentences, the paper's text, files."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, expect

import app
from listening_test import enrolment, export, results
from listening_test.analysis import analyse
from listening_test.figures import figures
from listening_test.hosting import Studies
from listening_test.profiles import rater_values, session_parts
from listening_test.results import public_files, show_results
from listening_test.ui import public as ui
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS
from tests.test_listening_analysis import compared, votes
from tests.test_listening_export import rated  # noqa: F401  (a fixture)
from tests.test_listening_statistics import crossed
from tests.tiny import tiny_lm

REMARK = "'@rater"  # what every rater of the fixture wrote, as a CSV guards it


@pytest.fixture(scope="module")
def open_study(rated: tuple[Path, Studies]) -> tuple[Path, Studies]:  # noqa: F811
    """Three raters' study before it is closed."""
    return rated


@pytest.fixture(scope="module")
def closed(open_study: tuple[Path, Studies]) -> tuple[Path, Studies]:
    """The same study when it is closed; no test after these needs it open."""
    hosted = open_study[1].get("small")
    assert hosted is not None
    hosted.store.run(lambda db: enrolment.close_study(db, time.time())).result()
    return open_study


def test_nothing_is_shown_or_handed_out_while_the_study_runs(
    open_study: tuple[Path, Studies],
) -> None:
    _, studies = open_study
    found = show_results(studies)
    assert "shut to everyone until it is closed" in found.note
    assert (found.words, dict(found.figures), dict(found.tables), found.text) == ((), {}, {}, "")
    for name in ("report.html", "bundle.zip", "ratings.csv"):
        note, data = ui.handed_out(studies, name)
        assert "shut to everyone" in note
        assert data == ""
    told = json.dumps(ui._laid_out(found), default=str)
    assert not [name for name in SYSTEMS if name in told]
    assert show_results(Studies()).note == "No study is open."


def test_results_open_when_the_study_is_closed(closed: tuple[Path, Studies]) -> None:
    found = show_results(closed[1])
    assert "27 ratings" in found.note
    assert "Warning" not in found.note
    assert "No spread" in " ".join(found.words)  # quokka and marmoset always get the same
    systems, pairs = found.tables["means"], found.tables["differences"]
    assert set(systems["system"]) == set(SYSTEMS)
    assert len(pairs) == 3
    assert list(found.figures) == ["means", "differences", "order", "raters"]
    shown = found.figures["means"].figure.data[1]
    assert set(shown.y) == set(SYSTEMS)
    for name, value in zip(shown.y, shown.x, strict=True):
        (told,) = systems.loc[systems["system"] == name, "MOS"]
        assert round(value, 2) == told
    gaps = found.figures["differences"].figure
    assert len(gaps.data[0].x) == 3
    assert len(gaps.layout.shapes) == 2  # nought and the margin
    raters = found.figures["raters"].figure
    assert sum(len(trace.x) for trace in raters.data) == 9  # three raters, three systems
    assert "quokka has the highest mean, 5.00" in found.figures["means"].sentence


def test_results_without_their_key_are_told_so_and_no_path_is(
    closed: tuple[Path, Studies], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a public machine has the clips alone, and the key is kept elsewhere."""

    def absent(folder: Path) -> None:
        raise export.ExportError(f"{folder} has no key/stimuli.csv")

    for cached in (results._analysed, results._files):
        cached.cache_clear()
    monkeypatch.setattr(results, "exported_files", absent)
    found, files = show_results(closed[1]), public_files(closed[1])
    assert "cannot be joined with their systems" in found.note
    assert isinstance(files, str)
    assert "cannot be joined with their systems" in files
    assert str(closed[0]) not in found.note + files


def test_the_text_is_the_reports_methods_and_results(
    closed: tuple[Path, Studies], tmp_path: Path
) -> None:
    _, studies = closed
    text = show_results(studies).text
    assert text.startswith("## Methods\n")
    assert "## Results\n" in text
    assert "Figure" not in text
    files = public_files(studies)
    assert not isinstance(files, str)
    with zipfile.ZipFile(io.BytesIO(files.bundle_zip)) as archive:
        report = archive.read("report.md").decode()
        assert archive.read("ratings.csv") == files.ratings_csv
        assert archive.read("report.html") == files.report_html
    # Every line of the pasted text stands in the report, in the same order.
    rest = iter(report.splitlines())
    assert all(line in rest for line in text.splitlines() if line)


def test_what_is_public_tells_nothing_of_people(
    closed: tuple[Path, Studies], tmp_path: Path
) -> None:
    study_dir, studies = closed
    export.export(study_dir, tmp_path)
    whole = (tmp_path / "ratings.csv").read_text(encoding="utf-8")
    assert REMARK in whole
    note, data = ui.handed_out(studies, "ratings.csv")
    assert "comments and questionnaires are left out" in note
    assert base64.b64decode(data).decode() == whole.replace(REMARK, "")
    files = public_files(studies)
    assert not isinstance(files, str)
    with zipfile.ZipFile(io.BytesIO(files.bundle_zip)) as archive:
        for name in archive.namelist():
            assert REMARK[1:].encode() not in archive.read(name), name
            assert b"about_" not in archive.read(name), name


def test_a_csv_that_is_behind_is_told_on_results(
    closed: tuple[Path, Studies], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = closed[1].get("small")
    assert hosted is not None
    monkeypatch.setattr(hosted.store._shadow, "error", "ratings.csv is behind the database: full")
    note = show_results(closed[1]).note
    assert "**Warning:** ratings.csv is behind the database: full" in note


def test_the_page_has_a_place_for_everything(closed: tuple[Path, Studies]) -> None:
    """As many values as components, whatever the method."""
    with gr.Blocks(analytics_enabled=False) as demo:
        ui.results_page(closed[1], demo)
    (load,) = [f for f in demo.fns.values() if f.targets[0][1] == "load"]
    assert len(ui._laid_out(show_results(closed[1]))) == len(load.outputs)


def drifting(raters: int = 100) -> pd.DataFrame:
    """Every rater's scores fall by one point from the first trial to the last."""
    rng = np.random.default_rng(1)
    frame = crossed(rng, raters, 16, ("a", "b"))
    frame["trial_index"] = frame.groupby("rater_id")["score"].transform(
        lambda scores: rng.permutation(len(scores)) + 1
    )
    return frame.assign(score=frame["score"] - (frame["trial_index"] - 1) / 31)


def test_the_session_is_told_in_parts() -> None:
    frame = drifting()
    parts = session_parts(frame)
    assert list(parts) == [f"{4 * n + 1} to {4 * n + 4}" for n in range(8)]
    means = [part.mean for part in parts.values()]
    assert np.corrcoef(means, range(8))[0, 1] < -0.9
    assert means[0] - means[-1] == pytest.approx(28 / 31, abs=0.2)  # from middle to middle
    for part in parts.values():
        low, high = part.interval() or (0, 0)
        assert high - low < 0.6
    # By hand, for the first part: what is left of a score, by rater, then over the raters.
    left = frame["score"] - frame.groupby("stimulus_id")["score"].transform("mean")
    left -= left.groupby(frame["rater_id"]).transform("mean")
    early = left[frame["trial_index"] <= 4].groupby(frame["rater_id"]).mean()
    assert means[0] == pytest.approx(early.mean())
    assert session_parts(frame.drop(columns="trial_index")) == {}
    assert session_parts(frame.assign(trial_index="1")) == {}
    assert list(session_parts(frame[frame["trial_index"].astype(int) < 4])) == ["1", "2", "3"]
    shown = {one.name: one for one in figures(frame, analyse(frame))}
    assert "they drift" in shown["order"].sentence
    assert shown["order"].figure.data[0].y[0] == "trials 1 to 4"


def test_every_rater_is_in_the_figure_by_every_method() -> None:
    rng = np.random.default_rng(2)
    frame = compared(rng, 0.5, 0.4, raters=12)
    result = analyse(frame)
    found = rater_values(frame, result)
    assert found is not None
    assert found.centre == 0
    assert np.mean(found.values["new − old"]) == pytest.approx(0.5, abs=0.3)
    assert [one.name for one in figures(frame, result)] == ["differences", "order", "raters"]
    frame = votes(rng, {"x": 0.0, "y": 0.7, "z": 1.4}, 12)
    result = analyse(frame)
    found = rater_values(frame, result)
    assert found is not None
    assert found.centre == 0.5
    assert {len(own) for own in found.values.values()} == {12}
    mean = np.mean(found.values["x over z"])
    assert mean == pytest.approx(result["preferences"][1]["share_a"], abs=0.1)
    assert [one.name for one in figures(frame, result)] == ["shares", "order", "raters"]
    ties = frame.assign(choice="tie")
    assert rater_values(ties, analyse(ties)) is None
    assert [one.name for one in figures(ties, analyse(ties))] == ["shares"]


@pytest.fixture(scope="module")
def address(closed: tuple[Path, Studies]) -> Iterator[str]:
    demo = app.build(tiny_lm(), closed[1])
    _, address = app.launch(demo, closed[1], "127.0.0.1")
    yield address.rstrip("/")
    demo.close(verbose=False)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_chromium(browser: Browser, address: str, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with local_page(browser, **options) as page:
        expect.set_options(timeout=30_000)
        page.goto(f"{address}/results")
        for title in ("Means", "Differences", "Order", "Raters"):
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
        expect(page.locator(".js-plotly-plot")).to_have_count(4)
        expect(page.locator("#results-means")).to_contain_text("highest mean, 5.00")
        expect(page.get_by_label("Methods and results")).to_have_value(re.compile("^## Methods"))
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_text_is_copied_and_files_are_saved(browser: Browser, address: str) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with local_page(browser, permissions=permissions) as page:
        page.goto(f"{address}/results")
        box = page.get_by_label("Methods and results")
        expect(box).to_have_value(re.compile("^## Methods"))
        page.get_by_role("button", name="Copy the text").click()
        expect(page.locator("#results-saved")).to_contain_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == box.input_value()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the bundle").click()
        assert download.value.suggested_filename == "bundle.zip"
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.testzip() is None
            assert "report.html" in archive.namelist()
