"""Prolific and MTurk: who may begin, one session a person, nothing raw kept, the way back."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, Request, Route, expect

from listening_test import admin
from listening_test.export import export
from listening_test.study import StudyError, load_study
from tests.browser import chromium, local_page
from tests.listening import SYSTEMS, Rater, prepared_study, serving, write_study
from tests.test_listening_methods import served, take
from tests.test_listening_page import heading, rate

PROLIFIC = "platform: {name: prolific, completed: CDONE123, screened_out: CSCREEN9}"
MTURK = "platform: {name: mturk}"


def study_of(folder: Path, platform: str, more: str = "") -> Path:
    return prepared_study(
        folder, systems=SYSTEMS[:2], items=2, seconds=0.42, extra=f"{platform}\n{more}"
    )


def ids(person: str, submission: str = "s1") -> dict[str, str]:
    return {"PROLIFIC_PID": person, "STUDY_ID": "study", "SESSION_ID": submission}


def start(client: TestClient, given: dict[str, str]) -> tuple[Rater, Any]:
    rater = Rater(client)
    return rater, rater.post("session", {"consent": True, "ids": given})


def test_only_who_comes_from_the_platform_may_begin(tmp_path: Path) -> None:
    with served(study_of(tmp_path, PROLIFIC)) as client:
        for given in ({}, {"PROLIFIC_PID": "p"}, {"workerId": "w", "assignmentId": "a"}):
            _, reply = start(client, given)
            assert (reply.status_code, reply.json()["error"]) == (403, "not_from_platform")
            assert "Prolific" in reply.json()["message"]
        for given in ({"PROLIFIC_PID": "../x"}, {"a b": "c"}, {"PROLIFIC_PID": "x" * 200}):
            assert start(client, given)[1].json()["error"] == "bad_request"
        assert start(client, ids("p1"))[1].json()["state"] == "practice"
        assert "CDONE" not in client.get("/listen/small/study").text


def test_a_preview_is_no_session_and_open_studies_ask_for_nothing(tmp_path: Path) -> None:
    with served(study_of(tmp_path / "m", MTURK)) as client:
        preview = {"assignmentId": "ASSIGNMENT_ID_NOT_AVAILABLE", "hitId": "h"}
        _, reply = start(client, preview)
        assert "Accept the task" in reply.json()["message"]
        _, reply = start(client, {"workerId": "w", "assignmentId": "a", "hitId": "h"})
        assert reply.status_code == 200
    with served(study_of(tmp_path / "o", "seed: 2")) as client:
        assert start(client, {})[1].status_code == 200


def test_a_person_has_one_session_and_takes_it_to_another_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = study_of(tmp_path, PROLIFIC)
    with served(study_dir) as client:
        first, reply = start(client, ids("alice"))
        rater, again = start(client, ids("alice", "s2"))
        assert again.json() == reply.json()  # the very trial, with the same clip
        assert first.post("rating", first.body(reply.json(), 3)).json()["error"] == "no_session"
        other, _ = start(client, ids("bob"))
        assert other.trial()["clips"] != rater.trial()["clips"]
        monkeypatch.setattr(Rater, "start", lambda self: self.trial())
        monkeypatch.setattr("tests.test_listening_methods.Rater", lambda client: rater)
        take(client, monkeypatch)
        done = rater.trial()
        assert done["back"] == "https://app.prolific.com/submissions/complete?cc=CDONE123"
        _, reply = start(client, ids("alice", "s3"))
        assert (reply.status_code, reply.json()["error"]) == (409, "already_done")
    export(study_dir, tmp_path / "out")
    kept = b"".join(path.read_bytes() for path in (study_dir / "data").iterdir())
    kept += b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"alice" not in kept
    assert b"bob" not in kept
    assert b"prolific" in kept


def test_who_is_screened_out_gets_that_code_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_listening_screening import answer_screen

    screen = "screening: {headphones: woods, on_fail: screen_out}"
    study_dir = study_of(tmp_path, PROLIFIC, screen)
    monkeypatch.setattr(
        Rater, "start", lambda self: self.post("session", {"consent": True, "ids": ids("p")}).json()
    )
    with served(study_dir) as client:
        _, state, _ = answer_screen(client, monkeypatch, study_dir, wrong=6)
    back = "https://app.prolific.com/submissions/complete?cc=CSCREEN9"
    assert state == {"state": "screened_out", "back": back}


@pytest.mark.parametrize(
    ("platform", "says"),
    [
        ("platform: {name: prolific}", "give `completed:`"),
        ("platform: {name: mturk, completed: ABCDE}", "takes no codes"),
        ("platform: {name: lab, screened_out: ABCDE}", "takes no codes"),
        ("platform: {name: prolific, completed: 'a b'}", "pattern"),
        ("platform: {name: fiverr}", "prolific"),
    ],
)
def test_a_platform_that_cannot_be_is_told(tmp_path: Path, platform: str, says: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml line \d+: platform") as caught:
        load_study(write_study(tmp_path, extra=platform))
    assert says in str(caught.value)


def through(page: Page, url: str) -> None:
    """From consent to the last clip."""
    page.goto(url)
    page.get_by_role("button", name="I agree").click()
    page.get_by_role("button", name="Begin").click()
    heading(page, "Practice clip")
    rate(page, "3")
    for number in range(1, 5):
        heading(page, f"Clip {number} of 4")
        rate(page, "3")
    heading(page, "Thank you")


@pytest.mark.browser
def test_prolific_in_a_browser(tmp_path: Path) -> None:
    with serving(study_of(tmp_path, PROLIFIC)) as url, chromium() as browser:
        with local_page(browser) as page:
            through(page, f"{url}?PROLIFIC_PID=p1&STUDY_ID=s&SESSION_ID=x")
            assert page.url == url  # no id stays in the address
            back = page.get_by_role("link", name="Back to Prolific")
            assert back.get_attribute("href") == (
                "https://app.prolific.com/submissions/complete?cc=CDONE123"
            )
        with local_page(browser) as page:
            page.goto(url)
            page.get_by_role("button", name="I agree").click()
            page.get_by_role("button", name="Begin").click()
            expect(page.get_by_text("open it by the link there")).to_be_visible()


@pytest.mark.browser
@pytest.mark.parametrize("honest", [True, False])
def test_mturk_in_a_browser(tmp_path: Path, honest: bool) -> None:
    sent: list[Request] = []

    def caught(route: Route) -> None:
        sent.append(route.request)
        route.fulfill(status=200, body="thanks")

    host = "https://workersandbox.mturk.com" if honest else "https://evil.example"
    with (
        serving(study_of(tmp_path, MTURK)) as url,
        chromium() as browser,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.route(re.compile("^https://"), caught)
        worker = uuid.uuid4().hex
        through(page, f"{url}?workerId={worker}&assignmentId=a1&hitId=h&turkSubmitTo={host}")
        submit = page.get_by_role("button", name="Submit to MTurk")
        if not honest:
            expect(submit).to_have_count(0)
            return
        code = page.locator("#code").inner_text()
        submit.click()
        expect(page.get_by_text("thanks")).to_be_visible()
    (request,) = sent
    assert request.url == f"{host}/mturk/externalSubmit"
    assert request.post_data == f"assignmentId=a1&code={code}"
    assert worker not in json.dumps(request.headers)


def test_a_person_who_has_begun_may_go_on_in_a_closed_study_and_nobody_else_begins(
    tmp_path: Path,
) -> None:
    study_dir = study_of(tmp_path, PROLIFIC)
    with served(study_dir) as client:
        _, reply = start(client, ids("alice"))
        assert admin.main([str(study_dir), "--close"]) == 0
        _, again = start(client, ids("alice"))
        assert again.json() == reply.json()
        _, late = start(client, ids("bob"))
        assert (late.status_code, late.json()["error"]) == (403, "closed")
