"""Who has a session: begun with consent, found by its browser's key, closed with the study.

Every function here takes the open transaction first and runs inside `Store.run`, as those of
`trials.py`, which knows what happens in a session. Times come from the caller (seconds since 1970).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from listening_test import crowd
from listening_test.client import Client
from listening_test.prepared import PreparedStudy
from listening_test.rows import utc
from listening_test.session_plan import session_trials

NOTHING_KNOWN = Client()
# A session untouched for this long frees its place in the design for the next rater. Whoever
# comes back later still goes on: their ratings are kept, and the place is filled twice.
IDLE_S = 30 * 60
# Whom a decision leaves out of the results (`decisions.py`) fills no place of the design.
_COUNTS = "session_id NOT IN (SELECT session_id FROM left_out)"


class Refused(Exception):
    """A request against the rules: nothing was stored. `code` is for the page, text for people.

    `retry_after_s`: when the same request may be made again; 0 where that would change nothing.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def start_session(
    db: sqlite3.Connection,
    study: PreparedStudy,
    key: str,
    ids: dict[str, str],
    now: float,
    rows: Sequence[range] | None = None,
    client: Client = NOTHING_KNOWN,
) -> None:
    """Begin the session of the browser that holds `key`, or do nothing if it has one already.

    It gets a design row that nobody completed or is at work on: rows of raters who quit are filled
    first, the least filled before the others. Where other servers serve the study too, it is one
    of `rows`. Asking twice, as a retry does, takes one place only. A person whom a platform vouches
    for has one session, and takes it along to another browser.

    Raises:
        Refused: the platform's ids (`ids`, from the address) are lacking, the person is done, or
            the study is closed, or there is no row free at this moment. Who has begun may finish
            after that, in another browser too.
    """
    if known(db, key):
        return
    secret = bytes.fromhex(db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0])
    try:
        visitor = crowd.visitor(study.platform, ids, secret)
    except crowd.NotFromPlatform as error:
        raise Refused(403, "not_from_platform", str(error)) from None
    if visitor.person is not None and _moved(db, visitor.person, key, now):
        return
    stop_if_due(db, study, now)
    if closed_utc(db) is not None:
        raise Refused(403, "closed", "This study is closed: it takes no new participants.")
    who = visitor.person or hmac.new(secret, key.encode(), "sha256").hexdigest()
    read = study.texts_in(client.language)
    facts = {
        "session_id": str(uuid.uuid4()), "rater_id": who[:16], "platform": visitor.platform,
        "design_row": _free_row(db, rows, now), "consent_utc": utc(now), "person": visitor.person,
        "submission": visitor.submission, "consent_version": consent_version(read.consent),
        "ui_lang": read.language, "device": client.device, "browser": client.browser,
    }  # fmt: skip
    insert_session(db, study, key, facts, now)


def consent_version(text: str) -> str:
    """Which consent was read: the first digits of its SHA-256."""
    return _digest(text)[:12]


def insert_session(
    db: sqlite3.Connection, study: PreparedStudy, key: str, facts: dict[str, Any], now: float
) -> None:
    """A session at its first trial; its trials follow from `facts["design_row"]`."""
    order = json.dumps([asdict(trial) for trial in session_trials(study, facts["design_row"])])
    row = {**facts, "key_sha256": _digest(key), "trials": order, "last_seen": now}
    db.execute(
        f"INSERT INTO sessions ({', '.join(row)}) VALUES ({', '.join('?' for _ in row)})",
        list(row.values()),
    )


def close_study(db: sqlite3.Connection, now: float) -> str:
    """Take no new sessions from now on; returns when that began. It cannot be undone.

    Results are public from then on, and whoever knows them does not judge blind.
    """
    db.execute("INSERT OR IGNORE INTO meta VALUES ('closed_utc', ?)", (utc(now),))
    closed = closed_utc(db)
    assert closed is not None
    return closed


def stop_if_due(db: sqlite3.Connection, study: PreparedStudy, now: float) -> None:
    """Close the study if its stop rule says so."""
    if is_due(db, study, now):
        close_study(db, now)


def is_due(db: sqlite3.Connection, study: PreparedStudy, now: float) -> bool:
    """Whether the stop rule ends the study: by the day, or with the last planned session.

    Where several servers serve it, sessions count that are complete at any of them, as far as this
    one has taken them in (`offsite.py`).
    """
    if study.stops_at is not None and now >= study.stops_at:
        return True
    if not study.stops_when_planned:
        return False
    (complete,) = db.execute(
        f"SELECT count(*) FROM sessions WHERE state = 'complete' AND {_COUNTS}"
    ).fetchone()
    return bool(complete >= study.planned_sessions)


def closed_utc(db: sqlite3.Connection) -> str | None:
    """When the study was closed; None while it is open."""
    found = db.execute("SELECT value FROM meta WHERE name = 'closed_utc'").fetchone()
    return str(found[0]) if found else None


def _moved(db: sqlite3.Connection, person: str, key: str, now: float) -> bool:
    """Whether the person has a session; it is then this browser's."""
    theirs = db.execute(
        "SELECT session_id, state FROM sessions WHERE person = ?", (person,)
    ).fetchone()
    if theirs is None:
        return False
    if theirs["state"] != "started":
        raise Refused(409, "already_done", "You have taken part in this study already. Thank you.")
    db.execute(
        "UPDATE sessions SET key_sha256 = ?, last_seen = ? WHERE session_id = ?",
        (_digest(key), now, theirs["session_id"]),
    )
    return True


def _free_row(db: sqlite3.Connection, rows: Sequence[range] | None, now: float) -> int:
    """The design row of the next rater: one that nobody completed or is at work on.

    First come the lists that were begun and dropped, the least filled before the others; then the
    lowest one that is new. So the complete lists have as few gaps as can be.
    """
    taken = _taken(db, now)
    filled = dict(
        db.execute(
            f"SELECT design_row, sum(n_done) FROM sessions WHERE {_COUNTS} GROUP BY design_row"
        ).fetchall()
    )
    mine = (range(sys.maxsize),) if rows is None else rows
    begun = {row: n for row, n in filled.items() if any(row in part for part in mine)}
    reached = max(begun, default=-1)  # a list below this was dropped, even if nothing is left of it
    free = [row for part in mine for row in range(part.start, min(part.stop, reached + 1))
            if row not in taken]  # fmt: skip
    if free:
        return min(free, key=lambda row: (begun.get(row, 0), row))
    for part in mine:
        new = max(part.start, reached + 1)
        if new in part:
            return new
    raise Refused(503, "no_place", "All places are taken just now. This page tries again.")


def free_rows(db: sqlite3.Connection, rows: Sequence[range], now: float) -> int:
    """How many of these design rows nobody completed or is at work on."""
    taken = _taken(db, now)
    return sum(row not in taken for part in rows for row in part)


def _taken(db: sqlite3.Connection, now: float) -> set[int]:
    found = db.execute(
        "SELECT DISTINCT design_row FROM sessions WHERE (state = 'complete' "
        f"OR (state = 'started' AND last_seen >= ?)) AND {_COUNTS}",
        (now - IDLE_S,),
    )
    return {row for (row,) in found}


def known(db: sqlite3.Connection, key: str) -> bool:
    """Whether the browser that holds `key` has a session."""
    found = db.execute("SELECT 1 FROM sessions WHERE key_sha256 = ?", (_digest(key),))
    return found.fetchone() is not None


def touch(db: sqlite3.Connection, key: str, now: float) -> None:
    """The session is at work: its place in the design is not free."""
    db.execute("UPDATE sessions SET last_seen = ? WHERE key_sha256 = ?", (now, _digest(key)))


def session_of(db: sqlite3.Connection, key: str) -> sqlite3.Row:
    """The session of the browser that holds `key`; Refused if there is none."""
    found: sqlite3.Row | None = db.execute(
        "SELECT * FROM sessions WHERE key_sha256 = ?", (_digest(key),)
    ).fetchone()
    if found is None:
        raise Refused(401, "no_session", "This session is not known. Reload the page to start.")
    return found
