"""Take a rater out of a study for good: `python -m listening_test.withdraw STUDY_DIR`.

    python -m listening_test.withdraw STUDY_DIR --platform-id ID     asks for ID where it is "-"
    python -m listening_test.withdraw STUDY_DIR --rater RATER_ID     as ratings.csv has it

Raters do the same on their own page. Session, ratings, screening and questionnaire answers are
deleted and overwritten, `ratings.csv` is written anew, and the place in the design is free for the
next rater. What stays is a note without personal data: the day, how many ratings, and who asked.
Files that were exported before are not touched: export them again. The server may go on running;
copies off the machine (`offsite.py`) follow when it copies next.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
import uuid
from pathlib import Path

from listening_test.crowd import person_hash
from listening_test.prepared import NotPrepared, PreparedStudy, load_prepared
from listening_test.rows import utc
from listening_test.store import NotSaved, Store, StoreMismatch

_TABLES = ("ratings", "clips", "screens", "profiles", "decisions", "sessions")


def forget(db: sqlite3.Connection, session_id: str, asked_by: str, now: float) -> int:
    """Delete all of one session inside `Store.run`; returns the number of ratings deleted.

    The note of it makes the store write `ratings.csv` anew.
    """
    (n,) = db.execute("SELECT count(*) FROM ratings WHERE session_id = ?", (session_id,)).fetchone()
    for table in _TABLES:
        db.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))
    db.execute(
        "INSERT INTO withdrawals (note_id, day, ratings, asked_by) VALUES (?, ?, ?, ?)",
        # Random, not counted: two servers of a study (`offsite.py`) must not use one id twice.
        (str(uuid.uuid4()), utc(now)[:10], n, asked_by),
    )
    return int(n)


def forget_rater(
    db: sqlite3.Connection,
    study: PreparedStudy,
    now: float,
    platform_id: str | None = None,
    rater_id: str | None = None,
) -> tuple[int, int]:
    """Delete every session of a rater, named by one of the two ids.

    Returns:
        The number of sessions and of ratings deleted; noughts where nobody has that id.
    """
    where, value = "rater_id", rater_id
    if platform_id is not None:
        (salt,) = db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()
        where, value = "person", person_hash(study.platform, platform_id, bytes.fromhex(salt))
    found = db.execute(f"SELECT session_id FROM sessions WHERE {where} = ?", (value,)).fetchall()
    return len(found), sum(forget(db, row[0], "operator", now) for row in found)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m listening_test.withdraw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study_dir", type=Path)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--platform-id", metavar="ID", help="Prolific's or MTurk's id of the person")
    who.add_argument("--rater", metavar="RATER_ID", help="rater_id of ratings.csv")
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting")
    options = parser.parse_args(arguments)
    platform_id = options.platform_id
    try:
        if platform_id == "-":  # keeps it out of the shell's history
            platform_id = input("platform id: ").strip()
        study = load_prepared(options.study_dir)
        if platform_id is not None and (study.platform is None or study.platform.name == "lab"):
            raise NotPrepared("The study has no platform that gives ids; use --rater RATER_ID.")
        if not (options.study_dir / "data" / "ratings.sqlite3").exists():
            raise NotPrepared(f"{options.study_dir} has no ratings yet.")
        if not options.yes and input("Delete all of this rater for good? Type yes: ") != "yes":
            print("Nothing was deleted.")
            return 1
        store = Store(options.study_dir / "data", study.study_id, study.config_sha256)
        sessions, ratings = store.run(
            lambda db: forget_rater(db, study, time.time(), platform_id, options.rater)
        ).result()
        store.close()
    except EOFError:
        print("Nobody answered, so nothing was deleted. Without a terminal, give the id and --yes.")
        return 1
    except (NotPrepared, NotSaved, StoreMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    if not sessions:
        print("Nobody with that id has a session here. Is it typed as it was given?")
        return 1
    if store.csv_error:
        print(f"Deleted from the database, but {store.csv_error}", file=sys.stderr)
        return 2
    print(f"Deleted: {sessions} session(s) with {ratings} rows of ratings.")
    print("Files exported before still hold them: export again, and delete the old ones.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
