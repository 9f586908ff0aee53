"""Over HTTP and in a real browser: the server's disk is lost, and the page sends again."""

from __future__ import annotations

import csv
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from listening_test.hosting import Hosted, Studies
from listening_test.server import attach
from tests.browser import chromium, local_page
from tests.copies import FakeHub, hub_target
from tests.listening import SYSTEMS, Rater, free_port, prepared_study, start_server
from tests.test_listening_methods import served
from tests.test_listening_page import heading, rate
from tests.test_listening_questionnaire import study_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_study(tmp_path_factory.mktemp("copied"), items=2, systems=SYSTEMS[:2])


@pytest.fixture
def study_dir(prepared: Path, tmp_path: Path) -> Path:
    """A fresh machine: the study, and no data."""
    return Path(shutil.copytree(prepared, tmp_path / "study"))


@contextmanager
def copied(study_dir: Path, hub: FakeHub) -> Iterator[tuple[TestClient, Hosted]]:
    """A server of the study that is killed at the end: no last copy, and its disk is lost."""
    studies = Studies(hub_target(hub))
    hosted = studies.open(study_dir)
    app = FastAPI()
    attach(app, studies)
    with TestClient(app) as client:
        yield client, hosted
    hosted.store.close()
    shutil.rmtree(study_dir / "data")


def rated(rater: Rater, state: dict[str, Any], *answers: int) -> tuple[Any, dict[str, Any]]:
    rater.fetch(state)
    time.sleep(0.51)
    body = rater.body(state, *answers)
    reply = rater.post("rating", body)
    assert reply.status_code == 200, reply.text
    return body, reply.json()


def stored(study_dir: Path) -> list[dict[str, str]]:
    with open(study_dir / "data" / "ratings.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_session_goes_on_over_http_after_the_disk_is_lost(study_dir: Path) -> None:
    hub = FakeHub()
    with copied(study_dir, hub) as (client, hosted):
        rater = Rater(client)
        first, reply = rated(rater, rater.start(), 4)
        hosted.copy.cycle()  # type: ignore[union-attr]
        second, later = rated(rater, reply["next"], 2)
        assert (reply["next"]["safe"], later["next"]["safe"]) == (0, 1)
        third, last = rated(rater, later["next"], 5)
        before = stored(study_dir)
        ticket = last["next"]["ticket"]
    with copied(study_dir, hub) as (client, _):
        rater.client = client
        assert rater.trial()["trial_index"] == 2
        # Out of turn, without its receipt, or altered: not taken.
        for body, code in [
            ({**third, "receipt": last["receipt"]}, "out_of_order"),
            (second, "foreign_clip"),
            ({**second, "answers": [5], "receipt": later["receipt"]}, "foreign_clip"),
            ({**second, "receipt": last["receipt"]}, "foreign_clip"),
            ({**second, "receipt": "no"}, "bad_request"),
        ]:
            assert rater.post("rating", body).json()["error"] == code
        for body, given in ((second, later), (third, last)):
            for _ in range(2):  # a retry of the resending too
                again = rater.post("rating", {**body, "receipt": given["receipt"]})
                assert again.json()["saved"] == body["rating_id"]
        assert rater.trial()["trial_index"] == 4
        assert stored(study_dir) == before
        # Asked with a ticket, the server begins no session but the ticket's.
        stranger = Rater(client)
        for given in (ticket, "AAAA." + "0" * 64):
            asked = stranger.post("session", {"consent": True, "ticket": given})
            assert (asked.status_code, asked.json()["error"]) == (401, "no_session")
        asked = stranger.post("session", {"consent": True, "ticket": "x"})
        assert asked.json()["error"] == "bad_request"
    assert first["rating_id"] == before[0]["rating_id"]


def test_who_withdraws_is_deleted_from_the_copies_at_once(study_dir: Path) -> None:
    hub = FakeHub()
    with copied(study_dir, hub) as (client, hosted):
        assert hosted.copy is not None
        rater = Rater(client)
        body, reply = rated(rater, rater.start(), 4)
        hosted.copy.cycle()
        assert any(body["rating_id"].encode() in data for data in hub.segments.values())
        assert hosted.copy._pause() > 60
        gone = {"confirmed": True, "ticket": reply["next"]["ticket"]}
        assert rater.post("withdraw", gone).json() == {"withdrawn": 1}
        assert hosted.copy._pause() <= 30  # not with the next copy in two minutes
        hosted.copy.cycle()
        for data in hub.segments.values():
            assert f'"rating_id": "{body["rating_id"]}"'.encode() not in data
        assert rater.post("withdraw", gone).json()["error"] == "no_session"
        again = {"consent": True, "ticket": reply["next"]["ticket"]}
        assert rater.post("session", again).json()["error"] == "no_session"
        sent = rater.post("rating", {**body, "receipt": reply["receipt"]})
        assert sent.json()["error"] == "no_session"
    with copied(study_dir, hub) as (client, _):
        rater.client = client
        assert rater.post("session", again).json()["error"] == "no_session"
        assert stored(study_dir) == []


def test_nothing_of_it_shows_where_nothing_is_copied(study_dir: Path) -> None:
    with served(study_dir) as client:
        rater = Rater(client)
        ticket = "AAAA." + "0" * 64
        state = rater.post("session", {"consent": True, "ticket": ticket}).json()
        assert set(state) == {"state", "trial_index", "number", "total", "clips"}
        rater.fetch(state)
        body = {**rater.body(state, 3), "receipt": "1." + "0" * 64}
        assert rater.post("rating", body).json()["error"] == "not_heard"
        _, reply = rated(rater, state, 3)
        assert set(reply) == {"saved", "next"}
        assert "safe" not in reply["next"]


def test_what_the_browser_keeps_names_no_system(study_dir: Path) -> None:
    import base64

    with copied(study_dir, FakeHub()) as (client, hosted):
        rater = Rater(client)
        state = rater.start()
        _, reply = rated(rater, state, 3)
        text = base64.urlsafe_b64decode(state["ticket"].partition(".")[0]).decode()
        text += repr(reply)
        ids = [stimulus.stimulus_id for stimulus in hosted.study.stimuli]
        assert not [name for name in [*SYSTEMS, *ids, "text-"] if name in text]


class Machine:
    """A server process on a disk that can be lost; its bucket outlives it."""

    def __init__(self, study_dir: Path, bucket: Path) -> None:
        self.study_dir, self.bucket, self.port = study_dir, bucket, free_port()
        self.url = f"http://127.0.0.1:{self.port}/listen/small"
        self.process = start_server(study_dir, self.port)

    def lose(self) -> None:
        """kill -9, a new disk, a new process at the same address."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.study_dir / "data")
        self.process = start_server(self.study_dir, self.port)


def answers_about(study_dir: Path) -> list[str]:
    """What raters said of themselves, as the database has it."""
    with closing(sqlite3.connect(study_dir / "data" / "ratings.sqlite3")) as db:
        return [row[0] for row in db.execute("SELECT answers FROM profiles")]


@contextmanager
def machine_of(study_dir: Path, bucket: Path, patch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that copies to `bucket`."""
    bucket.mkdir()
    patch.setenv("LISTENING_TEST_COPY", str(bucket))
    patch.setenv("LISTENING_TEST_KEY", "key of the tests")
    made = Machine(study_dir, bucket)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def machine(study_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine_of(study_dir, tmp_path / "bucket", monkeypatch) as made:
        yield made


def kept(page: Page) -> list[int]:
    return page.evaluate(
        """() => JSON.parse(localStorage.getItem(`listening-test/${location.pathname}/kept`)
          ?? "[]").map((body) => body.trial_index)"""
    )


@pytest.mark.browser
def test_the_page_brings_back_what_a_lost_disk_took(machine: Machine) -> None:
    with chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(20_000)
        page.goto(machine.url)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        for number, digit in enumerate("352", 1):
            rate(page, digit)
            heading(page, f"Clip {number} of 4")
        before = stored(machine.study_dir)
        assert [row["score"] for row in before] == ["3", "5", "2"]
        assert kept(page) == [1, 2, 3]
        # While a clip is being rated: the answer stays in the form, all else comes back.
        page.keyboard.press("Space")
        expect(page.get_by_role("radio").first).to_be_enabled()
        machine.lose()
        assert stored(machine.study_dir) == []
        page.keyboard.press("4")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(
            "The server was restarted. Your answer is still here: play the clip once more, to its "
            "end, and press Next."
        )
        heading(page, "Clip 3 of 4")
        assert stored(machine.study_dir) == before
        expect(page.get_by_role("radio", name="4 Good")).to_be_checked()
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Next")).to_be_enabled()
        page.get_by_role("button", name="Next").click()
        heading(page, "Clip 4 of 4")
        # Between two clips, with a reload.
        machine.lose()
        page.reload()
        heading(page, "Clip 4 of 4")
        assert [row["score"] for row in stored(machine.study_dir)] == ["3", "5", "2", "4"]
        # At the end, while the bucket is away: no code, and it comes by itself.
        away = machine.bucket.with_name("away")
        machine.bucket.rename(away)
        rate(page, "1")
        expect(page.get_by_text("being copied to a second place")).to_be_visible()
        page.reload()
        expect(page.get_by_text("being copied to a second place")).to_be_visible()
        expect(page.locator("#code")).to_be_hidden()
        assert kept(page) == [1, 2, 3, 4, 5]
        away.rename(machine.bucket)
        heading(page, "Thank you")
        code = page.locator("#code").inner_text()
        assert len(code) == 8
        assert kept(page) == []
        rows = stored(machine.study_dir)
        assert [row["score"] for row in rows] == ["3", "5", "2", "4", "1"]
        assert [row["trial_index"] for row in rows] == ["1", "2", "3", "4", "5"]
        machine.lose()
        page.reload()
        heading(page, "Thank you")
        assert page.locator("#code").inner_text() == code
        assert stored(machine.study_dir) == rows


@pytest.mark.browser
def test_a_session_that_cannot_come_back_begins_with_consent(machine: Machine) -> None:
    with chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(20_000)
        page.goto(machine.url)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        for copy in machine.bucket.rglob("*.json*"):  # the salt is gone too: nothing is believed
            copy.unlink()
        machine.lose()
        page.reload()
        expect(page.get_by_role("button", name="I agree")).to_be_visible()
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        assert kept(page) == []


@pytest.mark.browser
def test_who_has_withdrawn_stays_away_in_another_tab_and_after_a_lost_disk(
    machine: Machine,
) -> None:
    with chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(20_000)
        page.goto(machine.url)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        tab = page.context.new_page()
        tab.goto(machine.url)
        heading(tab, "Clip 1 of 4")
        tab.keyboard.press("Space")
        expect(tab.get_by_role("radio").first).to_be_enabled()
        machine.lose()  # nothing was copied: the server knows the session by its ticket only
        page.get_by_role("button", name="Withdraw from the study").click()
        page.get_by_role("button", name="Yes, delete everything").click()
        heading(page, "You have withdrawn")
        tab.keyboard.press("4")
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("button", name="I agree")).to_be_visible()
        kept_keys = "Object.keys(localStorage).filter((k) => !k.endsWith('/keys'))"
        assert page.evaluate(kept_keys) == []
        assert stored(machine.study_dir) == []
        with closing(sqlite3.connect(machine.study_dir / "data" / "ratings.sqlite3")) as db:
            assert db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
            assert db.execute("SELECT count(*) FROM withdrawals").fetchone() == (1,)


@pytest.mark.browser
def test_answers_about_oneself_come_back_with_the_ratings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = study_of(tmp_path)
    with (
        machine_of(study_dir, tmp_path / "bucket", monkeypatch) as machine,
        chromium() as browser,
        local_page(browser) as page,
    ):
        page.set_default_timeout(20_000)
        page.goto(machine.url)
        page.get_by_role("button", name="I agree").click()
        heading(page, "About you")
        page.get_by_label("Which headphones do you wear?").fill("Sennheiser")
        machine.lose()
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#about-saved")).to_have_text("The server was restarted.")
        heading(page, "About you")
        expect(page.get_by_label("Which headphones do you wear?")).to_have_value("Sennheiser")
        page.get_by_role("button", name="Next").click()
        heading(page, "How it works")
        said = answers_about(study_dir)
        assert said == ['{"device": "Sennheiser"}']
        machine.lose()
        page.reload()
        heading(page, "How it works")
        assert answers_about(study_dir) == said
        machine.lose()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        machine.lose()
        page.reload()
        heading(page, "Clip 1 of 4")
        assert answers_about(study_dir) == said
        assert [row["score"] for row in stored(study_dir)] == ["3"]
