"""Where ratings live: SQLite is the truth, `ratings.csv` beside it is its readable shadow.

One writer thread owns the database. Operations queue up, those waiting are run in one
transaction (group commit), and their futures resolve only after the commit is on disk (WAL,
synchronous=FULL): what was acknowledged survives a `kill -9` or a power cut. The CSV is appended
after each commit and rebuilt at start and after a withdrawal, so it never holds a row that the
database lacks.

The store knows tables and files. The rules of a session (order, listening, replays) are in
`trials.py`, which passes functions to `Store.run`.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from listening_test.columns import RATING_COLUMNS, csv_text

T = TypeVar("T")
_Job = tuple[Callable[..., Any], Future[Any]]
log = logging.getLogger(__name__)

# Enough to share one disk flush among a crowd, few enough that nobody waits long for it.
_MAX_BATCH = 256

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY,
    key_sha256 TEXT NOT NULL UNIQUE,
    rater_id TEXT NOT NULL,
    platform TEXT NOT NULL,
    design_row INTEGER NOT NULL,
    trials TEXT NOT NULL,
    n_done INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'started',
    consent_utc TEXT NOT NULL,
    last_seen REAL NOT NULL,
    completion_code TEXT,
    person TEXT UNIQUE,
    submission TEXT,
    headphones TEXT,
    headphones_right INTEGER,
    headphones_passed INTEGER,
    environment_right INTEGER,
    environment_passed INTEGER,
    volume_utc TEXT
);
CREATE INDEX IF NOT EXISTS sessions_by_row ON sessions (design_row, state, last_seen);
CREATE TABLE IF NOT EXISTS clips (
    token TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    trial_index INTEGER NOT NULL,
    place INTEGER NOT NULL,
    stimulus_id TEXT NOT NULL,
    first_served REAL,
    UNIQUE (session_id, trial_index, place)
);
CREATE TABLE IF NOT EXISTS screens (
    rating_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    trial_index INTEGER NOT NULL,
    answer INTEGER NOT NULL,
    passed INTEGER NOT NULL,
    server_utc TEXT NOT NULL,
    UNIQUE (session_id, trial_index)
);
CREATE TABLE IF NOT EXISTS profiles (
    session_id TEXT PRIMARY KEY,
    answers TEXT NOT NULL,
    server_utc TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS withdrawals (
    note_id TEXT PRIMARY KEY,
    day TEXT NOT NULL,
    ratings INTEGER NOT NULL,
    asked_by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS ratings (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    {", ".join(f'"{name}"' for name in RATING_COLUMNS)},
    UNIQUE (rating_id),
    UNIQUE (session_id, trial_index, dimension, stimulus_id)
);
"""


_LATER = {"environment_right": "INTEGER", "environment_passed": "INTEGER", "volume_utc": "TEXT"}


class NotSaved(RuntimeError):
    """The disk refused (full, read-only, gone): nothing of this operation was kept."""


class StoreMismatch(ValueError):
    """The folder holds the ratings of another study or of another version of this one."""


class Store:
    """Ratings of one study in one folder.

    Args:
        folder: made if absent; holds `ratings.sqlite3` and `ratings.csv`.
        study_id, config_sha256: the study these ratings belong to.

    Raises:
        StoreMismatch: the folder holds another study's ratings.
        NotSaved: the folder cannot be written.
    """

    def __init__(self, folder: Path, study_id: str, config_sha256: str) -> None:
        self.csv_path = folder / "ratings.csv"
        self.csv_error: str | None = None
        self._csv_inode: int | None = None
        self._csv_withdrawals = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = self._open(folder / "ratings.sqlite3")
            self._claim(study_id, config_sha256)
            self._rebuild_csv()
        except (OSError, sqlite3.Error) as error:
            raise NotSaved(
                f"{folder} cannot keep ratings ({error}). It must be a folder on a local disk "
                "with room, that this user may write to."
            ) from error
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"store-{study_id}", daemon=True)
        self._thread.start()

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        # What a rater withdraws is overwritten, not only marked as free.
        db.execute("PRAGMA secure_delete=ON")
        db.executescript(SCHEMA)
        known = {row["name"] for row in db.execute("PRAGMA table_info(sessions)")}
        for name, kind in _LATER.items():
            if name not in known:  # made by an earlier version
                db.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")
        return db

    def _claim(self, study_id: str, config_sha256: str) -> None:
        identity = f"{study_id} {config_sha256}"
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('study', ?)", (identity,))
        # Salt of the rater ids: made once, so that a rater keeps one id through the study.
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (os.urandom(32).hex(),))
        found = self._db.execute("SELECT value FROM meta WHERE name = 'study'").fetchone()[0]
        if found != identity:
            self._db.close()
            raise StoreMismatch(
                f"{self.csv_path.parent} holds ratings of another version of the study. "
                "Prepare the changed study into a new folder, so that versions never mix."
            )

    def run(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue an operation; its future resolves when its effects are durable.

        An exception of the operation undoes its own changes only, and reaches the caller.
        A failure of the disk undoes the whole batch and reaches its callers as `NotSaved`.
        """
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(NotSaved("the store is closed"))
        else:
            self._queue.put((operation, future))
        return future

    def close(self) -> None:
        """Finish what is queued and close the database."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._db.close()

    def _work(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            with suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
            running = None not in batch
            # A request that was cut off takes its operation along, unless it has begun.
            jobs = [job for job in batch if job and job[1].set_running_or_notify_cancel()]
            if jobs:
                self._commit_or_undo(jobs)

    def _commit_or_undo(self, jobs: list[_Job]) -> None:
        """Whatever goes wrong, every caller is told and the only writer lives on."""
        try:
            self._commit(jobs)
        except Exception as error:
            log.error("ratings not saved: %s", error, exc_info=not isinstance(error, sqlite3.Error))
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            for _, future in jobs:
                if not future.done():
                    future.set_exception(NotSaved(str(error)))

    def _commit(self, jobs: list[_Job]) -> None:
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        self._db.execute("BEGIN IMMEDIATE")
        before = self._last_seq()  # inside: another process may write to the same database
        for operation, future in jobs:
            outcomes.append((future, *self._attempt(operation)))
        new = self._rows_after(before)
        withdrawn = self._withdrawals() != self._csv_withdrawals
        self._db.execute("COMMIT")
        if withdrawn:
            with suppress(sqlite3.Error):  # busy: the log is overwritten a little later
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if new or withdrawn:
            self._append_csv(new)
        for future, result, problem in outcomes:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

    def _attempt(self, operation: Callable[..., Any]) -> tuple[Any, Exception | None]:
        self._db.execute("SAVEPOINT operation")
        try:
            result = operation(self._db)
        except sqlite3.Error:
            raise  # the disk or the database itself: the whole batch fails together
        except Exception as error:
            self._db.execute("ROLLBACK TO operation")
            self._db.execute("RELEASE operation")
            return None, error
        self._db.execute("RELEASE operation")
        return result, None

    def _last_seq(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM ratings").fetchone()[0])

    def _rows_after(self, seq: int) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT * FROM ratings WHERE seq > ? ORDER BY seq", (seq,))
        return [dict(row) for row in rows]

    def _withdrawals(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM withdrawals").fetchone()[0])

    def _rebuild_csv(self) -> None:
        """Write the CSV anew from the database, replacing the file in one step."""
        part = self.csv_path.with_suffix(f".csv.{os.getpid()}.part")
        withdrawals = -1
        # Again if meanwhile another process let somebody withdraw: the rows just read are stale.
        while withdrawals != (withdrawals := self._withdrawals()):
            with open(part, "w", encoding="utf-8", newline="") as file:
                file.write(csv_text(self._rows_after(0), RATING_COLUMNS))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.csv_path)
        self._csv_inode = self.csv_path.stat().st_ino
        self._csv_withdrawals = withdrawals
        self.csv_error = None

    def _append_csv(self, rows: list[dict[str, Any]]) -> None:
        """Bring the CSV up to date; its failure is told, but loses nothing (SQLite has it)."""
        try:
            present = self.csv_path.exists() and self.csv_path.stat().st_ino == self._csv_inode
            if not self.csv_error and present and self._withdrawals() == self._csv_withdrawals:
                with open(self.csv_path, "a", encoding="utf-8", newline="") as file:
                    file.write(csv_text(rows, RATING_COLUMNS, header=False))
                if self._withdrawals() == self._csv_withdrawals:
                    return
            self._rebuild_csv()
        except (OSError, sqlite3.Error) as error:
            self.csv_error = f"ratings.csv is behind the database: {error}"
            log.error(self.csv_error)
