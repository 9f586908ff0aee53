"""`ratings.csv`: what the database holds, for people and scripts to read.

The store's writer appends its rows after each commit. Whatever is wrong with the file (a full disk,
a row that was withdrawn, a file that somebody moved) is mended by a thread of its own, in small
steps from the database, so that no rating waits for it: rows that could not be appended are
appended later, and only a file that holds what it should not is written anew.

This module knows nothing of what is in a row, and never writes to the database.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listening_test.columns import RATING_COLUMNS, csv_text
from listening_test.database import reading

Row = dict[str, Any]
log = logging.getLogger(__name__)

# Rows of one step: so few that a rating which waits for the interpreter waits a millisecond.
_STEP_ROWS = 50
_STEP_PAUSE_S = 0.001
# After a failure the next try waits so long, after each further one twice as long.
RETRY_S = 5.0
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class _Mark:
    """The file as it was left: which one it is, its bytes, its last row, its withdrawals."""

    inode: int
    size: int
    seq: int
    withdrawals: int


def withdrawals(db: sqlite3.Connection) -> int:
    """How many sessions were withdrawn: rows that were there are gone when it changes."""
    return int(db.execute("SELECT count(*) FROM withdrawals").fetchone()[0])


def rows_after(db: sqlite3.Connection, seq: int, n: int = -1) -> list[Row]:
    """The next `n` ratings after the one numbered `seq`, all of them by default."""
    found = db.execute("SELECT * FROM ratings WHERE seq > ? ORDER BY seq LIMIT ?", (seq, n))
    return [dict(row) for row in found]


class Shadow:
    """The CSV beside a database.

    Args:
        path: of the CSV; written anew at once, or told in `error` why not.
        database: whose ratings it shows.

    Attributes:
        error: why the file is behind the database; None if it is not.
    """

    def __init__(self, path: Path, database: Path) -> None:
        self.error: str | None = None
        self._path, self._database = path, database
        self._mark: _Mark | None = None
        self._state = threading.Condition()
        self._stale = True
        self._closing = False
        self._failures = 0
        self._tries = 0
        self._due = 0.0
        self._try(pause_s=0.0)
        self._thread = threading.Thread(target=self._work, name="ratings.csv", daemon=True)
        self._thread.start()

    def follow(self, rows: list[Row], withdrawals: Callable[[], int]) -> None:
        """Take in what was just committed; never fails and never waits for the file to be mended.

        Args:
            withdrawals: counts them now; it is asked again when the rows are in the file.
        """
        with self._state:
            if self._stale:
                return  # whoever mends the file reads these rows too
            try:
                if self._is_ours(withdrawals()):
                    self._append(rows)
                    if self._is_ours(withdrawals()):
                        return
            except (OSError, sqlite3.Error) as error:
                self._fail(error)
            self._stale = True
            self._state.notify_all()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until the file is as it should be, or could not be mended; whether it is."""
        with self._state:
            tries = self._tries
            self._state.wait_for(lambda: not self._stale or self._tries > tries, timeout)
            return not self._stale

    def close(self) -> None:
        """End, after a last try if something is to be mended."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join()

    # ---- the file
    def _is_ours(self, withdrawals: int) -> bool:
        """Whether the file is as it was left, and holds nobody who has withdrawn since."""
        mark = self._mark
        if mark is None or mark.withdrawals != withdrawals or not self._path.exists():
            return False
        found = self._path.stat()
        return (found.st_ino, found.st_size) == (mark.inode, mark.size)

    def _append(self, rows: list[Row]) -> None:
        """Add rows to a file that is ours; if that fails it is as it was before."""
        mark = self._mark
        assert mark is not None
        rows = [row for row in rows if row["seq"] > mark.seq]
        if not rows:
            return
        data = csv_text(rows, RATING_COLUMNS, header=False).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                written = file.write(data)
            if written != len(data):
                raise OSError("no room for a whole row")
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, mark.size)
            raise
        seq, size = rows[-1]["seq"], mark.size + len(data)
        self._mark = _Mark(mark.inode, size, seq, mark.withdrawals)

    # ---- mending
    def _work(self) -> None:
        while self._wait():
            self._try(_STEP_PAUSE_S)

    def _wait(self) -> bool:
        """Until there is something to mend; False at the end."""
        with self._state:
            while not self._closing:
                left = self._due - time.monotonic()
                if self._stale and left <= 0:
                    return True
                self._state.wait(left if self._stale else None)
            if not self._stale:
                return False
        self._try(pause_s=0.0)
        return False

    def _try(self, pause_s: float) -> None:
        try:
            with closing(reading(self._database)) as db:
                if not self._catch_up(db, pause_s):
                    self._rewrite(db, pause_s)
        except (OSError, sqlite3.Error) as error:
            with self._state:
                self._fail(error)
                pause = RETRY_S * 2.0 ** min(self._failures, 10)
                self._due = time.monotonic() + min(pause, LONGEST_RETRY_S)
                self._failures += 1
                self._tries += 1
                self._state.notify_all()

    def _catch_up(self, db: sqlite3.Connection, pause_s: float) -> bool:
        """Append what is missing; False if the file must be written anew."""
        while True:
            with self._state:
                if not self._is_ours(withdrawals(db)):
                    return False
                assert self._mark is not None
                rows = rows_after(db, self._mark.seq, _STEP_ROWS)
                self._append(rows)
                if len(rows) < _STEP_ROWS:
                    self._made_good()
                    return True
            time.sleep(pause_s)

    def _rewrite(self, db: sqlite3.Connection, pause_s: float) -> None:
        """Write the file anew, and put it in the old one's place in one step."""
        part = self._path.with_suffix(f".csv.{os.getpid()}.part")
        try:
            while not self._rewritten(db, part, pause_s):
                pass  # somebody withdrew meanwhile: the rows just read are stale
        except BaseException:
            with suppress(OSError):
                part.unlink()  # on a full disk ratings need its room
            raise

    def _rewritten(self, db: sqlite3.Connection, part: Path, pause_s: float) -> bool:
        seq, left = 0, withdrawals(db)
        with open(part, "wb") as file:
            file.write(csv_text([], RATING_COLUMNS).encode())
            for rows in _steps(db):
                seq = rows[-1]["seq"]
                file.write(csv_text(rows, RATING_COLUMNS, header=False).encode())
                time.sleep(pause_s)
            file.flush()
            os.fsync(file.fileno())
            with self._state:  # the writer's rows wait until these are in place
                rows = rows_after(db, seq)
                seq = rows[-1]["seq"] if rows else seq
                file.write(csv_text(rows, RATING_COLUMNS, header=False).encode())
                file.close()
                if withdrawals(db) != left:
                    return False
                os.replace(part, self._path)
                found = self._path.stat()
                self._mark = _Mark(found.st_ino, found.st_size, seq, left)
                self._made_good()
        return True

    # ---- how it stands
    def _made_good(self) -> None:
        self.error = None
        self._stale = False
        self._failures, self._due = 0, 0.0
        self._tries += 1
        self._state.notify_all()

    def _fail(self, error: Exception) -> None:
        self.error = f"ratings.csv is behind the database: {error}"
        log.error(self.error)


def _steps(db: sqlite3.Connection) -> Iterator[list[Row]]:
    """All ratings, some at a time, so that a reader holds up nobody for long."""
    seq = 0
    while rows := rows_after(db, seq, _STEP_ROWS):
        yield rows
        seq = rows[-1]["seq"]
