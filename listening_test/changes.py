"""Which rows of the database are not copied off the machine yet, and how copies come back.

Triggers note the key of every row that is written, in the transaction that writes it, so nothing
acknowledged can be overlooked. `take` reads the noted rows as they stand, `settle` strikes them
off once they are safe, `restore` puts rows of segments back. All durable tables are copied,
those that are added later too; the tokens of open clips are not, since they die with the machine.

Every function takes the open transaction and runs inside `Store.run`; those that only look (`take`,
which may look at every row there is, `waiting`, `known_segments`) inside `Store.read`, so that no
rating waits for them. Nothing here knows where the copies lie.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from listening_test.segments import Segment

_OWN = """
CREATE TABLE IF NOT EXISTS changes (
    n INTEGER PRIMARY KEY AUTOINCREMENT, "table" TEXT NOT NULL, key TEXT NOT NULL,
    UNIQUE ("table", key)
);
CREATE TABLE IF NOT EXISTS gone ("table" TEXT, key TEXT, PRIMARY KEY ("table", key));
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS copying (name TEXT PRIMARY KEY, value NOT NULL);
"""
_NOT_COPIED = {"clips", "changes", "gone", "segments", "copying"}
# Says nothing of what was rated, and changes with every look at a trial.
_IDLE_COLUMNS = {"last_seen"}
# While segments are put back, nothing is noted: it is off the machine already.
_LOUD = "NOT EXISTS (SELECT 1 FROM copying WHERE name = 'quiet')"
# Rows a segment: some 3 MB, below what the Hub keeps as a plain file.
SEGMENT_ROWS = 3000
MOST_SEGMENTS = 400


class ForeignCopy(ValueError):
    """The copies off the machine are not of this server's ratings."""


@dataclass(frozen=True)
class Batch:
    """What is to be copied now: segments, the last change in them, and whether they are all.

    `replaces`: names of earlier segments that these stand for; after a deletion all of them, so
    that what was deleted is nowhere any more.
    """

    segments: list[Segment]
    upto: int
    replaces: frozenset[str] = frozenset()


def _tables(db: sqlite3.Connection) -> dict[str, tuple[str, list[str]]]:
    """The copied tables: their key column and all columns that mean the same everywhere."""
    found = {}
    names = db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    for (table,) in names:
        if table in _NOT_COPIED:
            continue
        columns = db.execute(f'PRAGMA table_info("{table}")').fetchall()
        keys = [c["name"] for c in columns if c["pk"]]
        # `seq` counts the ratings of one disk only.
        key = "rating_id" if keys == ["seq"] else keys[0] if len(keys) == 1 else None
        if key is None:
            raise ValueError(f"table {table} has no single key column to copy it by")
        found[table] = (key, [c["name"] for c in columns if c["name"] != "seq"])
    return found


def watch(db: sqlite3.Connection, place: str) -> None:
    """Begin, or go on, to note changes; at a new `place` nothing is copied yet."""
    for statement in _OWN.split(";"):
        db.execute(statement)
    if _value(db, "place") != place:
        db.execute("DELETE FROM segments")
        db.execute("DELETE FROM changes")
        _set(db, "place", place)
        _set(db, "new", 1)
    for table, (key, columns) in _tables(db).items():
        told = " OR ".join(
            f'NEW."{name}" IS NOT OLD."{name}"' for name in columns if name not in _IDLE_COLUMNS
        )
        gone = f"INSERT OR IGNORE INTO gone VALUES ('{table}', OLD.\"{key}\");"
        for event, when, row, more in (
            ("INSERT", "1", "NEW", ""), ("UPDATE", told, "NEW", ""), ("DELETE", "1", "OLD", gone),
        ):  # fmt: skip
            db.execute(f'DROP TRIGGER IF EXISTS "note_{table}_{event}"')
            # Not INSERT OR REPLACE: within a trigger the outer statement's way of meeting
            # conflicts counts.
            db.execute(
                f'CREATE TRIGGER "note_{table}_{event}" AFTER {event} ON "{table}" '
                f"WHEN ({told if event == 'UPDATE' else when}) AND {_LOUD} BEGIN "
                f'DELETE FROM changes WHERE "table" = \'{table}\' AND key = {row}."{key}"; '
                f'INSERT INTO changes ("table", key) VALUES (\'{table}\', {row}."{key}"); '
                f"{more} END"
            )


def _value(db: sqlite3.Connection, name: str) -> Any:
    found = db.execute("SELECT value FROM copying WHERE name = ?", (name,)).fetchone()
    return found and found[0]


def _set(db: sqlite3.Connection, name: str, value: Any) -> None:
    db.execute("INSERT OR REPLACE INTO copying VALUES (?, ?)", (name, value))


def server_id(db: sqlite3.Connection) -> str:
    """The name of this database's server, made at the first call."""
    if not _value(db, "server"):
        _set(db, "server", uuid.uuid4().hex)
    return str(_value(db, "server"))


def salt(db: sqlite3.Connection) -> str:
    """What keys the raters' ids."""
    return str(db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0])


def take_salt(db: sqlite3.Connection, agreed: str) -> None:
    """Use the salt that the servers of a study agreed on.

    Raises:
        ForeignCopy: there are raters under another one.
    """
    if salt(db) == agreed:
        return
    if db.execute("SELECT 1 FROM sessions LIMIT 1").fetchone() is not None:
        raise ForeignCopy(
            "The servers of this study agreed on another salt than this folder's ratings have. "
            "Give this study a place of its own for its copies, or an empty folder for its data."
        )
    db.execute("UPDATE meta SET value = ? WHERE name = 'salt'", (agreed,))


def known_segments(db: sqlite3.Connection) -> set[str]:
    """Names of the segments that this database has written or taken in."""
    return {row[0] for row in db.execute("SELECT name FROM segments")}


def waiting(db: sqlite3.Connection) -> int:
    """How many rows are not safe yet."""
    return int(db.execute("SELECT count(*) FROM changes").fetchone()[0])


def note_all(db: sqlite3.Connection) -> None:
    """Take every row as not copied, as when the copies were lost."""
    db.execute("DELETE FROM segments")
    for table, (key, _) in _tables(db).items():
        db.execute(
            f'INSERT OR IGNORE INTO changes ("table", key) SELECT \'{table}\', "{key}" '
            f'FROM "{table}" ORDER BY rowid'
        )


def next_order(db: sqlite3.Connection) -> int:
    """The number of the next segments: larger than that of every one this database knows of."""
    order = int(_value(db, "order") or 0) + 1
    _set(db, "order", order)
    return order


def take(db: sqlite3.Connection, order: int) -> Batch | None:
    """What waits to be copied, as segments of number `order`; None if nothing does.

    A session's rows are all in one segment: wherever a copy breaks off, no session is half in it.
    """
    upto = db.execute("SELECT max(n) FROM changes").fetchone()[0]
    if upto is None:
        return None
    tables = _tables(db)
    deleted = any(
        db.execute(
            f"SELECT 1 FROM changes WHERE \"table\" = '{table}' AND key NOT IN "
            f'(SELECT "{key}" FROM "{table}") LIMIT 1'
        ).fetchone()
        for table, (key, _) in tables.items()
    )
    known = known_segments(db)
    # All anew: without what was deleted, or instead of more segments than a start should read.
    whole = deleted or len(known) > MOST_SEGMENTS
    rows: list[tuple[str, dict[str, Any]]] = []
    for table, (key, columns) in tables.items():
        chosen = ", ".join(f'"{name}"' for name in columns)
        noted = "" if whole else (
            f'WHERE "{key}" IN (SELECT key FROM changes WHERE "table" = \'{table}\')'
        )  # fmt: skip
        found = db.execute(f'SELECT {chosen} FROM "{table}" {noted} ORDER BY rowid')
        rows += [(table, dict(row)) for row in found]
    gone = [(row[0], row[1]) for row in db.execute("SELECT * FROM gone")] if whole else []
    return Batch(_cut(order, rows, gone), int(upto), frozenset(known) if whole else frozenset())


def _cut(
    order: int, rows: list[tuple[str, dict[str, Any]]], gone: list[tuple[str, str]]
) -> list[Segment]:
    by_session: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for table, row in rows:
        by_session.setdefault(row.get("session_id") or "", []).append((table, row))
    segments = [Segment(order, [], gone)]
    for own in by_session.values():
        if segments[-1].rows and len(segments[-1].rows) + len(own) > SEGMENT_ROWS:
            segments.append(Segment(order))
        segments[-1].rows.extend(own)
    return segments


def settle(db: sqlite3.Connection, batch: Batch, names: Iterable[str]) -> None:
    """Strike off what is safe now, under `names`; rows that changed meanwhile stay noted."""
    db.execute("DELETE FROM changes WHERE n <= ?", (batch.upto,))
    db.executemany("DELETE FROM segments WHERE name = ?", [(name,) for name in batch.replaces])
    db.executemany("INSERT OR IGNORE INTO segments VALUES (?)", [(name,) for name in names])


def restore(db: sqlite3.Connection, segments: dict[str, Segment]) -> int:
    """Put the rows of segments back that this database has not seen; returns how many it took.

    A segment that is known, or given twice, changes nothing. Deleted stays deleted.

    Raises:
        ForeignCopy: they are of another study, or of another server's ratings.
    """
    known = known_segments(db)
    unseen = {name: segment for name, segment in segments.items() if name not in known}
    tables = _tables(db)
    _check_ours(db, unseen)
    _set(db, "quiet", 1)
    for name, segment in sorted(unseen.items(), key=lambda pair: (pair[1].order, pair[0])):
        highest = int(_value(db, "order") or 0)
        for table, gone_key in segment.gone:
            _delete(db, tables, table, gone_key)
        for table, row in segment.rows:
            if table not in tables or not set(row) <= set(tables[table][1]):
                raise ForeignCopy(
                    f"The copy {name} has a table or column that this version does not know "
                    f"({table}). Run the version of this software that wrote it, or a later one."
                )
            # Segments of one moment have one order: they do not contradict each other.
            _put(db, table, tables[table][0], row, newer=segment.order >= highest)
        _set(db, "order", max(highest, segment.order))
        db.execute("INSERT OR IGNORE INTO segments VALUES (?)", (name,))
    db.execute("DELETE FROM copying WHERE name = 'quiet'")
    if _value(db, "new"):
        # Rows that were here before, and so are perhaps nowhere else.
        if not unseen or _value(db, "had_sessions"):
            note_all(db)
            db.executemany("INSERT OR IGNORE INTO segments VALUES (?)", [(n,) for n in unseen])
        db.execute("DELETE FROM copying WHERE name IN ('new', 'had_sessions')")
    return len(unseen)


def _check_ours(db: sqlite3.Connection, segments: dict[str, Segment]) -> None:
    """The copies must be of this study; their salt is taken over by a database without raters."""
    here = {row["name"]: row["value"] for row in db.execute("SELECT name, value FROM meta")}
    raters = db.execute("SELECT 1 FROM sessions LIMIT 1").fetchone() is not None
    if raters and _value(db, "new"):
        _set(db, "had_sessions", 1)
    for name, segment in segments.items():
        for table, row in segment.rows:
            if table != "meta" or row["value"] == here.get(row["name"]):
                continue
            if row["name"] == "study" or (row["name"] == "salt" and raters):
                raise ForeignCopy(
                    f"The copy {name} holds another server's ratings, or another version's. Give "
                    "this study a place of its own for its copies, or an empty folder for its data."
                )


def _delete(
    db: sqlite3.Connection, tables: dict[str, tuple[str, list[str]]], table: str, gone_key: str
) -> None:
    """Delete what was deleted elsewhere; a session with all that this server knows of it."""
    n = 0
    for other, (key, columns) in tables.items():
        by = key if other == table else "session_id" if table == "sessions" else None
        if by in columns:
            n += db.execute(f'DELETE FROM "{other}" WHERE "{by}" = ?', (gone_key,)).rowcount
    db.execute("INSERT OR IGNORE INTO gone VALUES (?, ?)", (table, gone_key))
    if n:
        _note(db, table, gone_key)


def _note(db: sqlite3.Connection, table: str, gone_key: str) -> None:
    """A copy holds what was deleted: the next one stands for all, without it."""
    db.execute('INSERT OR IGNORE INTO changes ("table", key) VALUES (?, ?)', (table, gone_key))


def _put(db: sqlite3.Connection, table: str, key: str, row: dict[str, Any], newer: bool) -> None:
    named = (table, row[key])
    # Of a session that was deleted, another server may still bring what this one never saw.
    found = 'SELECT 1 FROM gone WHERE "table" = ? AND key = ?'
    whose = ("sessions", row.get("session_id"))
    if db.execute(found, named).fetchone() or db.execute(found, whose).fetchone():
        _note(db, *named)
        return
    here = db.execute(f'SELECT * FROM "{table}" WHERE "{key}" = ?', (row[key],)).fetchone()
    columns = list(row)
    if here is None:
        names, marks = ", ".join(f'"{c}"' for c in columns), ", ".join("?" for _ in columns)
        # OR IGNORE: of two answers to one trial, by way of two servers, the first counts.
        into = f'INSERT OR IGNORE INTO "{table}" ({names}) VALUES ({marks})'
        db.execute(into, list(row.values()))
        return
    ahead = row["n_done"] - here["n_done"] if table == "sessions" else 0
    noted = db.execute('SELECT 1 FROM changes WHERE "table" = ? AND key = ?', named).fetchone()
    if ahead > 0 or (ahead == 0 and newer and not noted):
        pairs = ", ".join(f'"{c}" = ?' for c in columns)
        db.execute(f'UPDATE "{table}" SET {pairs} WHERE "{key}" = ?', [*row.values(), row[key]])


def safe_upto(db: sqlite3.Connection, session_id: str, n_done: int) -> tuple[int, bool]:
    """The last trial up to which a session is safe, and whether all that is known of it is."""
    first, everything = n_done + 1, True
    for table, (key, columns) in _tables(db).items():
        if "session_id" not in columns:
            continue
        # CROSS JOIN: by the session's few rows, however many changes wait.
        trial = "trial_index" if "trial_index" in columns else "NULL"
        noted, earliest = db.execute(
            f'SELECT count(*), min({trial}) FROM "{table}" CROSS JOIN changes '
            f'ON "table" = \'{table}\' AND changes.key = "{table}"."{key}" '
            "WHERE session_id = ?",
            (session_id,),
        ).fetchone()
        everything = everything and not noted
        first = first if earliest is None else min(first, earliest)
    return first - 1, everything
