"""Join ratings with the key: `python -m listening_test.export STUDY_DIR --out DIR`.

DIR gets `ratings.csv` with `system`, `sessions.csv`, `raters.csv`, `stimuli.csv` and `study.json`:
what analysis needs. The database is read beside a running server; nothing in STUDY_DIR is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sqlite3
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import pandas as pd

from listening_test.columns import (
    KEY_COLUMNS,
    RATER_COLUMNS,
    RATING_COLUMNS,
    SESSION_COLUMNS,
    csv_text,
)
from listening_test.database import looking
from listening_test.decisions import INTERNAL, STATUS, told
from listening_test.exclusion import Ends, apply_rules
from listening_test.questionnaire import columns
from listening_test.rows import utc
from listening_test.study import Study
from listening_test.texts import end_of_day

# A platform's id of a submission is a keyed hash, of which the beginning is enough.
_SESSIONS = """
SELECT *, substr(submission, 1, 16) AS submission_id,
    (SELECT count(*) FROM ratings WHERE ratings.session_id = sessions.session_id
        AND trial_type = 'trap' AND check_passed = 0) AS traps_wrong,
    CASE WHEN state != 'started' THEN max(
        coalesce((SELECT max(server_utc) FROM ratings
            WHERE ratings.session_id = sessions.session_id), ''),
        coalesce((SELECT max(server_utc) FROM screens
            WHERE screens.session_id = sessions.session_id), '')) END AS ended_utc
FROM sessions ORDER BY sessions.rowid
"""


class ExportError(ValueError):
    """The study folder lacks its key or its ratings."""


def exported_frame(study_dir: Path) -> tuple[pd.DataFrame, Study]:
    """All ratings of a study, one row each, with `system` joined from the key.

    Raises:
        ExportError: key or ratings are missing, or a rating's stimulus is not in the key.
    """
    key_path, database = study_dir / "key" / "stimuli.csv", study_dir / "data" / "ratings.sqlite3"
    if not key_path.exists():
        raise ExportError(f"{study_dir} has no key/stimuli.csv; is it a prepared study?")
    if not database.exists():
        raise ExportError(f"{study_dir} has no ratings yet: {database} does not exist.")
    key = pd.read_csv(key_path, dtype=str, keep_default_na=False).set_index("stimulus_id")["system"]
    key = key.where(key != "")  # a check is no system's; a system may be called NA
    ratings = _table(database, "SELECT * FROM ratings ORDER BY seq")[list(RATING_COLUMNS)]
    rated = set(ratings["stimulus_id"]) | set(ratings["stimulus_b_id"].dropna())
    unknown = sorted(rated - set(key.index))
    if unknown:
        raise ExportError(
            f"{len(unknown)} rated stimuli are not in {key_path} (first: {unknown[0]}). Was the "
            "study prepared again with another LISTENING_TEST_KEY? Use the key of the ratings."
        )
    _mark(ratings, left_out(study_dir))
    ratings["system"] = ratings["stimulus_id"].map(key)
    ratings["system_b"] = ratings["stimulus_b_id"].map(key)
    study = studied(study_dir)
    ratings["score"] = pd.to_numeric(ratings["score"])  # where all are missing too
    ratings["score_signed"] = _signed(ratings, [system.name for system in study.systems])
    return ratings, study


def judged_frame(study_dir: Path) -> pd.DataFrame:
    """The frame of `exported_frame` with the rows that the study file's rules take out marked.

    So whoever reads the exported file alone, and knows `status` only, counts what we count.

    Raises:
        ExportError: as `exported_frame`.
    """
    ratings, study = exported_frame(study_dir)
    return apply_rules(ratings, study.exclusion, Ends.of(study), incomplete_sessions(study_dir))


def left_out(study_dir: Path) -> dict[str, tuple[str, str]]:
    """Status and reason of each session that a decision leaves out of the results.

    Internal before by hand, where both hold.
    """
    database = study_dir / "data" / "ratings.sqlite3"
    closed, _ = closed_and_withdrawn(study_dir)
    found: dict[str, tuple[str, str]] = {}
    for row in _table(database, "SELECT * FROM left_out").itertuples():
        if row.session_id not in found or row.rule == INTERNAL:
            why = told(row.rule, row.reason, row.server_utc, closed)
            found[row.session_id] = (STATUS[row.rule], why)
    return found


def _mark(rows: pd.DataFrame, decided: dict[str, tuple[str, str]]) -> None:
    """Put what was decided about a session into its rows' `status` and `status_reason`."""
    for place, name in enumerate(("status", "status_reason")):
        found = rows["session_id"].map({session: both[place] for session, both in decided.items()})
        rows[name] = found.astype(object).where(found.notna(), rows[name])


def decisions_frame(study_dir: Path) -> pd.DataFrame:
    """One row a decision about a rater, in the order taken: when, whom, what and why."""
    return _table(
        study_dir / "data" / "ratings.sqlite3",
        "SELECT DISTINCT decisions.server_utc, rater_id, rule, holds, reason "
        "FROM decisions JOIN sessions USING (session_id) ORDER BY decisions.server_utc",
    )


def studied(study_dir: Path) -> Study:
    """The study file as it was prepared."""
    record = json.loads((study_dir / "key" / "study.json").read_text(encoding="utf-8"))
    return Study.model_validate(record["config"])


def _signed(ratings: pd.DataFrame, order: list[str]) -> pd.Series:
    """Comparison scores with the order of playing taken out.

    Positive where the system that the study file names later is better than the earlier one.
    """
    place = {name: number for number, name in enumerate(order)}
    compared = (ratings["method"] == "ccr") & (ratings["system"] != ratings["system_b"])
    later = ratings["system_b"].map(place) > ratings["system"].map(place)
    signed = ratings["score"].where(later, -ratings["score"])
    return signed.where(compared)


def _table(database: Path, query: str) -> pd.DataFrame:
    """Rows of the database, beside a server or without one.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        with closing(looking(database)) as db:
            return pd.read_sql_query(query, db)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise ExportError(f"{database} cannot be read ({error}). Is it a whole copy?") from error


def sessions_frame(study_dir: Path) -> pd.DataFrame:
    """One row a session, in SESSION_COLUMNS and a column a question of the questionnaire.

    Keys, tokens and completion codes stay behind.
    """
    database, study = study_dir / "data" / "ratings.sqlite3", studied(study_dir)
    found = _table(database, _SESSIONS)
    found["trials"] = [len(json.loads(trials)) for trials in found["trials"]]
    found["last_seen_utc"] = [utc(seconds) for seconds in found["last_seen"]]
    found["payment_class"] = _payment_classes(found, study.exclusion.trap_errors or 0)
    found["completion_code_id"] = [
        None if pd.isna(code) else hashlib.sha256(code.encode()).hexdigest()[:8]
        for code in found["completion_code"]
    ]
    found["status"], found["status_reason"] = "use", None
    _mark(found, left_out(study_dir))
    for name in SESSION_COLUMNS:  # a screen's are empty where there was none
        if name.endswith(("_right", "_passed")):
            found[name] = found[name].astype("Int64")
    about = columns(study.questionnaire)
    if about:
        kept = _table(database, "SELECT session_id, answers FROM profiles")
        answers = dict(zip(kept["session_id"], map(json.loads, kept["answers"]), strict=True))
        for name in about:
            own = name.removeprefix("about_")
            found[name] = [answers.get(session, {}).get(own) for session in found["session_id"]]
    return found[[*SESSION_COLUMNS, *about]]


def _payment_classes(sessions: pd.DataFrame, forgiven: int) -> pd.Series:
    """What each session that ended may ask for: `completed`, `failed_check` or `screened_out`."""
    failed = sessions["traps_wrong"] > forgiven
    classes = sessions["state"].map({"complete": "completed", "screened_out": "screened_out"})
    return classes.mask(failed & (classes == "completed"), "failed_check")


def raters_frame(sessions: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """One row a rater, in RATER_COLUMNS and the questionnaire's: what their sessions say.

    Args:
        sessions: of `sessions_frame`; where a rater has several, the first answer counts.
        ratings: of `exported_frame`.
    """
    about = [name for name in sessions if name not in SESSION_COLUMNS]
    by_rater = sessions.groupby("rater_id", sort=False)
    frame = by_rater[["platform", *about]].first()
    frame["sessions"] = by_rater.size()
    frame["sessions_complete"] = by_rater["state"].agg(lambda states: (states == "complete").sum())
    frame["ratings"] = ratings.groupby("rater_id").size().reindex(frame.index, fill_value=0)
    return frame.reset_index()[[*RATER_COLUMNS, *about]]


def closed_and_withdrawn(study_dir: Path, now: float | None = None) -> tuple[str | None, int]:
    """When the study was closed (None while open), and how many raters have withdrawn.

    A study whose last day is over is closed, though no server runs that would have written it down.

    Args:
        now: seconds since 1970; the clock's, where it is None.
    """
    database = study_dir / "data" / "ratings.sqlite3"
    closed = _table(database, "SELECT value FROM meta WHERE name = 'closed_utc'")["value"]
    withdrawn = _table(database, "SELECT count(*) AS n FROM withdrawals")["n"]
    when = None if closed.empty else str(closed[0])
    stop = studied(study_dir).stop_rule
    if when is None and stop is not None and stop.until is not None:
        end = end_of_day(stop.until)
        when = utc(end) if end <= (time.time() if now is None else now) else None
    return when, int(withdrawn[0])


def incomplete_sessions(study_dir: Path) -> frozenset[str]:
    """Ids of the sessions that did not come to their end."""
    sessions = sessions_frame(study_dir)
    return frozenset(sessions.loc[sessions["state"] != "complete", "session_id"])


def exported_csv(ratings: pd.DataFrame, blinded: bool = False) -> str:
    """The frame of `exported_frame` or `judged_frame` as CSV text.

    Blinded, without the systems, and without the scores whose sign speaks for one of them.
    """
    if blinded:
        return _csv(ratings.assign(score_signed=None), RATING_COLUMNS)
    return _csv(ratings, RATING_COLUMNS + KEY_COLUMNS)


def _csv(frame: pd.DataFrame, columns: tuple[str, ...]) -> str:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return csv_text(rows, columns)


def sessions_csv(study_dir: Path, columns: tuple[str, ...] | None = None) -> str:
    """The frame of `sessions_frame` as CSV text, all columns or those given."""
    sessions = sessions_frame(study_dir)
    return _csv(sessions, columns or tuple(sessions))


def exported_files(study_dir: Path, blinded: bool = False) -> tuple[dict[str, bytes], int]:
    """The bundle by file name, and its number of ratings.

    Blinded, it has neither systems nor the key: a copy of what was gathered that gives no result.
    """
    ratings = judged_frame(study_dir)
    sessions = sessions_frame(study_dir)
    raters = raters_frame(sessions, ratings)
    files = {
        "ratings.csv": exported_csv(ratings, blinded).encode(),
        "sessions.csv": _csv(sessions, tuple(sessions)).encode(),
        "raters.csv": _csv(raters, tuple(raters)).encode(),
    }
    for name in () if blinded else ("stimuli.csv", "study.json"):
        files[name] = (study_dir / "key" / name).read_bytes()
    return files, len(ratings)


def export(study_dir: Path, out: Path) -> int:
    """Write the unblinded bundle; returns the number of ratings."""
    files, n = exported_files(study_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    return n


def export_zip(study_dir: Path, blinded: bool = False) -> tuple[bytes, int]:
    """The files of `exported_files` as one zip, and the number of ratings."""
    files, n = exported_files(study_dir, blinded)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue(), n


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.export", description=__doc__)
    parser.add_argument("study_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        n = export(options.study_dir, options.out)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.out} cannot be written ({error}). Give another folder.", file=sys.stderr)
        return 2
    print(f"{n} ratings with their systems: {options.out / 'ratings.csv'}")
    print(f"next: python -m listening_test.analyse {options.out} --json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
