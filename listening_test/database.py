"""The tables of a study's ratings, and the ways to open them.

    writing(path)   what the store owns: made if absent, brought up to date if an earlier version
                    made it
    reading(path)   beside it, as often as wanted: no writer waits for a reader

This module knows tables; what is written into them is `enrolment.py`'s and `trials.py`'s, and who
may write when is `store.py`'s.
"""

from __future__ import annotations

import sqlite3
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
-- Counting 100,000 ratings by their rows takes as long as a rater waits for a page.
CREATE INDEX IF NOT EXISTS ratings_by_type ON ratings (trial_type);
"""


_LATER = {"environment_right": "INTEGER", "environment_passed": "INTEGER", "volume_utc": "TEXT"}


def writing(path: Path) -> sqlite3.Connection:
    """The database for its one writer thread; every commit is on disk when it returns."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
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


def reading(path: Path) -> sqlite3.Connection:
    """The database as it is, for the calling thread, while somebody else may write."""
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_S
    )
    db.row_factory = sqlite3.Row
    return db
