"""Where ratings live: SQLite is the truth, `ratings.csv` beside it is its readable shadow.

One writer thread owns the database. Operations queue up, those waiting are run in one
transaction (group commit), and their futures resolve only after the commit is on disk (WAL,
synchronous=FULL): what was acknowledged survives a `kill -9` or a power cut. The CSV is appended
after each commit, and mended beside the writer (`shadow.py`). Whoever only looks reads on a
connection of their own (`Store.read`), and no rating waits for it.

The store knows files and transactions, and no table but for its own identity. The rules of a
session (order, listening, replays) are in `trials.py`, which passes functions to `Store.run`.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from listening_test.database import BUSY_S, reading, writing
from listening_test.shadow import Shadow, rows_after, withdrawals

T = TypeVar("T")
_Job = tuple[Callable[..., Any], Future[Any]]
log = logging.getLogger(__name__)

# Enough to share one disk flush among a crowd, few enough that nobody waits long for it.
_MAX_BATCH = 256
# A reader holds the log for as long as it reads: then it is tried again.
_LOG_AGAIN_S = 1.0


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
        self._path = folder / "ratings.sqlite3"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = writing(self._path)
            self._claim(study_id, config_sha256)
        except (OSError, sqlite3.Error) as error:
            raise NotSaved(
                f"{folder} cannot keep ratings ({error}). It must be a folder on a local disk "
                "with room, that this user may write to."
            ) from error
        self._shadow = Shadow(self.csv_path, self._path)
        self._left = withdrawals(self._db)
        self._log_tells = False
        self._refused: str | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"store-{study_id}", daemon=True)
        self._thread.start()

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

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """What `operation` finds in the database as it was last committed.

        On a connection of its own, in the calling thread: the writer neither does it nor waits.

        Raises:
            NotSaved: the database cannot be read.
        """
        try:
            with closing(reading(self._path)) as db:
                db.execute("BEGIN")  # one moment for all that the operation asks
                return operation(db)
        except sqlite3.Error as error:
            raise NotSaved(f"{self._path} cannot be read ({error})") from error

    @property
    def csv_error(self) -> str | None:
        """Why `ratings.csv` is behind the database; None if it is not."""
        return self._shadow.error

    @property
    def save_error(self) -> str | None:
        """Why the last that was to be saved is not on disk; None after a success."""
        return self._refused

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until `ratings.csv` holds what the database does, or could not be mended."""
        return self._shadow.settle(timeout)

    def close(self) -> None:
        """Finish what is queued and close the database."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._shadow.close()
            self._db.close()

    def _work(self) -> None:
        running = True
        while running:
            batch = [self._next()]
            with suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
            running = None not in batch
            # A request that was cut off takes its operation along, unless it has begun.
            jobs = [job for job in batch if job and job[1].set_running_or_notify_cancel()]
            if jobs:
                self._commit_or_undo(jobs)

    def _next(self) -> _Job | None:
        """The next job; until one comes, what was withdrawn is got out of the log."""
        while self._log_tells:
            with suppress(queue.Empty):
                return self._queue.get(timeout=_LOG_AGAIN_S)
            self._log_tells = not self._shorten_log()
        return self._queue.get()

    def _commit_or_undo(self, jobs: list[_Job]) -> None:
        """Whatever goes wrong, every caller is told and the only writer lives on."""
        try:
            self._commit(jobs)
        except Exception as error:
            log.error("ratings not saved: %s", error, exc_info=not isinstance(error, sqlite3.Error))
            self._refused = f"The disk takes no ratings ({error}). Raters' pages try again."
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            # On a full disk the log may take room that the database does not need.
            self._shorten_log()
            for _, future in jobs:
                if not future.done():
                    future.set_exception(NotSaved(str(error)))

    def _commit(self, jobs: list[_Job]) -> None:
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        changes = self._db.total_changes
        self._db.execute("BEGIN IMMEDIATE")
        before = self._last_seq()  # inside: another process may write to the same database
        for operation, future in jobs:
            outcomes.append((future, *self._attempt(operation)))
        new = rows_after(self._db, before)
        self._db.execute("COMMIT")
        if self._db.total_changes > changes:  # one that only looked proves nothing
            self._refused = None
        left, self._left = self._left, withdrawals(self._db)
        if self._left != left:
            # Until the log is empty it still tells what was withdrawn.
            self._log_tells = not self._shorten_log()
        if new or self._left != left:
            self._shadow.follow(new, lambda: withdrawals(self._db))
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

    def _shorten_log(self) -> bool:
        """Bring the log's pages into the database and empty it; False while a reader is in it."""
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_S)}")
        return not busy
