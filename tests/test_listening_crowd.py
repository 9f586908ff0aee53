"""Prolific and MTurk: who may begin, one session a person, nothing raw kept, the way back."""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, Request, Route, expect

from listening_test import admin, serve
from listening_test.addresses import HOST_VARIABLE
from listening_test.crowd import invitation
from listening_test.database import reading
from listening_test.export import export
from listening_test.report import write_report
from listening_test.store import Store
from listening_test.study import Study, StudyError, load_study
from listening_test.study_parts import Platform
from tests.browser import chromium, local_page
from tests.listening import SYSTEMS, Clock, Rater, prepared_study, serving, write_study
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


@pytest.mark.parametrize("host", [None, "someone-lab.hf.space"])
def test_the_address_for_raters_is_the_spaces_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str | None,
) -> None:
    if host:
        monkeypatch.setenv(HOST_VARIABLE, host)
    else:
        monkeypatch.delenv(HOST_VARIABLE, raising=False)
    root = f"https://{host}" if host else "http://127.0.0.1:7861"
    monkeypatch.setattr("listening_test.serve.uvicorn.run", lambda *given, **options: None)
    assert serve.main([str(study_of(tmp_path, PROLIFIC))]) == 0
    first, what, link, *_ = capsys.readouterr().out.splitlines()
    assert first == f"raters: {root}/listen/small"
    assert what == "Study URL for Prolific:"
    assert link == (
        f"{root}/listen/small?PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}&STUDY_ID={{{{%STUDY_ID%}}}}"
        "&SESSION_ID={{%SESSION_ID%}}"
    )
    # Prolific fills it in; the page then reads from it what the study asks for.
    filled = re.sub(r"\{\{%(\w+)%\}\}", lambda found: found[1].lower(), link)
    assert dict(parse_qsl(urlsplit(filled).query)) == {
        "PROLIFIC_PID": "prolific_pid", "STUDY_ID": "study_id", "SESSION_ID": "session_id",
    }  # fmt: skip


def test_mturk_gets_an_external_question_and_others_the_bare_address() -> None:
    address = "https://someone-lab.hf.space/listen/a&b"
    asked = invitation(Platform(name="mturk"), address)
    question = ElementTree.fromstring(asked.text)
    space = question.tag.removesuffix("ExternalQuestion")
    assert space == (
        "{http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2006-07-14/"
        "ExternalQuestion.xsd}"
    )
    assert [(part.tag, part.text) for part in question] == [
        (f"{space}ExternalURL", address), (f"{space}FrameHeight", "0"),
    ]  # fmt: skip
    assert "https" not in asked.what
    assert "https addresses only" in invitation(Platform(name="mturk"), "http://x").what
    for platform in (None, Platform(name="lab")):
        assert invitation(platform, address).text == address


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
        ("platform: {name: prolific, completed: 'a b'}", "must be 4 to 40 letters"),
        ("platform: {name: fiverr}", "prolific"),
    ],
)
def test_a_platform_that_cannot_be_is_told(tmp_path: Path, platform: str, says: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml line \d+: platform") as caught:
        load_study(write_study(tmp_path, extra=platform))
    assert says in str(caught.value)


FAILED = "failed_check: CFAILED7"
BACK = "https://app.prolific.com/submissions/complete?cc="


def with_traps(folder: Path, failed: str, forgiven: int | None) -> Path:
    """A study for Prolific with two traps; `failed` goes to the end of its platform."""
    traps = ", ".join(
        f"{{id: trap-{n}, files: [{SYSTEMS[0]}/text-0.wav], answer: {n}}}" for n in (1, 2)
    )
    platform = f"{PROLIFIC[:-1]}{failed and ', '}{failed}}}"
    rule = "" if forgiven is None else f"exclusion: {{trap_errors: {forgiven}}}\n"
    return study_of(folder, platform, f"{rule}traps: [{traps}]")


def to_the_end(client: TestClient, study_dir: Path, wrong: int, clock: Clock) -> Any:
    """The last trial's answer and the end of a session that gets so many traps wrong."""
    rater, reply = start(client, ids(uuid.uuid4().hex))
    state = reply.json()
    with closing(reading(study_dir / "data" / "ratings.sqlite3")) as db:
        kept = db.execute("SELECT trials FROM sessions ORDER BY rowid DESC").fetchone()[0]
    trials = json.loads(kept)
    while state["state"] != "done":
        assert "code" not in state
        assert "back" not in state
        trial = trials[state["trial_index"] - 1]
        rater.fetch(state)
        clock.wait(1)
        score = 4
        if trial["trial_type"] == "trap":
            score, wrong = (5 if wrong > 0 else trial["answer"]), wrong - 1
        last = rater.body(state, score, listened_ms=440)
        state = rater.post("rating", last).json()["next"]
    return rater, last, state


@pytest.mark.parametrize(
    ("failed", "forgiven", "codes"),
    [
        (FAILED, None, ["CDONE123", "CFAILED7", "CFAILED7"]),
        (FAILED, 1, ["CDONE123", "CDONE123", "CFAILED7"]),
        ("", None, ["CDONE123", "CDONE123", "CDONE123"]),
    ],
)
def test_who_gets_too_many_traps_wrong_gets_that_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failed: str,
    forgiven: int | None,
    codes: list[str],
) -> None:
    clock = Clock()
    monkeypatch.setattr("listening_test.calls.time", clock)
    study_dir = with_traps(tmp_path, failed, forgiven)
    with served(study_dir) as client:
        for wrong, code in enumerate(codes):
            rater, last, state = to_the_end(client, study_dir, wrong, clock)
            assert (state["code"], state["back"]) == (code, BACK + code)
            assert rater.trial() == state  # and so it stays
            assert rater.post("rating", last).json()["next"] == state
    export(study_dir, tmp_path / "out")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.csv"))
    assert not [code for code in ("CDONE123", "CFAILED7") if code.encode() in kept]
    write_report(tmp_path / "out", tmp_path / "report")
    with zipfile.ZipFile(tmp_path / "report" / "bundle.zip") as bundle:
        record = bundle.read("study.json").decode()
    assert "withheld" in record
    assert "CFAILED7" not in record


def test_no_code_comes_before_the_last_row_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("listening_test.calls.time", clock)
    study_dir = with_traps(tmp_path, FAILED, None)
    commit, refusing = Store._commit, [False]

    def full(store: Store, jobs: Any) -> None:
        if refusing[0]:
            raise sqlite3.OperationalError("database or disk is full")
        commit(store, jobs)

    monkeypatch.setattr(Store, "_commit", full)
    with served(study_dir) as client:
        rater, reply = start(client, ids("p"))
        state = reply.json()
        for _ in range(6):
            rater.fetch(state)
            clock.wait(1)
            state = rater.post("rating", rater.body(state, 5, listened_ms=440)).json()["next"]
        rater.fetch(state)
        clock.wait(1)
        last, refusing[0] = rater.body(state, 5, listened_ms=440), True
        reply = rater.post("rating", last)
        assert (reply.status_code, reply.json()["error"]) == (503, "not_saved")
        assert "CFAILED7" not in reply.text
        refusing[0] = False
        assert rater.trial() == state
        assert rater.post("rating", last).json()["next"]["code"] == "CFAILED7"


@pytest.mark.parametrize(
    ("last", "line", "says"),
    [
        ("failed_check: CDONE123", 4, "is the code of `completed:` too"),
        ("failed_check: CSCREEN9", 4, "is the code of `screened_out:` too"),
        ("failed_check: CFAILED7", 0, "the study has none; add `traps:`"),
        ("failed_check: x", 4, "must be 4 to 40 letters"),
        ("failed: CFAILED7", 4, "known keys: name, completed, screened_out, failed_check"),
    ],
)
def test_a_code_that_nobody_could_get_is_told_with_its_line(
    tmp_path: Path, last: str, line: int, says: str
) -> None:
    codes = ["name: prolific", "completed: CDONE123", "screened_out: CSCREEN9", last]
    study = write_study(tmp_path, extra="\n  ".join(["platform:", *codes]))
    number = study.read_text().splitlines().index("platform:") + 1 + line
    with pytest.raises(StudyError, match=rf"study\.yaml line {number}: platform.*{says}"):
        load_study(study)


def test_a_code_for_more_wrong_traps_than_there_are_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="would never be given: `trap_errors: 2` forgives"):
        with_traps(tmp_path, FAILED, 2)


def test_a_study_without_the_new_code_keeps_its_hash() -> None:
    content = {
        "id": "old", "title": "T", "consent": "C", "instructions": "I",
        "items": [{"id": "x"}, {"id": "y"}],
        "systems": [{"name": "a", "folder": "a"}, {"name": "b", "folder": "b"}],
        "platform": {"name": "prolific", "completed": "CDONE123", "screened_out": "CSCREEN9"},
    }  # fmt: skip
    # As version 0.1.0 gave it, before there was such a code.
    old = "bfa77d9a43f023c2bb107f337075a7bec170bf0bd04479c816e3921004c268a3"
    assert Study.model_validate(content).sha256 == old
    trap = {"id": "t", "files": ["t.wav"], "answer": 1}
    study = Study.model_validate({**content, "traps": [trap]})
    content["platform"]["failed_check"] = "CFAILED7"  # type: ignore[index]
    assert Study.model_validate({**content, "traps": [trap]}).sha256 != study.sha256


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
            assert page.locator("#code").inner_text() == "CDONE123"
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
