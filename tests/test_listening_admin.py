"""The operator's side: the secret, progress and alarms, closing a study, results after that."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, expect

import app
from listening_test import admin, enrolment
from listening_test.admin import overview, server_alarms
from listening_test.export import exported_frame
from listening_test.gate import SECRET_VARIABLE, WINDOW_S, WRONG_IN_ALL, WRONG_PER_ADDRESS, Gate
from listening_test.hosting import Studies
from listening_test.results import show_results
from listening_test.ui import admin as admin_page
from listening_test.ui import public as ui
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, Rater, prepared_study
from tests.test_listening_methods import served, study_of, take
from tests.test_listening_screening import answer_screen
from tests.tiny import tiny_lm

SECRET = "a long secret of the operator's"
NOBODY = dict.fromkeys(
    ("complete", "at work", "gone", "screened out", "left out by hand", "internal"), 0
)  # fmt: skip
ASKER = admin_page.Asker("198.51.100.1", "http://lab.example:7860")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    return Gate()


def test_only_the_whole_secret_opens(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.refusal(SECRET, "a") is None
    for n, given in enumerate((SECRET[:-1], SECRET + " ", SECRET.upper(), "é\ud800")):
        assert gate.refusal(given, f"address-{n}") == "That is not the secret."
    assert gate.refusal("", "a") == "Type the secret first."
    assert gate.exists()
    for value in ("", None):
        if value is None:
            monkeypatch.delenv(SECRET_VARIABLE)
        else:
            monkeypatch.setenv(SECRET_VARIABLE, value)
        assert not gate.exists()
        assert "no secret is set" in str(gate.refusal("", "a"))
        assert "no secret is set" in str(gate.refusal(SECRET, "a"))


def test_the_secret_is_compared_in_constant_time(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("listening_test.gate.hmac.compare_digest", note)
    gate.refusal("short", "a")
    gate.refusal(SECRET, "a")
    assert len(compared) == 2
    assert len({len(part) for pair in compared for part in pair}) == 1


def test_guessing_is_slowed_down_and_logged_without_the_guess(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    gate = Gate(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for n in range(WRONG_PER_ADDRESS):
            assert gate.refusal(f"guess-{n}", "guesser") == "That is not the secret."
    assert len(caplog.records) == WRONG_PER_ADDRESS
    assert "guesser" in caplog.text
    assert "guess-" not in caplog.text
    assert SECRET not in caplog.text
    assert "Too many wrong secrets" in str(gate.refusal(SECRET, "guesser"))
    assert gate.refusal(SECRET, "operator") is None
    now[0] = WINDOW_S + 1
    assert gate.refusal(SECRET, "guesser") is None
    assert gate.wrong == 0
    for n in range(WRONG_IN_ALL):  # from as many addresses as they like
        assert gate.refusal("x", f"address-{n}") == "That is not the secret."
    assert "Too many wrong secrets" in str(gate.refusal("x", "another"))
    assert gate.wrong == WRONG_IN_ALL


def counted_by_hand(study_dir: Path, method: str) -> dict[tuple[str, str], int]:
    """Answered trials by text and condition, from the exported rows, one after the other."""
    frame, _ = exported_frame(study_dir)
    trials_seen, cells = set(), Counter()
    for row in frame.to_dict("records"):
        if row["trial_type"] not in ("rating", "null_pair"):
            continue
        where = row["system"]
        if method in ("ccr", "ab"):
            where = " – ".join(sorted((row["system"], row["system_b"]), key=SYSTEMS.index))
        seen = (row["session_id"], row["trial_index"], where)
        if seen not in trials_seen:
            trials_seen.add(seen)
            cells[row["item_id"], where] += 1
    return dict(cells)


@pytest.mark.parametrize("method", ["acr", "dcr", "ab", "mushra", "p835"])
def test_cells_count_every_answered_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    study_dir = study_of(tmp_path, method)
    with served(study_dir) as client:
        for number in range(2):
            take(client, monkeypatch, number)
        Rater(client).start()
        seen = overview(study_dir, trials_now(study_dir))
    table = {
        (row["text"], name): n for row in seen.cells for name, n in row.items() if name != "text"
    }
    by_hand = counted_by_hand(study_dir, method)
    assert {place: n for place, n in table.items() if n} == by_hand
    assert set(table.values()) == {2}  # nobody missed a cell
    assert len(table) == 3 * {"acr": 3, "p835": 3, "dcr": 2, "ab": 3, "mushra": 4}[method]
    assert seen.sessions == NOBODY | {"complete": 2, "at work": 1}
    assert len(seen.raters) == 3
    assert seen.wanted == 8
    assert seen.drop_out == "Nobody dropped out."


def trials_now(study_dir: Path) -> float:
    """A moment at which the last of the sessions is still at work."""
    from listening_test.export import sessions_frame

    return float(pd.to_datetime(sessions_frame(study_dir)["last_seen_utc"]).max().timestamp())


def test_a_study_whose_last_day_is_over_is_called_closed_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "stop_rule: {until: 2200-01-31}"
    study_dir = prepared_study(tmp_path, items=3, systems=SYSTEMS[:2], seconds=0.42, extra=extra)
    with served(study_dir) as client:
        take(client, monkeypatch, step=1)
    end = pd.Timestamp("2200-02-01", tz="UTC").timestamp()
    assert overview(study_dir, end - 1).closed_utc is None
    seen = overview(study_dir, end)
    assert seen.closed_utc == "2200-02-01T00:00:00.000+00:00"
    assert "Closed since 2200-02-01" in seen.summary


def test_who_left_and_who_is_left_out_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "exclusion: {same_answer_share: 1, incomplete_sessions: true, correlation_below: -0.9}"
    study_dir = prepared_study(tmp_path, items=3, systems=SYSTEMS[:2], seconds=0.42, extra=rules)
    with served(study_dir) as client:
        take(client, monkeypatch, step=0)  # the same answer throughout
        take(client, monkeypatch, step=1)
        Rater(client).start()
        now = trials_now(study_dir) + enrolment.IDLE_S + 1
        seen = overview(study_dir, now, ("the copy is late",))
    assert seen.sessions == NOBODY | {"complete": 2, "gone": 1}
    assert seen.drop_out == "Drop-out 33%: 1 left, half of them by trial 0 of 7."
    reasons = sorted((row["state"], row["left out by"]) for row in seen.raters)
    assert reasons == [("complete", ""), ("complete", "same answer share"), ("gone", "")]
    assert {row["rule"]: (row["raters"], row["ratings"]) for row in seen.excluded} == {
        "incomplete session": (0, 0), "same answer share": (1, 6), "correlation below": (0, 0),
    }  # fmt: skip
    assert seen.alarms == ["the copy is late"]
    assert not [name for name in ("MOS", "mean", "score") if name in json.dumps(seen.raters)]


def test_a_gate_that_turns_away_too_many_raises_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = prepared_study(
        tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42,
        extra="screening: {headphones: woods, on_fail: screen_out}",
    )  # fmt: skip
    with served(study_dir) as client:
        for _ in range(4):
            answer_screen(client, monkeypatch, study_dir, wrong=6)
        assert overview(study_dir, time.time()).alarms == []
        answer_screen(client, monkeypatch, study_dir, wrong=6)
        seen = overview(study_dir, time.time())
    assert seen.sessions["screened out"] == 5
    (alarm,) = seen.alarms
    assert alarm.startswith("The headphone check failed 5 of 5 raters.")
    assert {row["headphones"] for row in seen.raters} == {"failed"}


def test_too_many_left_out_or_gone_and_a_full_study_raise_alarms() -> None:
    sessions = pd.DataFrame(
        {"session_id": list("abcde"), "state": "complete", "headphones_passed": None}
    )
    judged = pd.DataFrame(
        {
            "session_id": list("abcde"), "rater_id": list("abcde"), "trial_type": "rating",
            "status": ["exclude", "exclude", "use", "use", "use"], "status_reason": "trap errors",
        }
    )  # fmt: skip
    counts = {"complete": 5, "gone": 5, "at work": 0, "screened out": 0}
    left_out, gone = admin._rater_alarms(sessions, counts, judged)
    assert left_out.startswith("The exclusion rules leave out 2 of 5 raters")
    assert gone.startswith("5 of 10 raters left before the end.")
    judged.loc[1, "status"] = "use"
    assert admin._rater_alarms(sessions, {**counts, "gone": 3}, judged) == []


def test_the_servers_own_alarms(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted: Any = SimpleNamespace(store=SimpleNamespace(save_error=None, csv_error=None), copy=None)
    assert server_alarms(hosted, gate) == ()
    hosted.store.csv_error = "ratings.csv is behind the database: full"
    gate.refusal("wrong", "a")
    monkeypatch.setenv(SECRET_VARIABLE, "short")
    behind, wrong, short = server_alarms(hosted, gate)
    assert behind == hosted.store.csv_error
    assert wrong == "Wrong secrets in the last 5 minutes: 1."
    assert "short enough to be guessed" in short


def closed(study_dir: Path) -> None:
    assert admin.main([str(study_dir), "--close"]) == 0


def test_a_closed_study_takes_nobody_new_and_lets_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42)
    with served(study_dir) as client:
        begun, late = Rater(client), Rater(client)
        begun.start()
        assert client.get("/listen/small/study").json()["closed"] is False
        closed(study_dir)  # from another process than the server's, as it were
        first = capsys.readouterr().out
        assert "closed since" in first
        assert client.get("/listen/small/study").json()["closed"] is True
        reply = late.post("session", {"consent": True})
        assert (reply.status_code, reply.json()["error"]) == (403, "closed")
        monkeypatch.setattr(Rater, "start", lambda self: self.trial())
        monkeypatch.setattr("tests.test_listening_methods.Rater", lambda client: begun)
        take(client, monkeypatch)
        assert begun.trial()["state"] == "done"
        closed(study_dir)  # again: the first time counts
        assert capsys.readouterr().out.splitlines()[0] == first.splitlines()[0]
    assert admin.main([str(tmp_path)]) == 2
    assert "no key/stimuli.csv" in capsys.readouterr().err


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Studies, TestClient]]:
    """A study that two raters have taken; the tests below close it, the last ones in the file."""
    from fastapi import FastAPI

    from listening_test.server import attach

    study_dir = prepared_study(
        tmp_path_factory.mktemp("run"), items=2, systems=SYSTEMS[:2], seconds=0.42
    )
    studies = Studies()
    studies.open(study_dir)
    fast = FastAPI()
    attach(fast, studies)
    with TestClient(fast) as client, pytest.MonkeyPatch.context() as patch:
        for number in range(2):
            take(client, patch, number)
        yield study_dir, studies, client
    studies.close()


def rater_of(studies: Studies) -> str:
    hosted = studies.get("small")
    assert hosted is not None
    return hosted.store.read(lambda db: db.execute("SELECT rater_id FROM sessions").fetchone()[0])


def shown(found: tuple[Any, ...]) -> bool:
    return bool(found[-1]["visible"])


def test_every_handler_asks_for_the_secret(running: Any, gate: Gate) -> None:
    _, studies, _ = running
    for handler in (
        lambda given: admin_page.show_overview(studies, gate, given, ASKER),
        lambda given: admin_page.close_study(studies, gate, given, True, ASKER),
        lambda given: admin_page.decide_on(
            studies, gate, given, rater_of(studies), "Leave out", "why", ASKER
        ),
    ):
        note, alarms, address, *tables, whom, _ = found = handler("wrong")
        assert note == "That is not the secret."
        assert alarms == address == ""
        assert whom["choices"] == []
        assert all(table.empty for table in tables)
        assert not shown(found)
    for handed_out in (admin_page.bundle, admin_page.report_zip):
        other = admin_page.Asker("198.51.100.2", ASKER.root)  # five wrong ones shut an address out
        assert handed_out(studies, gate, "wrong", other) == ("That is not the secret.", "")
    told, data = admin_page.report_zip(studies, gate, SECRET, ASKER)
    assert "shut until you close" in told
    assert data == ""
    (state,) = studies.states()
    assert state.closed_utc is None
    assert state.decisions == 0


def test_the_overview_and_the_bundle_open_with_it(running: Any, gate: Gate) -> None:
    study_dir, studies, _ = running
    found = admin_page.show_overview(studies, gate, SECRET, ASKER)
    note, alarms, address, cells, raters, excluded, decided, whom, _ = found
    assert not decided["visible"]
    assert [rater for _, rater in whom["choices"]] == list(raters["rater"])
    assert shown(found)
    assert "\nhttp://lab.example:7860/listen/small\n" in address
    assert "2 complete" in note
    assert alarms == "No alarms."
    assert list(cells["value"].columns) == ["text", *SYSTEMS[:2]]
    assert cells["label"] == "Ratings of each text, 8 wanted"
    assert len(raters) == 2
    assert excluded.empty  # the file has no rule
    note, data = admin_page.bundle(studies, gate, SECRET, ASKER)
    assert "10 rows" in note
    assert "when you have closed the study" in note
    names, rows = _unpacked(data)
    assert names == ["raters.csv", "ratings.csv", "sessions.csv"]
    assert len(rows) == len(exported_frame(study_dir)[0]) == 10
    assert {row["score"] for row in rows} - {""}
    assert not {"system", "system_b"} & set(rows[0])
    assert {row["score_signed"] for row in rows} == {""}


def _unpacked(data: str) -> tuple[list[str], list[dict[str, str]]]:
    """The names in an export's zip, and the rows of its ratings."""
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(data))) as archive:
        rows = list(csv.DictReader(archive.read("ratings.csv").decode().splitlines()))
        return sorted(archive.namelist()), rows


def test_results_are_shut_to_everyone_until_the_study_is_closed(running: Any, gate: Gate) -> None:
    _, studies, _ = running
    found = show_results(studies)
    assert "shut to everyone until it is closed" in found.note
    assert not found.tables
    assert not found.figures
    assert ui.handed_out(studies, "ratings.csv") == (found.note, "")
    told, *_ = admin_page.close_study(studies, gate, SECRET, False, ASKER)
    assert told.startswith("Tick the box first")
    assert not show_results(studies).tables


@pytest.fixture(scope="module")
def site(running: Any) -> Iterator[tuple[str, Studies]]:
    """The app with a secret, as `app.main` makes it."""
    _, studies, _ = running
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET_VARIABLE, SECRET)
        demo = app.build(tiny_lm(), studies)
        _, address = app.launch(demo, studies, "127.0.0.1")
        yield address.rstrip("/"), studies
        demo.close(verbose=False)


def test_without_a_secret_there_is_no_admin_page(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, studies = site
    assert httpx.get(f"{address}/admin").status_code == 200
    assert SECRET not in httpx.get(f"{address}/config").text
    monkeypatch.delenv(SECRET_VARIABLE)
    demo = app.build(tiny_lm(), studies)
    assert "admin" not in [page[0] for page in demo.pages]
    _, bare = app.launch(demo, studies, "127.0.0.1")
    assert httpx.get(f"{bare.rstrip('/')}/admin").status_code == 404
    demo.close(verbose=False)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_admin_page_in_a_browser(site: Any, browser: Browser, scheme: Any) -> None:
    address, _ = site
    size = {"width": 1280, "height": 900}
    with local_page(browser, color_scheme=scheme, viewport=size) as page:
        page.set_default_timeout(30_000)
        page.goto(f"{address}/admin")
        page.get_by_role("heading", name="Admin").wait_for()
        _clean(page)
        page.get_by_label("Secret").fill("wrong")
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page.locator("#admin-note")).to_contain_text("That is not the secret.")
        expect(page.get_by_text("zebrafish")).to_have_count(0)
        page.get_by_label("Secret").fill(SECRET)
        page.get_by_label("Secret").press("Enter")
        expect(page.locator("#admin-note")).to_contain_text("2 complete")
        expect(page.locator("#admin-alarms")).to_contain_text("Wrong secrets in the last 5 minutes")
        expect(page.get_by_text("zebrafish").first).to_be_visible()
        invited = page.locator("#admin-address")
        expect(invited).to_contain_text("Address for raters")
        expect(invited.locator("code")).to_have_text(f"{address}/listen/small\n")
        _clean(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the export").click()
        assert zipfile.is_zipfile(download.value.path())
        page.goto(f"{address}/results")
        expect(page.get_by_text("shut to everyone until it is closed")).to_be_visible()
        _clean(page)


def _clean(page: Any) -> None:
    # Gradio's own words and fading, while a part comes in.
    expect(page.get_by_text("Loading...")).to_have_count(0)
    expect(page.locator(".pending")).to_have_count(0)
    accessible(page)


@pytest.mark.browser
def test_closing_in_the_browser_opens_the_results(site: Any, browser: Browser) -> None:
    address, studies = site
    with local_page(browser, viewport={"width": 1280, "height": 900}) as page:
        page.set_default_timeout(30_000)
        page.goto(f"{address}/admin")
        page.get_by_label("Secret").fill(SECRET)
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page.locator("#admin-note")).to_contain_text("2 complete")
        page.get_by_role("button", name="Close the study").first.click()  # opens the accordion
        page.get_by_label("I want to close it for good").check()
        page.get_by_role("button", name="Close the study").last.click()
        expect(page.locator("#admin-note")).to_contain_text("The study is closed")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the export").click()
        names, rows = _unpacked(base64.b64encode(Path(download.value.path()).read_bytes()).decode())
        assert {"stimuli.csv", "study.json"} <= set(names)
        assert {row["system"] for row in rows} == set(SYSTEMS[:2])
        page.goto(f"{address}/results")
        # The first to look waits for the analysis.
        expect(page.get_by_text("2 of 8 sessions complete")).to_be_visible(timeout=30_000)
        expect(page.get_by_text("zebrafish").first).to_be_visible()
        page.goto(f"{address}/listen/small")
        expect(page.get_by_text("This study is closed")).to_be_visible()
        expect(page.get_by_role("button", name="I agree")).to_have_count(0)
        page.goto(f"{address}/listen")
        expect(page.get_by_text("it takes no new participants")).to_be_visible()
    (state,) = studies.states()
    assert state.closed_utc


def test_closed_results_are_public_but_comments_are_not(running: Any) -> None:
    study_dir, studies, _ = running
    closed(study_dir)
    found = show_results(studies)
    assert "2 of 8 sessions complete" in found.note
    assert set(found.tables["means"]["system"]) == set(SYSTEMS[:2])
    told, data = ui.handed_out(studies, "ratings.csv")
    assert "comments and questionnaires are left out" in told
    rows = list(csv.DictReader(base64.b64decode(data).decode().splitlines()))
    assert len(rows) == 10
    assert {row["comment"] for row in rows} == {""}
    card = ui._cards(studies.states())
    assert "Closed: it takes no new participants" in card
    with gr.Blocks(analytics_enabled=False) as demo:
        admin_page.admin_page(studies, Gate())
    assert not [name for name in SYSTEMS if name in json.dumps(demo.get_config_file(), default=str)]


def test_a_closed_study_has_a_report(running: Any, gate: Gate) -> None:
    study_dir, studies, _ = running
    closed(study_dir)
    note, data = admin_page.report_zip(studies, gate, SECRET, ASKER)
    assert "Missing in it: " in note
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(data))) as bundle:
        names = {Path(name).name for name in bundle.namelist()}
        assert {"report.html", "report.md", "analysis.json", "ratings.csv"} <= names
        (report,) = (name for name in bundle.namelist() if name.endswith("report.md"))
        assert SYSTEMS[0] in bundle.read(report).decode()
