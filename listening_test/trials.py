"""The rules of a session: who gets which order, which clip may be heard, which rating counts.

Every function here takes the open transaction first and runs inside `Store.run`, so what it
checks and what it writes are one atomic step. Times come from the caller (seconds since 1970).
It knows no HTTP and no system names.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from listening_test.columns import RATING_COLUMNS, SCHEMA_VERSION
from listening_test.prepared import PreparedStudy, Stimulus

# A session untouched for this long frees its place in the design for the next rater. Whoever
# comes back later still goes on: their ratings are kept, and the place is filled twice.
IDLE_S = 30 * 60
# The browser's clock of played sound is coarse (it counts in animation frames).
HEARD_SLACK_MS = 150


class Refused(Exception):
    """A request against the rules: nothing was stored. `code` is for the page, text for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Answer:
    """One rating as the browser claims it. Times in milliseconds."""

    rating_id: str
    clip: str
    trial_index: int
    score: int
    plays: int
    listened_ms: int
    rt_ms: int
    first_play_to_submit_ms: int
    hidden_ms: int
    changed_n: int
    comment: str
    client_utc: str
    ui_lang: str


def utc(seconds: float) -> str:
    """ISO-8601 in UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def start_session(
    db: sqlite3.Connection, study: PreparedStudy, key: str, platform: str, now: float
) -> None:
    """Begin the session of the browser that holds `key`, or do nothing if it has one already.

    It gets the lowest design row that nobody completed or is at work on: rows of raters who
    quit are filled first. Asking twice, as a retry does, takes one place only.
    """
    if db.execute("SELECT 1 FROM sessions WHERE key_sha256 = ?", (_digest(key),)).fetchone():
        return
    taken = db.execute(
        "SELECT DISTINCT design_row FROM sessions WHERE state = 'complete' OR last_seen >= ? "
        "ORDER BY design_row",
        (now - IDLE_S,),
    )
    row = 0
    for (used,) in taken:
        if used > row:
            break
        row = used + 1
    salt = db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0]
    rater = hmac.new(bytes.fromhex(salt), key.encode(), "sha256").hexdigest()[:16]
    db.execute(
        "INSERT INTO sessions (session_id, key_sha256, rater_id, platform, design_row, trials, "
        "consent_utc, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            str(uuid.uuid4()), _digest(key), rater, platform, row,
            json.dumps(study.trials(row)), utc(now), now,
        ),
    )  # fmt: skip


def _session(db: sqlite3.Connection, key: str) -> sqlite3.Row:
    found: sqlite3.Row | None = db.execute(
        "SELECT * FROM sessions WHERE key_sha256 = ?", (_digest(key),)
    ).fetchone()
    if found is None:
        raise Refused(401, "no_session", "This session is not known. Reload the page to start.")
    return found


def current_trial(
    db: sqlite3.Connection, study: PreparedStudy, key: str, now: float
) -> dict[str, Any]:
    """Where the session stands: the trial to do with its clip token, or done with the code.

    The token is random, belongs to this session and trial, and dies when the trial is rated.
    """
    session = _session(db, key)
    order = json.loads(session["trials"])
    n_practice = len(study.practice_ids)
    index = session["n_done"] + 1
    if index > len(order):
        return {"state": "done", "total": len(order) - n_practice,
                "code": session["completion_code"]}  # fmt: skip
    known = db.execute(
        "SELECT token FROM clips WHERE session_id = ? AND trial_index = ?",
        (session["session_id"], index),
    ).fetchone()
    token = known[0] if known else secrets.token_urlsafe(18)
    if not known:
        db.execute(
            "INSERT INTO clips (token, session_id, trial_index, stimulus_id) VALUES (?, ?, ?, ?)",
            (token, session["session_id"], index, order[index - 1]),
        )
        db.execute(
            "UPDATE sessions SET last_seen = ? WHERE session_id = ?", (now, session["session_id"])
        )
    practice = index <= n_practice
    return {
        "state": "practice" if practice else "trial",
        "trial_index": index,
        "number": index if practice else index - n_practice,
        "total": n_practice if practice else len(order) - n_practice,
        "clip": token,
    }


def serve_clip(db: sqlite3.Connection, token: str, now: float) -> str:
    """Stimulus id behind a living token; the time of the first serving is kept.

    A first serving in the future means that the clock was set back since: it counts anew, or the
    rater would be refused until the clock has caught up.
    """
    clip = db.execute("SELECT * FROM clips WHERE token = ?", (token,)).fetchone()
    if clip is None:
        raise Refused(404, "no_clip", "This clip is not open (any more).")
    if clip["first_served"] is None or clip["first_served"] > now:
        db.execute("UPDATE clips SET first_served = ? WHERE token = ?", (now, token))
    return str(clip["stimulus_id"])


def save_rating(
    db: sqlite3.Connection, study: PreparedStudy, key: str, answer: Answer, now: float
) -> dict[str, Any]:
    """Store one rating, or recognise it as stored already; returns where the session stands.

    Raises:
        Refused: out of order, for another's clip, or without having heard the clip.
    """
    session = _session(db, key)
    kept = db.execute("SELECT * FROM ratings WHERE rating_id = ?", (answer.rating_id,)).fetchone()
    if kept is not None:
        same = (session["session_id"], answer.trial_index, answer.score)
        if (kept["session_id"], kept["trial_index"], kept["score"]) != same:
            raise Refused(409, "key_reused", "This rating key was used for another rating.")
        return current_trial(db, study, key, now)
    order = json.loads(session["trials"])
    if answer.trial_index != session["n_done"] + 1 or answer.trial_index > len(order):
        raise Refused(409, "out_of_order", "This clip was rated already, or is not up yet.")
    stimulus = study.by_id[order[answer.trial_index - 1]]
    _check_heard(db, session["session_id"], stimulus, answer, now)
    _insert(db, _row(study, session, stimulus, answer, now))
    done = answer.trial_index == len(order)
    db.execute("DELETE FROM clips WHERE token = ?", (answer.clip,))
    db.execute(
        "UPDATE sessions SET n_done = ?, last_seen = ?, state = ?, completion_code = ? "
        "WHERE session_id = ?",
        (
            answer.trial_index, now, "complete" if done else "started",
            secrets.token_hex(4).upper() if done else None, session["session_id"],
        ),
    )  # fmt: skip
    return current_trial(db, study, key, now)


def _check_heard(
    db: sqlite3.Connection, session_id: str, stimulus: Stimulus, answer: Answer, now: float
) -> None:
    clip = db.execute("SELECT * FROM clips WHERE token = ?", (answer.clip,)).fetchone()
    if clip is None or (clip["session_id"], clip["trial_index"]) != (
        session_id,
        answer.trial_index,
    ):
        raise Refused(403, "foreign_clip", "This clip does not belong to this trial.")
    duration_ms = 1000 * stimulus.duration_s
    since_served = None if clip["first_served"] is None else 1000 * (now - clip["first_served"])
    if (
        since_served is None
        or since_served < duration_ms
        or answer.listened_ms < duration_ms - HEARD_SLACK_MS
        or answer.listened_ms > since_served + HEARD_SLACK_MS
    ):
        raise Refused(409, "not_heard", "Please listen to the whole clip before you rate it.")


def _row(
    study: PreparedStudy,
    session: sqlite3.Row,
    stimulus: Stimulus,
    answer: Answer,
    now: float,
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "study_id": study.study_id,
        "config_sha256": study.config_sha256,
        "rating_id": answer.rating_id,
        "session_id": session["session_id"],
        "rater_id": session["rater_id"],
        "platform": session["platform"],
        "block_id": session["design_row"],
        "design_row": session["design_row"],
        "trial_index": answer.trial_index,
        "trial_type": stimulus.trial_type,
        "method": study.method,
        "dimension": study.dimension,
        "item_id": stimulus.item_id,
        "stimulus_id": stimulus.stimulus_id,
        "score": answer.score,
        "scale_id": f"p800-acr-{len(study.labels)}",
        "label_shown": study.labels[len(study.labels) - answer.score],
        "ui_lang": answer.ui_lang,
        "plays": answer.plays,
        "listened_ms": answer.listened_ms,
        "listened_fraction": round(answer.listened_ms / (1000 * stimulus.duration_s), 3),
        "rt_ms": answer.rt_ms,
        "first_play_to_submit_ms": answer.first_play_to_submit_ms,
        "hidden_ms": answer.hidden_ms,
        "changed_n": answer.changed_n,
        "client_utc": answer.client_utc,
        "server_utc": utc(now),
        "status": "use",
        "comment": answer.comment or None,
    }


def _insert(db: sqlite3.Connection, row: dict[str, Any]) -> None:
    columns = ", ".join(f'"{name}"' for name in RATING_COLUMNS)
    marks = ", ".join("?" for _ in RATING_COLUMNS)
    db.execute(
        f"INSERT INTO ratings ({columns}) VALUES ({marks})",
        [row.get(name) for name in RATING_COLUMNS],
    )


def progress(db: sqlite3.Connection) -> dict[str, int]:
    """Counts for the study's state: sessions started and complete, ratings kept."""
    started, complete = db.execute(
        "SELECT count(*), coalesce(sum(state = 'complete'), 0) FROM sessions"
    ).fetchone()
    (ratings,) = db.execute(
        "SELECT count(*) FROM ratings WHERE trial_type != 'practice'"
    ).fetchone()
    return {"started": started, "complete": complete, "ratings": ratings}
