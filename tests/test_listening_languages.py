"""A study in several languages, its stop rule, and the raters it wants."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import expect

from listening_test import wording
from listening_test.export import sessions_frame
from listening_test.methods import Dimension, MethodName, questions
from listening_test.server import PAGE
from listening_test.study import StudyError, load_study
from tests.browser import accessible, chromium, local_page
from tests.listening import SYSTEMS, Rater, prepared_study, serving, write_study
from tests.test_listening_screening import served

TWO = """
language: en
payment: You are paid 2 pounds.
questionnaire: [{id: ears, question: Do you hear well?, choices: ["yes", "no"]}]
languages:
  ar:
    title: اختبار صغير
    payment: تُدفع لك جنيهان.
    questionnaire: {ears: {question: هل سمعك جيد؟, choices: [نعم, لا]}}
"""


@pytest.mark.parametrize("language", ["zh", "ar"])
def test_every_standard_word_is_translated(language: str) -> None:
    for method in get_args(MethodName):
        for dimension in get_args(Dimension):
            for question in questions(method, dimension):
                own = wording.in_language(question, language)
                assert own.text != question.text
                assert own.scale_id == f"{question.scale_id}-{language}"
                assert [value for value, _ in own.options] == [v for v, _ in question.options]
                assert all(
                    theirs != label or label in ("A", "B")
                    for (_, theirs), (_, label) in zip(own.options, question.options, strict=True)
                )
    assert all(shown != english for english, shown in wording.screen_words(language).items())
    assert not set(wording.bands(language)) & set(wording.bands("en"))


@pytest.mark.parametrize(
    ("language", "word"), [("en", "headphones"), ("zh", "耳机"), ("ar", "سماعات")]
)
def test_standard_instructions_ask_for_no_headphones(language: str, word: str) -> None:
    assert word not in wording.INSTRUCTIONS[language]
    assert word in (PAGE / "strings.js").read_text(encoding="utf-8")  # of the headphone check


@pytest.mark.browser
def test_a_rater_reads_answers_and_is_stored_in_the_language_chosen(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path, systems=SYSTEMS[:2], items=2, extra=TWO)
    with serving(study_dir) as url, chromium() as browser, local_page(browser) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(url)
        expect(page.get_by_text("You are paid 2 pounds.")).to_be_visible()
        page.get_by_label("Language").select_option("ar")
        expect(page.get_by_text("تُدفع لك جنيهان.")).to_be_visible()
        assert page.evaluate("document.documentElement.dir") == "rtl"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        accessible(page)
        page.locator("#agree").click()
        page.get_by_text("نعم", exact=True).click()
        page.locator("#about-form button").click()
        page.locator("#volume").click()
        expect(page.locator("#volume.playing")).to_be_visible()
        accessible(page)
        page.reload()  # the choice stays
        page.locator("#begin").click()
        expect(page.get_by_text("ما مدى طبيعية الكلام؟")).to_be_visible()
        page.keyboard.press("Space")
        expect(page.get_by_role("radio").first).to_be_enabled()
        page.get_by_text("ممتاز").click()
        page.keyboard.press("Enter")
        expect(page.locator("#practice-note")).to_be_hidden()
    with open(study_dir / "data" / "ratings.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["score"], row["label_shown"], row["ui_lang"]) == ("5", "ممتاز", "ar")
    assert row["scale_id"] == "p800-acr-5-ar"
    assert list(sessions_frame(study_dir)["about_ears"]) == ["yes"]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("languages: {zh: {}}", "languages.zh.title: is missing"),
        ("languages: {en: {title: x}}", "`language:` already"),
        ("question: How?\nlanguages: {zh: {title: x}}", "question is the study's own"),
        (TWO.replace("choices: [نعم, لا]", "choices: [نعم]"), "has 2 choices"),
        ("stop_rule: {}", "give `planned: true`"),
        ("raters: 0", "raters"),
    ],
)
def test_words_that_lack_are_told(tmp_path: Path, extra: str, says: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml line \d+") as caught:
        load_study(write_study(tmp_path, extra=extra))
    assert says in str(caught.value)


def test_raters_wanted_and_ratings_wanted(tmp_path: Path) -> None:
    def planned(name: str, extra: str) -> int:
        return load_study(write_study(tmp_path / name, extra=extra)).planned_sessions

    assert planned("a", "raters: 30") == 30
    assert planned("b", "raters: 3\nratings_per_stimulus: 12") == 12
    assert planned("c", "raters: 30\nratings_per_stimulus: 12") == 30
    assert planned("d", "") == 8


def finish(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> str:
    rater = Rater(client)
    reply = rater.post("session", {"consent": True})
    if reply.status_code != 200:
        return str(reply.json()["error"])
    state = reply.json()
    with monkeypatch.context() as patched:
        real = time.time
        for _ in range(state["total"] + 4):
            if state["state"] == "done":
                break
            rater.fetch(state)
            later = real() + 5
            patched.setattr("time.time", lambda later=later: later)
            state = rater.post("rating", rater.body(state, 3)).json()["next"]
            patched.setattr("time.time", real)
    return str(state["state"])


def test_the_study_closes_with_its_last_planned_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "raters: 2\nratings_per_stimulus: 1\nstop_rule: {planned: true}"
    study_dir = prepared_study(tmp_path, systems=SYSTEMS[:2], items=2, extra=extra)
    with served(study_dir) as client:
        assert client.get("/listen/small/study").json()["closed"] is False
        assert [finish(client, monkeypatch) for _ in range(3)] == ["done", "done", "closed"]
        assert client.get("/listen/small/study").json()["closed"] is True


def test_the_study_closes_at_the_end_of_its_day(tmp_path: Path) -> None:
    extra = "stop_rule: {until: 2020-01-31}"
    with served(prepared_study(tmp_path, systems=SYSTEMS[:2], items=2, extra=extra)) as client:
        reply = Rater(client).post("session", {"consent": True})
        assert (reply.status_code, reply.json()["error"]) == (403, "closed")
