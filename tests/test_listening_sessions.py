"""sessions.csv: what is known of each session, in classes; and databases of earlier versions."""

from __future__ import annotations

import csv
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listening_test import admin
from listening_test.client import Client, client_of
from listening_test.columns import SESSION_COLUMNS
from listening_test.database import _LATER, looking
from listening_test.export import export, exported_frame, sessions_frame
from listening_test.prepared import load_prepared
from listening_test.stimuli import prepare
from listening_test.store import Store
from listening_test.study import load_study
from listening_test.wording import CONSENT
from tests.browser import chromium, local_page
from tests.listening import SYSTEMS, Clock, Rater, prepared_study, serving, write_study
from tests.test_listening_methods import served
from tests.test_listening_page import heading, rate

MOZILLA = "Mozilla/5.0"
WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
BLINK = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0"
PHONE = f"{MOZILLA} (Linux; Android 10; K) {BLINK} Mobile Safari/537.36"


@pytest.mark.parametrize(
    ("said", "device", "browser"),
    [
        (f"{MOZILLA} (Windows NT 10.0; Win64; x64) {BLINK} Safari/537.36", "computer", "chrome"),
        (
            f"{MOZILLA} (Windows NT 10.0; Win64; x64) {BLINK} Safari/537.36 Edg/151.0.0.0",
            "computer", "edge",
        ),
        (f"{MOZILLA} (X11; Linux x86_64; rv:149.0) Gecko/20100101 Firefox/149.0",
         "computer", "firefox"),
        (f"{MOZILLA} (X11; CrOS x86_64 14541.0.0) {BLINK} Safari/537.36", "computer", "chrome"),
        (f"{MOZILLA} (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/19.0 Safari/605.1.15",
         "computer", "safari"),
        (f"{MOZILLA} (Macintosh; Intel Mac OS X 10_15_7) {BLINK} Safari/537.36 OPR/130.0.0.0",
         "computer", "opera"),
        (PHONE, "phone", "chrome"),
        (f"{MOZILLA} (Linux; Android 10; K) {BLINK} Safari/537.36", "tablet", "chrome"),
        (
            f"{MOZILLA} (Linux; Android 15; SM-S931B) AppleWebKit/537.36 (KHTML, like Gecko) "
            "SamsungBrowser/29.0 Chrome/136.0.0.0 Mobile Safari/537.36",
            "phone", "samsung",
        ),
        (f"{MOZILLA} (Android 16; Mobile; rv:149.0) Gecko/149.0 Firefox/149.0", "phone", "firefox"),
        (
            f"{MOZILLA} (iPhone; CPU iPhone OS 18_6 like Mac OS X) {WEBKIT} Version/26.0 "
            "Mobile/15E148 Safari/604.1",
            "phone", "safari",
        ),
        (
            f"{MOZILLA} (iPhone; CPU iPhone OS 18_6 like Mac OS X) {WEBKIT} CriOS/151.0.0.0 "
            "Mobile/15E148 Safari/604.1",
            "phone", "chrome",
        ),
        (
            f"{MOZILLA} (iPad; CPU OS 18_6 like Mac OS X) {WEBKIT} FxiOS/149.0 Mobile/15E148 "
            "Safari/604.1",
            "tablet", "firefox",
        ),
        ("python-requests/2.32", "other", "other"),
        ("", "other", "other"),
    ],
)  # fmt: skip
def test_a_browsers_words_become_two_classes(said: str, device: str, browser: str) -> None:
    assert client_of(said, False, "en") == Client(device, browser, "en")


def test_an_ipad_that_calls_itself_a_mac_is_a_tablet() -> None:
    said = f"{MOZILLA} (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/19.0 Safari/605.1.15"
    assert client_of(said, True, "").device == "tablet"
    assert client_of(said.replace("Macintosh", "Windows NT 10.0"), True, "").device == "computer"


WORDS = st.sampled_from(
    [MOZILLA, "iPad", "Android", "Mobile", "Chrome/1", "Safari/1", "Edg/", "X11"]
)


@given(st.lists(WORDS | st.text(max_size=20), max_size=60).map(" ".join), st.booleans())
def test_nothing_but_classes_is_kept_of_any_words(said: str, touch: bool) -> None:
    found = client_of(said, touch, "")
    assert found.device in {"phone", "tablet", "computer", "other"}
    assert found.browser in {"edge", "opera", "samsung", "firefox", "chrome", "safari", "other"}


def table(study_dir: Path, out: Path) -> list[dict[str, str]]:
    export(study_dir, out)
    with open(out / "sessions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


CHECKED = f"""\
language: en
languages: {{zh: {{title: 听}}}}
platform: {{name: prolific, completed: CDONE123}}
screening: {{headphones: woods, on_fail: screen_out}}
traps: [{{id: trap, files: [{SYSTEMS[0]}/text-0.wav], answer: 2}}]"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("listening_test.calls.time", found)
    return found


def session(rater: Rater, clock: Clock, study_dir: Path, right: bool, **begun: object) -> None:
    """A session from its beginning to its end; nothing is answered right but on purpose."""
    ids = {"PROLIFIC_PID": rater.headers["X-Session"], "SESSION_ID": "submission-1"}
    state = rater.post("session", {"consent": True, "ids": ids, **begun}).json()
    screens = [a for screen in load_prepared(study_dir).screens for _, a in screen.trials]
    while state["state"] not in ("done", "screened_out"):
        rater.fetch(state)
        clock.wait(6)
        score = 5
        if state["state"] == "screen":
            answer = screens[state["trial_index"] - 1]
            score = answer if right else answer % 3 + 1
        body = rater.body(state, score, listened_ms=5000)
        reply = rater.post("rating", body)
        assert reply.status_code == 200, reply.text
        state = reply.json()["next"]


def test_sessions_tell_when_with_what_and_how_they_ended(tmp_path: Path, clock: Clock) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42, extra=CHECKED)
    with served(study_dir) as client:
        passes, fails, stays = Rater(client), Rater(client), Rater(client)
        for rater in (passes, fails, stays):
            rater.headers["User-Agent"] = f"{PHONE} Very/Telling"
        session(passes, clock, study_dir, right=True, ui_lang="zh-Hans")
        session(fails, clock, study_dir, right=False, ui_lang="zh")
        ids = {"PROLIFIC_PID": "stays", "SESSION_ID": "submission-1"}
        stays.post("session", {"consent": True, "ids": ids})
        rows = table(study_dir, tmp_path / "out")
        ratings, _ = exported_frame(study_dir)
        refused = stays.post("session", {"consent": True, "touch": "yes"})
        assert refused.status_code == 422
    assert list(rows[0]) == list(SESSION_COLUMNS)
    done, out, begun = rows
    assert [row["state"] for row in rows] == ["complete", "screened_out", "started"]
    assert {(row["device"], row["browser"]) for row in rows} == {("phone", "chrome")}
    # `zh-Hans` is no language of this study: its page was in the first one.
    assert [row["ui_lang"] for row in rows] == ["en", "zh", "en"]
    for row in rows:
        read = CONSENT[row["ui_lang"]]
        assert row["consent_version"] == hashlib.sha256(read.encode()).hexdigest()[:12]
        assert row["consent_utc"] <= row["started_utc"]
    own = ratings[ratings["session_id"] == done["session_id"]]
    assert done["ended_utc"] == own["server_utc"].max()
    assert done["started_utc"] < own["server_utc"].min()
    assert out["ended_utc"] > out["started_utc"]
    assert begun["ended_utc"] == ""
    assert [row["traps_wrong"] for row in rows] == ["1", "0", "0"]
    assert [row["payment_class"] for row in rows] == ["failed_check", "screened_out", ""]
    assert [len(row["completion_code_id"]) for row in rows] == [8, 0, 0]
    assert len({row["submission_id"] for row in rows}) == 3  # the person is in it
    kept = b"".join(path.read_bytes() for path in (study_dir / "data").iterdir())
    kept += b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    for raw in (b"Telling", b"Android", b"submission-1", passes.headers["X-Session"].encode()):
        assert raw not in kept


def test_a_submitted_code_can_be_found_by_its_id(tmp_path: Path, clock: Clock) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42)
    with served(study_dir) as client:
        rater = Rater(client)
        session(rater, clock, study_dir, right=True)
        code = rater.trial()["code"]
        (row,) = table(study_dir, tmp_path / "out")
    assert row["completion_code_id"] == hashlib.sha256(code.encode()).hexdigest()[:8]
    assert row["payment_class"] == "completed"


@pytest.mark.browser
def test_a_browser_tells_its_language_and_whether_it_is_touched(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "source", items=2, systems=SYSTEMS[:2], seconds=0.42,
        extra="languages: {zh: {title: 听}}",
    )  # fmt: skip
    prepare(load_study(study), tmp_path / "study")
    mac = f"{MOZILLA} (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/19.0 Safari/605.1.15"
    with (
        serving(tmp_path / "study") as url,
        chromium() as browser,
        local_page(browser, locale="zh-CN", has_touch=True, user_agent=mac) as page,
    ):
        page.goto(url)
        page.locator("#agree").click()
        page.locator("#begin").click()
        heading(page, "练习录音")
        rate(page, "3")
        heading(page, "录音 1／4")
    (row,) = sessions_frame(tmp_path / "study").to_dict("records")
    assert (row["device"], row["browser"], row["ui_lang"]) == ("tablet", "safari", "zh")


def made_old(database: Path) -> None:
    """The file as the first versions left it: columns and tables that came later are not there."""
    with closing(sqlite3.connect(database)) as db:
        for name in _LATER:
            db.execute(f"ALTER TABLE sessions DROP COLUMN {name}")
        for name in ("profiles", "withdrawals"):
            db.execute(f"DROP TABLE {name}")
        db.execute("PRAGMA user_version = 0")
        db.execute("PRAGMA journal_mode = DELETE")


def test_an_old_database_is_exported_as_it_is_and_opens(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42)
    with served(study_dir) as client:
        rater = Rater(client)
        session(rater, clock, study_dir, right=True)
    database = study_dir / "data" / "ratings.sqlite3"
    made_old(database)
    before = {path: path.read_bytes() for path in study_dir.rglob("*") if path.is_file()}
    (row,) = table(study_dir, tmp_path / "old")
    assert (row["state"], row["device"], row["consent_version"]) == ("complete", "", "")
    assert row["ended_utc"] == exported_frame(study_dir)[0]["server_utc"].max()
    assert row["payment_class"] == "completed"
    assert admin.main([str(study_dir)]) == 0  # asks for withdrawals, which it knows nothing of
    assert "1 complete; 0 withdrawn" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in study_dir.rglob("*") if path.is_file()}
    assert after == before
    study = load_prepared(study_dir)
    store = Store(study_dir / "data", study.study_id, study.config_sha256)
    store.close()
    assert table(study_dir, tmp_path / "new") == [row]
    with served(study_dir) as client:  # and goes on
        assert Rater(client).start()["state"] == "practice"
        assert rater.headers["X-Session"]
        rater.client = client
        assert rater.trial()["state"] == "done"


def test_looking_at_an_up_to_date_database_copies_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, "tiny", "0" * 64)
    with closing(looking(tmp_path / "ratings.sqlite3")) as db:
        assert db.execute("PRAGMA database_list").fetchone()[2].endswith("ratings.sqlite3")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM meta")
    store.close()
