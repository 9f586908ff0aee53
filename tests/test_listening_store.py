"""The store and the rules of a session: nothing lost, nothing doubled, nothing out of turn."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listening_test import enrolment, shadow, trials
from listening_test.columns import RATING_COLUMNS, cell, clean_text, csv_text, uncell
from listening_test.design import session_order
from listening_test.enrolment import Refused
from listening_test.methods import questions
from listening_test.prepared import PreparedStudy, Stimulus
from listening_test.rows import Answer, Heard
from listening_test.store import NotSaved, Store, StoreMismatch
from tests.listening import Rater, free_port, prepared_study, start_server


def tiny_study(items: int = 3, arms: int = 2) -> PreparedStudy:
    """A study without sound: clips of 0.1 s."""
    stimuli = [Stimulus("practice", "p", 0, 0.1, "practice", 0)]
    stimuli += [
        Stimulus(f"s{item}{arm}", f"i{item}", arm, 0.1, "rating", arm)
        for item in range(items)
        for arm in range(arms)
    ]
    return PreparedStudy(
        study_id="tiny", config_sha256="0" * 64, title="", method="acr",
        questions=questions("acr", "naturalness"), consent="", instructions="", language="en",
        seed=1, arms=arms, reference_arm=None, items_per_rater=items, planned_sessions=4,
        repeats=0, null_pairs=0, stimuli=tuple(stimuli), checks=(),
    )  # fmt: skip


def opened(folder: Path) -> Store:
    return Store(folder, "tiny", "0" * 64)


# One possible answer of each method, to every question or clip.
ANSWERS: dict[str, tuple[int | str, ...]] = {
    "acr": (3,), "dcr": (3,), "ccr": (0,), "ab": ("a",), "abx": ("a",), "mushra": (50, 60, 70),
    "p835": (3, 3, 3),
}  # fmt: skip


class Clock:
    """A store driven by hand, at a time set by hand."""

    def __init__(self, store: Store, study: PreparedStudy) -> None:
        self.store, self.study, self.now = store, study, 1_000_000.0
        self.listened_ms = round(1000 * study.stimuli[0].duration_s)
        self.ids: dict[str, str] = {}

    def start(self, key: str) -> dict[str, Any]:
        self.store.run(
            lambda db: enrolment.start_session(db, self.study, key, self.ids, self.now)
        ).result()
        return self.trial(key)

    def trial(self, key: str) -> dict[str, Any]:
        return self.store.run(
            lambda db: trials.current_trial(db, self.study, key, self.now)
        ).result()

    def serve(self, token: str) -> str:
        return self.store.run(lambda db: trials.serve_clip(db, token, self.now)).result()

    def rate(self, key: str, state: dict[str, Any], rating_id: str, **more: Any) -> dict[str, Any]:
        clips = more.pop("clips", state.get("clips", [""]))
        listened_ms = more.pop("listened_ms", self.listened_ms)
        claim: dict[str, Any] = {
            "rating_id": rating_id, "clips": tuple(Heard(clip, 1, listened_ms) for clip in clips),
            "trial_index": state.get("trial_index", 99), "answers": ANSWERS[self.study.method],
            "rt_ms": 900,
            "first_play_to_submit_ms": 500, "hidden_ms": 0, "changed_n": 0,
            "comment": "", "client_utc": "", "ui_lang": "en", **more,
        }  # fmt: skip
        answer = Answer(**claim)
        return self.store.run(
            lambda db: trials.save_rating(db, self.study, key, answer, self.now)
        ).result()

    def finish(self, key: str, n_trials: int | None = None) -> dict[str, Any]:
        """Rate to the end, or only so many trials after the practice."""
        state = self.trial(key)
        while state["state"] != "done" and not (
            state["state"] == "trial" and state["number"] - 1 == n_trials
        ):
            for clip in state["clips"]:
                self.serve(clip)
            self.now += 1
            state = self.rate(key, state, f"{key}-{state['trial_index']}")
        return state


@pytest.fixture
def clock(tmp_path: Path) -> Any:
    store = opened(tmp_path)
    yield Clock(store, tiny_study())
    store.close()


def mended(store: Store) -> bool:
    """Whether the CSV is as it should be within some seconds, after as many tries as it takes."""
    deadline = time.monotonic() + 10
    while not store.settle(1) and time.monotonic() < deadline:
        pass
    return store.settle(0)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "ratings.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_session_leaves_one_row_a_trial_in_the_csv_at_once(clock: Clock, tmp_path: Path) -> None:
    state = clock.start("key")
    assert (state["state"], state["number"], state["total"]) == ("practice", 1, 1)
    clock.serve(state["clips"][0])
    clock.now += 0.2
    state = clock.rate("key", state, "r1", comment="clear", answers=(4,))
    assert (state["state"], state["number"], state["total"]) == ("trial", 1, 6)
    (row,) = rows(tmp_path)
    assert list(row) == list(RATING_COLUMNS)
    assert (row["score"], row["label_shown"], row["trial_type"]) == ("4", "Good", "practice")
    assert (row["stimulus_id"], row["comment"], row["status"]) == ("practice", "clear", "use")
    assert row["server_utc"] == "1970-01-12T13:46:40.200+00:00"
    done = clock.finish("key")
    assert len(rows(tmp_path)) == 7
    assert len(done["code"]) == 8
    heard = [row["stimulus_id"] for row in rows(tmp_path)[1:]]
    expected = session_order(3, 2, 3, 1, 0)
    assert heard == [f"s{item}{arm}" for item, arm in expected]
    assert clock.trial("key") == done


def test_a_retry_is_acknowledged_and_stored_once(clock: Clock, tmp_path: Path) -> None:
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    first = clock.rate("key", state, "r1")
    assert clock.rate("key", state, "r1") == first
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"trial_index": 1}, "out_of_order"),  # rated already
        ({"trial_index": 3}, "out_of_order"),
        ({"clips": ["another"]}, "foreign_clip"),
        ({"rating_id": "used", "trial_index": 1, "answers": (5,)}, "key_reused"),
        ({"listened_ms": 0}, "not_heard"),
        ({"listened_ms": 10_000}, "not_heard"),  # more than there was time for
    ],
)
def test_what_breaks_the_rules_is_refused_and_not_stored(
    clock: Clock, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    state = clock.rate("key", state, "used")
    clock.serve(state["clips"][0])
    clock.now += 1
    # A slack of 150 ms would swallow the whole of a 100 ms clip.
    clock.study = tiny_study_with_duration(0.5)
    claim = {"rating_id": "new", "listened_ms": 500, **change}
    with pytest.raises(Refused) as refusal:
        clock.rate("key", state, **claim)
    assert refusal.value.code == code
    assert len(rows(tmp_path)) == 1


def tiny_study_with_duration(seconds: float) -> PreparedStudy:
    study = tiny_study()
    return replace(study, stimuli=tuple(replace(s, duration_s=seconds) for s in study.stimuli))


def test_rating_before_the_clip_can_have_been_heard_is_refused(clock: Clock) -> None:
    state = clock.start("key")
    with pytest.raises(Refused, match="whole clip"):  # never served
        clock.rate("key", state, "r")
    clock.serve(state["clips"][0])
    clock.now += 0.09
    with pytest.raises(Refused, match="whole clip"):  # 90 of 100 ms ago
        clock.rate("key", state, "r")
    clock.now += 0.02
    assert clock.rate("key", state, "r")["state"] == "trial"


def test_one_rater_cannot_use_anothers_clip_or_session(clock: Clock) -> None:
    mine, theirs = clock.start("me"), clock.start("them")
    for state in (mine, theirs):
        clock.serve(state["clips"][0])
    clock.now += 1
    with pytest.raises(Refused) as refusal:
        clock.rate("me", {**mine, "clips": theirs["clips"]}, "r")
    assert refusal.value.code == "foreign_clip"
    with pytest.raises(Refused) as refusal:
        clock.rate("nobody", mine, "r")
    assert refusal.value.code == "no_session"


def test_a_token_dies_with_its_trial(clock: Clock) -> None:
    state = clock.start("key")
    assert clock.trial("key")["clips"] == state["clips"]  # a reload keeps it
    clock.serve(state["clips"][0])
    clock.now += 1
    clock.rate("key", state, "r")
    with pytest.raises(Refused) as refusal:
        clock.serve(state["clips"][0])
    assert refusal.value.status == 404


def test_a_reopened_store_goes_on_at_the_very_trial(tmp_path: Path) -> None:
    store = opened(tmp_path)
    clock = Clock(store, tiny_study())
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    state = clock.rate("key", state, "r1")
    clock.serve(state["clips"][0])
    store.close()
    (tmp_path / "ratings.csv").write_text("half a row, as a crash leaves it")
    clock.store = opened(tmp_path)
    assert clock.trial("key") == state
    assert [row["rating_id"] for row in rows(tmp_path)] == ["r1"]
    clock.now += 1
    assert clock.rate("key", state, "r2")["number"] == 2  # the serving was remembered too
    clock.store.close()


def test_rows_of_the_design_are_filled_in_turn_and_refilled(clock: Clock) -> None:
    def rows_of_design() -> dict[str, int]:
        found = clock.store.run(
            lambda db: db.execute("SELECT rater_id, design_row FROM sessions").fetchall()
        ).result()
        return {row[0]: row[1] for row in found}

    for key in ("a", "b", "c"):
        clock.start(key)
    assert sorted(rows_of_design().values()) == [0, 1, 2]
    clock.finish("a")
    clock.start("b")  # asking again takes no second place
    assert len(rows_of_design()) == 3
    clock.now += enrolment.IDLE_S + 1  # b and c are gone; a is complete
    clock.start("d")
    clock.start("e")
    clock.start("f")
    assert Counter(rows_of_design().values()) == {0: 1, 1: 2, 2: 2, 3: 1}


def test_the_least_filled_of_the_dropped_lists_goes_to_the_next_rater(clock: Clock) -> None:
    for key, n_trials in (("a", 3), ("b", 1), ("c", 2), ("d", None)):
        clock.start(key)
        clock.finish(key, n_trials)
    clock.now += enrolment.IDLE_S + 1
    for key in ("e", "f", "g", "h"):
        clock.start(key)
    found = clock.store.run(
        lambda db: db.execute("SELECT design_row FROM sessions ORDER BY rowid").fetchall()
    ).result()
    assert [row for (row,) in found] == [0, 1, 2, 3, 1, 2, 0, 4]


def test_another_study_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(StoreMismatch, match="another version"):
        Store(tmp_path, "tiny", "1" * 64)


def test_a_failing_operation_undoes_itself_and_nothing_else(tmp_path: Path) -> None:
    store = opened(tmp_path)
    gate = threading.Event()

    def wait(db: sqlite3.Connection) -> None:
        gate.wait(5)

    def put(name: str) -> Any:
        return lambda db: db.execute("INSERT INTO meta VALUES (?, 'x')", (name,)).rowcount

    def put_and_fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO meta VALUES ('bad', 'x')")
        raise Refused(400, "no", "no")

    store.run(wait)
    futures = [store.run(put("one")), store.run(put_and_fail), store.run(put("two"))]
    gate.set()
    assert futures[0].result(5) == futures[2].result(5) == 1
    with pytest.raises(Refused):
        futures[1].result(5)
    names = store.run(lambda db: [r[0] for r in db.execute("SELECT name FROM meta")]).result(5)
    assert {"one", "two"} <= set(names)
    assert "bad" not in names
    store.close()


def test_a_full_disk_is_told_and_later_ratings_are_kept(clock: Clock, tmp_path: Path) -> None:
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    pages = clock.store.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0]).result()
    clock.store.run(lambda db: db.execute(f"PRAGMA max_page_count={pages}")).result()
    with pytest.raises(NotSaved, match="full"):
        clock.rate("key", state, "r1", comment="x" * 60_000)
    assert rows(tmp_path) == []
    clock.store.run(lambda db: db.execute("PRAGMA max_page_count=100000")).result()
    assert clock.rate("key", state, "r1", comment="x")["state"] == "trial"
    assert len(rows(tmp_path)) == 1


def test_a_csv_that_was_moved_or_blocked_is_rebuilt(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "RETRY_S", 0.05)
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    (tmp_path / "ratings.csv").unlink()
    (tmp_path / "ratings.csv").mkdir()  # as bad as it gets: cannot be written at all
    state = clock.rate("key", state, "r1")  # acknowledged all the same: SQLite has it
    assert not clock.store.settle(5)
    assert clock.store.csv_error
    (tmp_path / "ratings.csv").rmdir()
    clock.serve(state["clips"][0])
    clock.now += 1
    clock.rate("key", state, "r2")
    assert mended(clock.store)
    assert clock.store.csv_error is None
    assert [row["rating_id"] for row in rows(tmp_path)] == ["r1", "r2"]


@given(st.text())
def test_any_comment_is_stored_as_one_harmless_cell(text: str) -> None:
    safe = clean_text(text + "\ud800")
    line = csv_text([{"comment": safe}], ("comment", "score"), header=False)
    line.encode("utf-8")
    ((stored, score),) = csv.reader(line.splitlines())
    assert len(line.splitlines()) == 1
    assert score == ""
    assert not stored.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert uncell(stored) == safe


def test_cells_keep_numbers_and_disarm_formulas() -> None:
    assert cell(-1) == "-1"
    assert cell(0.25) == "0.25"
    assert cell(None) == ""
    assert cell('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert clean_text("a\x00b\r\nc\x1b[31m") == "ab  c[31m"


@pytest.mark.parametrize(
    ("crowd", "items", "deaths", "least"),
    [(12, 4, 7, 5), pytest.param(25, 13, 40, 15, marks=pytest.mark.long)],
    ids=["156 ratings", "1000 ratings"],
)
def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(
    tmp_path: Path, crowd: int, items: int, deaths: int, least: int
) -> None:
    """The server dies hard, again and again, while raters keep on and retry."""
    study_dir = prepared_study(tmp_path, items=items, seconds=0.42)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    acknowledged: list[str] = []
    finished: list[str] = []

    def insist(call: Any) -> httpx.Response:
        while True:
            try:
                reply = call()
            except httpx.HTTPError:
                time.sleep(0.05)
            else:
                assert reply.status_code < 500, reply.text
                return reply

    def session(number: int) -> None:
        with httpx.Client(base_url=url, timeout=5) as client:
            rater = Rater(client)
            state = insist(lambda: rater.post("session", {"consent": True})).json()
            while state["state"] != "done":
                (clip,) = state["clips"]
                insist(lambda clip=clip: client.get(f"{rater.base}/clip/{clip}"))
                time.sleep(0.45)
                body = rater.body(state, 1 + number % 5, listened_ms=430)
                reply = insist(lambda body=body: rater.post("rating", body))
                assert reply.status_code == 200, reply.text
                acknowledged.append(reply.json()["saved"])
                state = reply.json()["next"]
            finished.append(state["code"])

    process = start_server(study_dir, port)
    raters = [threading.Thread(target=session, args=(n,), daemon=True) for n in range(crowd)]
    for thread in raters:
        thread.start()
    rng, kills, deadline = random.Random(4), 0, time.monotonic() + 60 + 6 * deaths
    while any(thread.is_alive() for thread in raters) and time.monotonic() < deadline:
        if kills < deaths:
            time.sleep(rng.uniform(0.1, 1.2))
            process.kill()
            process.wait()
            kills += 1
            process = start_server(study_dir, port)
        else:
            time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(finished) == crowd
    assert kills >= least
    database = sqlite3.connect(study_dir / "data" / "ratings.sqlite3")
    stored = [row[0] for row in database.execute("SELECT rating_id FROM ratings ORDER BY seq")]
    database.close()
    assert len(stored) == len(set(stored)) == crowd * (1 + items * 3)
    assert sorted(acknowledged) == sorted(stored)
    Store(study_dir / "data", *_identity(study_dir)).close()  # a start rebuilds the file
    assert [row["rating_id"] for row in rows(study_dir / "data")] == stored


def _identity(study_dir: Path) -> tuple[str, str]:
    design = json.loads((study_dir / "serve" / "design.json").read_text(encoding="utf-8"))
    return design["study_id"], design["config_sha256"]


def test_a_folder_that_cannot_hold_a_store_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(NotSaved, match="cannot keep ratings"):
        opened(tmp_path / "data")


def test_a_clock_set_back_refuses_nobody_for_long(clock: Clock) -> None:
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now -= 3600
    with pytest.raises(Refused, match="whole clip"):
        clock.rate("key", state, "r")
    clock.serve(state["clips"][0])  # the page loads the clip again
    with pytest.raises(Refused, match="whole clip"):  # and it must be heard again
        clock.rate("key", state, "r")
    clock.now += 0.2
    assert clock.rate("key", state, "r")["state"] == "trial"


def test_a_request_cut_off_while_it_waits_is_dropped_and_the_writer_lives_on(
    tmp_path: Path,
) -> None:
    store, gate, ran = opened(tmp_path), threading.Event(), []
    first = store.run(lambda db: gate.wait(5))
    time.sleep(0.05)  # the writer is at work on the first
    cancelled = store.run(lambda db: ran.append("cancelled"))
    kept = store.run(lambda db: ran.append("kept"))
    assert cancelled.cancel()
    assert not first.cancel()  # too late: it is under way, and its caller's answer is set
    gate.set()
    kept.result(5)
    assert first.result(5)
    assert ran == ["kept"]
    assert store.run(lambda db: "alive").result(5) == "alive"
    store.close()


def test_a_defect_of_the_store_itself_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr("listening_test.store.rows_after", lambda db, seq: [][0])
        with pytest.raises(NotSaved):
            store.run(lambda db: db.execute("INSERT INTO meta VALUES ('lost', 'x')")).result(5)
    names = store.run(lambda db: [r[0] for r in db.execute("SELECT name FROM meta")]).result(5)
    assert "lost" not in names
    store.close()


def test_two_processes_on_one_folder_write_each_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Clock(opened(tmp_path), tiny_study()), Clock(opened(tmp_path), tiny_study())
    first, second = one.start("a"), two.start("b")
    for clock, state in ((one, first), (two, second)):
        clock.serve(state["clips"][0])
        clock.now += 1
    real, asked, appended = one.store._last_seq, threading.Event(), []

    def slow() -> int:
        found = real()
        asked.set()
        time.sleep(0.3)  # enough for the other to commit, if it were its turn
        return found

    monkeypatch.setattr(one.store, "_last_seq", slow)
    monkeypatch.setattr(one.store._shadow, "follow", lambda new, left: appended.extend(new))
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(one.rate, "a", first, "r1")
        assert asked.wait(5)
        two.rate("b", second, "r2")
        mine.result(10)
    assert [row["rating_id"] for row in appended] == ["r1"]
    one.store.close()
    two.store.close()
