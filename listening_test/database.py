"""The tables of a study's ratings, and the ways to open them.

    writing(path)   what the store owns: made if absent, brought up to date if an earlier version
                    made it
    reading(path)   beside it, as often as wanted: no writer waits for a reader
    looking(path)   without a server, leaving no trace; an earlier version's file looks as it will
                    when it is brought up to date

This module knows tables; what is written into them is `enrolment.py`'s and `trials.py`'s, and who
may write when is `store.py`'s.
"""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

from listening_test.columns import RATING_COLUMNS

# How long one process waits for another that writes.
BUSY_S = 30.0

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
    volume_utc TEXT,
    started_utc TEXT,
    consent_version TEXT,
    ui_lang TEXT,
    device TEXT,
    browser TEXT
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
CREATE TABLE IF NOT EXISTS decisions (
    decision_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    rule TEXT NOT NULL,
    holds INTEGER NOT NULL,
    reason TEXT NOT NULL,
    server_utc TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS decisions_by_session ON decisions (session_id, rule, server_utc);
-- Sessions that a decision leaves out of the results: of each rule the last one holds.
CREATE VIEW IF NOT EXISTS left_out AS
    SELECT session_id, rule, reason, server_utc FROM decisions AS one
    WHERE holds AND NOT EXISTS (
        SELECT 1 FROM decisions AS later WHERE later.session_id = one.session_id
        AND later.rule = one.rule AND later.server_utc > one.server_utc
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
-- Counting 100,000 ratings by their rows takes as long as a rater waits for a page.
CREATE INDEX IF NOT EXISTS ratings_by_type ON ratings (trial_type);
"""

# Columns of sessions that an earlier version did not have.
_LATER = {
    "environment_right": "INTEGER", "environment_passed": "INTEGER", "volume_utc": "TEXT",
    "started_utc": "TEXT", "consent_version": "TEXT", "ui_lang": "TEXT", "device": "TEXT",
    "browser": "TEXT",
}  # fmt: skip
# Written into the file (SQLite's user_version, 31 bits): changes whenever the tables above do.
_VERSION = zlib.crc32(SCHEMA.encode()) >> 1


def writing(path: Path) -> sqlite3.Connection:
    """The database for its one writer thread; every commit is on disk when it returns."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    # What a rater withdraws is overwritten, not only marked as free.
    db.execute("PRAGMA secure_delete=ON")
    _bring_up_to_date(db)
    return db


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    """Add what the file of an earlier version, or an empty one, lacks; nothing is taken away."""
    db.executescript(SCHEMA)
    db.execute("BEGIN IMMEDIATE")  # two processes may open it at once
    known = {row[1] for row in db.execute("PRAGMA table_info(sessions)")}
    for name, kind in _LATER.items():
        if name not in known:
            db.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")
    db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")


def reading(path: Path) -> sqlite3.Connection:
    """The database as it is, for the calling thread, while somebody else may write."""
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_S
    )
    db.row_factory = sqlite3.Row
    return db


def looking(path: Path) -> sqlite3.Connection:
    """The database as it is now, up to date, with rows as tuples; the file stays as it is."""
    served = path.with_name(path.name + "-wal").exists()
    mode = "mode=ro" if served else "mode=ro&immutable=1"
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=BUSY_S
    )
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return db
        copy = sqlite3.connect(":memory:", isolation_level=None)
        db.backup(copy)
        _bring_up_to_date(copy)
    except BaseException:
        db.close()
        raise
    db.close()
    return copy
