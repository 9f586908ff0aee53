"""The Evidence page: its words without a browser, and in Chromium with axe."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, expect

import app
from listening_test.hosting import Studies
from spark.evaluation import claims, claims_text, evidence
from spark.evaluation import summary as summaries
from spark.evaluation.tradeoff import MEASURES, SOUND, front
from spark.plots.evaluation import pareto_figure
from spark.ui import evidence_page
from tests.browser import accessible, local_page
from tests.test_claims import COST, reply
from tests.test_evaluation_report import folder_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of made-up lines, with its claims."""
    path = tmp_path_factory.mktemp("evidence")
    changes = {"confidence:0.9": {"extra": 1}, "confidence": {"extra": 2, "lost": 6}}
    made = [line for name in COST for line in reply(name, **changes.get(name, {}))]
    folder_of(path, made, title="<b>M</b>")
    summaries.write(path)
    claims.write(path)
    return path


def test_a_card_says_claim_test_findings_verdict_and_command(folder: Path) -> None:
    found = evidence.read(folder)
    assert found.claims is not None
    shown = evidence.cards(found)
    for one in found.claims["claims"]:
        for part in (one["title"], one["verdict"], *one["findings"]):
            assert escape(part) in shown
    assert shown.count("<article") == 4
    assert "&lt;b&gt;M&lt;/b&gt;" in evidence.introduction(found)
    assert {one["verdict"] for one in found.claims["claims"]} >= {"supported", "not supported"}


def test_without_files_it_says_not_measured_and_the_command(tmp_path: Path) -> None:
    (tmp_path / claims.CLAIMS).write_text("{")
    found = evidence.read(tmp_path)
    assert found == evidence.Evidence(None, None)
    assert "Not measured yet" in evidence.introduction(found)
    assert evidence.MAKE in evidence.introduction(found)
    shown = evidence.cards(found)
    assert shown.count("not measured yet") == len(claims_text.CLAIMS) == 4
    assert claims_text.COMMAND in shown


def test_the_front_is_that_of_a_plain_loop(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    for place, measure in enumerate(SOUND):
        values = {
            name: (of["traffic_ratio"],
                   of[measure]["value"] if measure != "mos_predicted"
                   else of["mos_predicted"])
            for name, of in summary["policies"].items()
        }  # fmt: skip
        sign = 1 if MEASURES[measure].up else -1
        unbeaten = {
            name for name, (x, y) in values.items()
            if not any(
                a <= x and sign * b >= sign * y and other != name for other, (a, b) in
                values.items()
            )
        }  # fmt: skip
        assert set(front(summary, measure)) == unbeaten
        marks = [t for t in pareto_figure(summary).data if t.mode == "markers+text"]
        assert set(marks[place].text) == set(values)
    one = {"policies": {"a": {"traffic_ratio": 1.0, "wer": None}}}
    assert front(one, "wer") == []
    assert evidence.told({"policies": {}}) == "<p>Not measured yet.</p>"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_in_a_browser(browser: Browser, folder: Path, width: int, scheme: str) -> None:
    with gr.Blocks() as demo:
        gr.Navbar(main_page_name="Evidence")
        evidence_page(folder)
    studies = Studies()
    _, address = app.launch(demo, studies, "127.0.0.1")
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with local_page(browser, **options) as page:
        page.goto(address)
        expect(page.locator("#pareto-plot .js-plotly-plot")).to_be_visible(timeout=30_000)
        expect(page.locator(".sk-claim")).to_have_count(4)
        expect(page.locator("#pareto-told")).to_contain_text("Right as heard")
        page.get_by_role("button", name=re.compile("^All figures")).click()
        expect(page.get_by_role("region", name="All policies")).to_be_visible()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    demo.close(verbose=False)
    studies.close()
