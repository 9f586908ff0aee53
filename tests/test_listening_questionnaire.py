"""The questionnaire: what a study file may ask, what is kept of the answers, and the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Route, expect

from listening_test.columns import uncell
from listening_test.export import export
from listening_test.prepared import load_prepared
from listening_test.questionnaire import MAX_TEXT, checked
from listening_test.study import StudyError, load_study
from listening_test.study_parts import PersonalQuestion
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, Rater, prepared_study, serving, write_study
from tests.test_listening_methods import served
from tests.test_listening_page import heading, rate

ASKED = """
questionnaire:
  - {id: age, question: How old are you?, choices: ["18-29", "30-49", "50 or more"]}
  - {id: hearing, question: Do you hear normally?, choices: ["yes", "no"]}
  - {id: device, question: Which headphones do you wear?}
"""


def study_of(folder: Path, more: str = "") -> Path:
    return prepared_study(
        folder, items=2, systems=SYSTEMS[:2], seconds=0.42, extra=f"{ASKED}\n{more}"
    )


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{id: age, question: Q, choices: [a]}", "at least 2"),
        ("{id: age, question: Q, choices: [a, a]}", "age lists a choice twice"),
        ("{id: Age, question: Q}", "must be small letters"),
        ("{id: age}", "is missing"),
        ("{id: age, question: Q, preset: a}", "known keys: id, question, choices"),
        ("{id: age, question: Q}, {id: age, question: R}", "age is listed twice"),
    ],
)
def test_a_questionnaire_that_cannot_be_is_told(tmp_path: Path, entry: str, says: str) -> None:
    extra = f"questionnaire: [{entry}]"
    with pytest.raises(StudyError, match=r"study\.yaml line \d+: questionnaire") as caught:
        load_study(write_study(tmp_path, extra=extra))
    assert says in str(caught.value)


def test_the_questions_reach_the_server_and_older_designs_have_none(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path)
    asked = load_prepared(study_dir).questionnaire
    assert [question.id for question in asked] == ["age", "hearing", "device"]
    path = study_dir / "serve" / "design.json"
    design = json.loads(path.read_text(encoding="utf-8"))
    del design["questionnaire"]
    path.write_text(json.dumps(design), encoding="utf-8")
    assert load_prepared(study_dir).questionnaire == ()


QUESTIONS = (
    PersonalQuestion(id="age", question="Q", choices=("a", "b")),
    PersonalQuestion(id="text", question="R"),
)


@given(st.dictionaries(st.sampled_from(["age", "text", "other"]), st.text(max_size=230)))
def test_only_possible_answers_are_kept(answers: dict[str, str]) -> None:
    impossible = "other" in answers or answers.get("age", "") not in ("", "a", "b")
    try:
        kept = checked(QUESTIONS, answers)
    except ValueError:
        assert impossible or len(answers["text"]) > MAX_TEXT
        return
    assert not impossible
    assert kept.get("age", "") == answers.get("age", "")
    assert "" not in kept.values()
    assert len(kept.get("text", "")) <= MAX_TEXT
    assert all(c.isprintable() or c in "\u200c\u200d" for c in kept.get("text", ""))


def test_answers_are_kept_once_with_the_session_and_exported(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path)
    with served(study_dir) as client:
        shown = client.get("/listen/small/study").json()["questionnaire"]
        assert [asked["id"] for asked in shown] == ["age", "hearing", "device"]
        assert "selected" not in json.dumps(shown)
        rater, shy = Rater(client), Rater(client)
        assert rater.start() == shy.start() == {"state": "questionnaire"}
        assert rater.trial() == {"state": "questionnaire"}  # as after a reload
        for wrong in ({"age": "17"}, {"name": "x"}, {"device": "x" * 201}, {"age": 3}, [1]):
            reply = rater.post("questionnaire", {"answers": wrong})
            assert (reply.status_code, reply.json()["error"]) == (422, "bad_request"), wrong
        assert rater.trial() == {"state": "questionnaire"}
        given_answers = {"age": "30-49", "hearing": "", "device": "=HYPERLINK(1)\u0000"}
        reply = rater.post("questionnaire", {"answers": given_answers})
        assert reply.json()["state"] == "practice"
        again = rater.post("questionnaire", {"answers": {"age": "18-29"}})
        assert again.json() == reply.json() == rater.trial()
        assert shy.post("questionnaire", {"answers": {}}).json()["state"] == "practice"
        stranger = Rater(client).post("questionnaire", {"answers": {}})
        assert stranger.json()["error"] == "no_session"
        export(study_dir, tmp_path / "out")
    for name in ("sessions.csv", "raters.csv"):
        first, second = table(tmp_path / "out", name)
        assert (first["about_age"], first["about_hearing"]) == ("30-49", "")
        assert first["about_device"] == "'=HYPERLINK(1)"
        assert uncell(first["about_device"]) == "=HYPERLINK(1)"
        assert second["about_age"] == second["about_device"] == ""
    assert [row["ratings"] for row in table(tmp_path / "out", "raters.csv")] == ["0", "0"]
    assert "about_age" not in (tmp_path / "out" / "ratings.csv").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_of(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def url(study_dir: Path) -> Iterator[str]:
    with serving(study_dir) as address:
        yield address


def kept(study_dir: Path, folder: Path) -> dict[str, str]:
    export(study_dir, folder)
    return table(folder, "sessions.csv")[-1]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_keyboard_through_a_reload_and_an_outage(
    browser: Browser, url: str, study_dir: Path, tmp_path: Path, scheme: Any
) -> None:
    with local_page(browser, color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
        page.set_default_timeout(15_000)
        page.goto(url)
        page.get_by_role("button", name="I agree").click()
        heading(page, "About you")
        page.reload()
        heading(page, "About you")
        expect(page.locator("#about input:checked")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        accessible(page)
        page.locator("h1:visible").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("radio", name="30-49")).to_be_checked()
        hearing = page.get_by_role("group", name="Do you hear normally?")
        hearing.get_by_role("radio", name="no", exact=True).check()
        hearing.get_by_role("radio", name="No answer").check()  # taken back
        page.get_by_label("Which headphones do you wear?").fill("@home 5")

        def lose_the_answer(route: Route) -> None:
            route.fetch()
            route.abort()

        page.route("**/questionnaire", lose_the_answer, times=1)
        page.get_by_role("button", name="Next").click()
        heading(page, "How it works")
        page.reload()
        heading(page, "How it works")  # nothing heard yet: they may not have been read
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        page.reload()
        heading(page, "Clip 1 of 4")
    row = kept(study_dir, tmp_path)
    assert (row["about_age"], row["about_hearing"]) == ("30-49", "")
    assert uncell(row["about_device"]) == "@home 5"


@pytest.mark.browser
@pytest.mark.parametrize(("language", "title"), [("zh", "关于您"), ("ar", "نبذة عنك")])
def test_it_can_be_skipped_in_every_language(
    browser: Browser, tmp_path: Path, language: str, title: str
) -> None:
    study_dir = study_of(tmp_path, f"language: {language}")
    with serving(study_dir) as url, local_page(browser) as page:
        page.set_default_timeout(15_000)
        page.goto(url)
        page.locator("#agree").click()
        heading(page, title)
        accessible(page)
        page.locator("#about-form button").click()
        expect(page.locator("#begin")).to_be_visible()
        page.locator("#withdraw").click()
        accessible(page)
        page.locator("#withdraw-yes").click()
        expect(page.locator("#withdrawn")).to_be_visible()
