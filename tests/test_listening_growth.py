"""What a rating costs does not grow with the ratings there are: counted, not timed."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import listening_growth
from listening_test import changes, enrolment, shadow, trials
from listening_test.columns import RATING_COLUMNS
from listening_test.hosting import Studies
from listening_test.store import Store
from tests.copies import Server
from tests.listening import prepared_study
from tests.test_listening_store import Clock, mended, opened, rows, tiny_study


def add_ratings(db: sqlite3.Connection, n: int, session: str = "old") -> None:
    """Rows as many sessions left them, put in at once."""
    columns = ", ".join(RATING_COLUMNS)
    marks = ", ".join("?" for _ in RATING_COLUMNS)
    first = db.execute("SELECT count(*) FROM ratings").fetchone()[0]
    for number in range(first, first + n):
        row: dict[str, Any] = {
            "rating_id": f"{session}-{number}", "session_id": f"{session}-{number // 20}",
            "trial_index": number % 20, "trial_type": "rating", "dimension": "naturalness",
            "stimulus_id": f"s{number % 20}", "score": 3, "status": "use", "comment": "x" * 50,
        }  # fmt: skip
        values = [row.get(name) for name in RATING_COLUMNS]
        db.execute(f"INSERT INTO ratings ({columns}) VALUES ({marks})", values)


def work(store: Store, call: Callable[[], Any]) -> int:
    """Steps of SQLite's machine on the writer's connection while `call` runs, in tens."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store.run(lambda db: db.set_progress_handler(count, 10)).result()
    call()
    store.run(lambda db: db.set_progress_handler(None, 10)).result()
    return steps


def one(clock: Clock, key: str, rating_id: str) -> None:
    state = clock.trial(key)
    for clip in state["clips"]:
        clock.serve(clip)
    clock.now += 1
    clock.rate(key, state, rating_id)


def test_the_writer_does_as_much_for_the_first_rating_as_for_the_ten_thousandth(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path)
    clock = Clock(store, tiny_study(items=4))
    clock.start("key")
    one(clock, "key", "r0")
    store.run(lambda db: add_ratings(db, 100)).result()
    few = work(store, lambda: one(clock, "key", "r1"))
    store.run(lambda db: add_ratings(db, 10_000)).result()
    many = work(store, lambda: one(clock, "key", "r2"))
    store.close()
    assert few > 20  # it was counted at all
    assert many < 1.2 * few  # trees get deeper; nothing is read from end to end


def test_counts_and_states_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    studies = Studies()
    hosted = studies.open(prepared_study(tmp_path, seconds=0.42))
    hosted.store.run(lambda db: add_ratings(db, 30)).result()
    gate, held = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        held.set()
        gate.wait(10)

    busy = hosted.store.run(hold)
    assert held.wait(5)
    (state,) = studies.states()
    assert state.ratings == 30
    assert not busy.done()  # the writer was at work all the time
    gate.set()
    busy.result(5)
    studies.close()


def test_taking_all_anew_to_copy_it_reads_nothing_on_the_writers_connection(
    server: Server,
) -> None:
    server.run(lambda db: add_ratings(db, 2000))
    server.copy.cycle()
    few = work(server.store, server.copy.cycle)
    server.run(lambda db: db.execute("DELETE FROM ratings WHERE rating_id = 'old-7'"))
    assert work(server.store, server.copy.cycle) < few + 50  # 2,000 rows were copied again
    assert server.run(changes.waiting) == 0
    kept = server.target.read(server.target.names("tiny/1/"))
    assert sum(data.count(b'"rating_id"') for data in kept.values()) == 1999


def test_a_withdrawal_does_not_hold_up_ratings_while_the_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    clock = Clock(store, tiny_study())
    for key in ("stays", "leaves"):
        clock.start(key)
        one(clock, key, key)
    store.run(lambda db: add_ratings(db, 400)).result()
    gate, inside = threading.Event(), threading.Event()
    whole = shadow._steps

    def slow(db: sqlite3.Connection) -> Any:
        for step in whole(db):
            yield step
            inside.set()
            assert gate.wait(10)

    monkeypatch.setattr(shadow, "_steps", slow)
    store.run(lambda db: trials.withdraw(db, "leaves", clock.now)).result(5)
    assert inside.wait(5)
    for rating_id in ("r1", "r2"):
        one(clock, "stays", rating_id)  # acknowledged while the file is half written
    assert not store.settle(0)
    gate.set()
    assert store.settle(10)
    found = [row["rating_id"] for row in rows(tmp_path)]
    assert found == ["stays", *(f"old-{n}" for n in range(2, 402)), "r1", "r2"]
    store.close()


def test_rows_that_a_full_disk_kept_out_of_the_file_are_added_to_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not written anew: the same file gets the missing rows, in order, once."""
    monkeypatch.setattr(shadow, "RETRY_S", 0.02)
    store = opened(tmp_path)
    clock = Clock(store, tiny_study())
    clock.start("key")
    one(clock, "key", "r0")
    path, anew = tmp_path / "ratings.csv", []
    inode, before = path.stat().st_ino, path.read_bytes()

    class NoRoom(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:30])  # what of a row had room
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shadow.Shadow, "_rewrite", lambda *_: anew.append(1))
    monkeypatch.setattr(shadow, "open", lambda at, mode, **_: NoRoom(at, "ab"), raising=False)
    one(clock, "key", "r1")
    one(clock, "key", "r2")
    assert "No space left" in (store.csv_error or "")
    assert path.read_bytes() == before
    monkeypatch.delattr(shadow, "open")
    assert mended(store)
    assert (store.csv_error, anew) == (None, [])
    assert path.stat().st_ino == inode
    assert [row["rating_id"] for row in rows(tmp_path)] == ["r0", "r1", "r2"]
    store.close()


def test_a_failed_rewriting_leaves_no_part_behind_and_is_not_tried_at_every_rating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    clock = Clock(store, tiny_study())
    clock.start("key")
    tries, real = [], os.fsync

    def full(handle: int) -> None:
        tries.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shadow.os, "fsync", full)
    (tmp_path / "ratings.csv").unlink()
    for number in range(4):
        one(clock, "key", f"r{number}")
    deadline = time.monotonic() + 5
    while not tries and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(tries) == 1
    assert list(tmp_path.glob("*.part")) == []
    monkeypatch.setattr(shadow.os, "fsync", real)
    store.close()  # a last try
    assert [row["rating_id"] for row in rows(tmp_path)] == ["r0", "r1", "r2", "r3"]


def test_the_benchmark_counts_what_it_fills(capsys: pytest.CaptureFixture[str]) -> None:
    assert listening_growth.main(["--ratings", "60", "--timed", "8"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["ratings"] for row in result["rows"]] == [2, 60]
    assert all(0 < row["median_ms"] <= row["p95_ms"] <= row["max_ms"] for row in result["rows"])
    assert enrolment.IDLE_S > 60  # raters of the benchmark are told one second a clip
