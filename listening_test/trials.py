"""The rules within a session: which trial is up, which clip may be heard, which rating counts.

Every function here takes the open transaction first and runs inside `Store.run`, so what it
checks and what it writes are one atomic step. Times come from the caller (seconds since 1970).
It knows no HTTP and no system names; how a session begins is in `enrolment.py`, how an answer
becomes rows in `rows.py`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from typing import Any

from listening_test import crowd
from listening_test.columns import RATING_COLUMNS
from listening_test.enrolment import Refused, session_of, stop_if_due
from listening_test.methods import Question
from listening_test.prepared import PreparedStudy
from listening_test.questionnaire import checked
from listening_test.rows import Answer, rating_rows, utc
from listening_test.screening import QUESTIONS as SCREEN_QUESTIONS
from listening_test.session_plan import Trial
from listening_test.withdraw import forget

# Trials that lead up to the test and count on their own.
_SCREENS = ("screen", "environment")
_BEFORE = (*_SCREENS, "practice")
# The browser's clock of played sound is coarse (it counts in animation frames).
HEARD_SLACK_MS = 150


def withdraw(db: sqlite3.Connection, key: str, now: float) -> int:
    """Delete the session of the browser that holds `key`; returns the number of ratings deleted."""
    return forget(db, session_of(db, key)["session_id"], "rater", now)


def save_profile(
    db: sqlite3.Connection, study: PreparedStudy, key: str, answers: dict[str, str], now: float
) -> dict[str, Any]:
    """Keep what the rater says about themselves; returns where the session stands.

    The first answers count: a retry, or a second tab, changes nothing.

    Raises:
        Refused: an answer that the questionnaire does not know.
    """
    session = session_of(db, key)
    try:
        kept = checked(study.questionnaire, answers)
    except ValueError as error:
        raise Refused(422, "bad_request", f"Not understood: {error}.") from None
    db.execute(
        "INSERT OR IGNORE INTO profiles VALUES (?, ?, ?)",
        (session["session_id"], json.dumps(kept, ensure_ascii=False), utc(now)),
    )
    return current_trial(db, study, key, now)


def volume_set(
    db: sqlite3.Connection, study: PreparedStudy, key: str, now: float
) -> dict[str, Any]:
    """Keep that the rater has set a comfortable volume, and when first."""
    db.execute(
        "UPDATE sessions SET volume_utc = coalesce(volume_utc, ?) WHERE session_id = ?",
        (utc(now), session_of(db, key)["session_id"]),
    )
    return current_trial(db, study, key, now)


def _unasked(db: sqlite3.Connection, study: PreparedStudy, session: sqlite3.Row) -> bool:
    """Whether the questionnaire is still to come."""
    return bool(study.questionnaire) and not (
        session["n_done"]
        or db.execute(
            "SELECT 1 FROM profiles WHERE session_id = ?", (session["session_id"],)
        ).fetchone()
    )


def _trials(session: sqlite3.Row) -> list[Trial]:
    return [
        Trial(**{**trial, "clips": tuple(trial["clips"])})
        for trial in json.loads(session["trials"])
    ]


def current_trial(
    db: sqlite3.Connection, study: PreparedStudy, key: str, now: float
) -> dict[str, Any]:
    """Where the session stands: the trial to do with its clips' tokens, or done with the code.

    A token is random, belongs to this session, trial and place, and dies when the trial is rated.
    """
    session = session_of(db, key)
    return _standing(db, study, session, _trials(session), now)


def _standing(
    db: sqlite3.Connection,
    study: PreparedStudy,
    session: sqlite3.Row,
    order: list[Trial],
    now: float,
) -> dict[str, Any]:
    if session["state"] == "screened_out":
        back = crowd.way_back(study.platform, "screened_out")
        room = {"check": "environment"} if session["environment_passed"] == 0 else {}
        return {"state": "screened_out", **room, **back}
    if _unasked(db, study, session):
        return {"state": "questionnaire"}
    index = session["n_done"] + 1
    stages = [t.trial_type if t.trial_type in _BEFORE else "trial" for t in order]
    if index > len(order):
        ending = _ending(db, study, session["session_id"])
        return {"state": "done", "total": stages.count("trial"),
                "code": crowd.code_of(study.platform, ending) or session["completion_code"],
                **crowd.way_back(study.platform, ending)}  # fmt: skip
    stage = stages[index - 1]
    state = {
        "state": stage,
        "trial_index": index,
        "number": stages[:index].count(stage),
        "total": stages.count(stage),
        "clips": _tokens(db, session["session_id"], index, _shown(study, order[index - 1]), now),
    }
    if stage in _SCREENS:
        question = _asked(study, order[index - 1])[0]
        state["question"] = {"text": question.text, "options": question.options}
    return state


def _ending(db: sqlite3.Connection, study: PreparedStudy, session_id: str) -> crowd.Ending:
    """How a session ended that came to its last trial."""
    (wrong,) = db.execute(
        "SELECT count(*) FROM ratings WHERE session_id = ? AND trial_type = 'trap' "
        "AND check_passed = 0",
        (session_id,),
    ).fetchone()
    return "failed_check" if wrong > study.traps_forgiven else "completed"


def _asked(study: PreparedStudy, trial: Trial) -> tuple[Question, ...]:
    """The questions of a trial: the study's, or a screen's one."""
    if trial.trial_type in _SCREENS:
        return (SCREEN_QUESTIONS[trial.item_id],)
    return study.questions


def _shown(study: PreparedStudy, trial: Trial) -> tuple[str, ...]:
    """The clips on the page: the trial's, with the open reference of a MUSHRA test before them."""
    if study.layout.conditions != "all" or trial.trial_type in _SCREENS:
        return trial.clips
    assert study.reference_arm is not None
    return (study.places[trial.item_id, study.reference_arm], *trial.clips)


def _tokens(
    db: sqlite3.Connection, session_id: str, index: int, clips: tuple[str, ...], now: float
) -> list[str]:
    known = db.execute(
        "SELECT token FROM clips WHERE session_id = ? AND trial_index = ? ORDER BY place",
        (session_id, index),
    ).fetchall()
    if known:
        return [row[0] for row in known]
    tokens = [secrets.token_urlsafe(18) for _ in clips]
    db.executemany(
        "INSERT INTO clips (token, session_id, trial_index, place, stimulus_id) "
        "VALUES (?, ?, ?, ?, ?)",
        [(token, session_id, index, *placed) for token, placed in zip(
            tokens, enumerate(clips), strict=True)],
    )  # fmt: skip
    db.execute("UPDATE sessions SET last_seen = ? WHERE session_id = ?", (now, session_id))
    if index == 1:
        db.execute(
            "UPDATE sessions SET started_utc = ? WHERE session_id = ?", (utc(now), session_id)
        )
    return tokens


def serve_clip(db: sqlite3.Connection, token: str, now: float) -> str:
    """Stimulus id behind a living token; the time of the first serving is kept.

    A first serving in the future means that the clock was set back since: it counts anew, or the
    rater would be refused until the clock has caught up.
    """
    stimulus_id = stimulus_of(db, token)
    note_serving(db, token, now)
    return stimulus_id


def stimulus_of(db: sqlite3.Connection, token: str) -> str:
    """Stimulus id behind a living token; Refused if there is none."""
    clip = db.execute("SELECT stimulus_id FROM clips WHERE token = ?", (token,)).fetchone()
    if clip is None:
        raise Refused(404, "no_clip", "This clip is not open (any more).")
    return str(clip["stimulus_id"])


def note_serving(db: sqlite3.Connection, token: str, at: float) -> None:
    """Keep when a clip was served, unless an earlier time is kept or the token has died."""
    db.execute(
        "UPDATE clips SET first_served = ? "
        "WHERE token = ? AND (first_served IS NULL OR first_served > ?)",
        (at, token, at),
    )


def save_rating(
    db: sqlite3.Connection,
    study: PreparedStudy,
    key: str,
    answer: Answer,
    now: float,
    heard: bool = False,
) -> dict[str, Any]:
    """Store one trial's answers, or recognise them as stored; returns where the session stands.

    `heard`: it is known already that the clips were heard (see `resend.py`).

    Raises:
        Refused: out of order, for another's clip, without having heard it, or no possible answer.
    """
    session = session_of(db, key)
    order = _trials(session)
    if _kept_already(db, study, session, order, answer, now):
        return _standing(db, study, session, order, now)
    if answer.trial_index != session["n_done"] + 1 or answer.trial_index > len(order):
        raise Refused(409, "out_of_order", "This clip was rated already, or is not up yet.")
    trial = order[answer.trial_index - 1]
    shown = _shown(study, trial)
    _check_answers(study, trial, answer)
    if not heard:
        _check_heard(db, study, session["session_id"], shown, answer, now)
    state = "complete" if answer.trial_index == len(order) else "started"
    if trial.trial_type in _SCREENS:
        if _ends_session(db, study, session, order, answer, now):
            state = "screened_out"
    else:
        for row in rating_rows(study, session, trial, shown, answer, now):
            _insert(db, row)
    db.execute(
        "DELETE FROM clips WHERE session_id = ? AND trial_index = ?",
        (session["session_id"], answer.trial_index),
    )
    db.execute(
        "UPDATE sessions SET n_done = ?, last_seen = ?, state = ?, completion_code = ? "
        "WHERE session_id = ?",
        (
            answer.trial_index, now, state,
            secrets.token_hex(4).upper() if state == "complete" else None, session["session_id"],
        ),
    )  # fmt: skip
    if state == "complete":
        stop_if_due(db, study, now)
    return _standing(db, study, session_of(db, key), order, now)


def _ends_session(
    db: sqlite3.Connection,
    study: PreparedStudy,
    session: sqlite3.Row,
    order: list[Trial],
    answer: Answer,
    now: float,
) -> bool:
    """Keep one screening answer; whether it was the last, too few were right, and that ends it."""
    trial = order[answer.trial_index - 1]
    screen = next(screen for screen in study.screens if screen.kind == trial.item_id)
    db.execute(
        "INSERT INTO screens VALUES (?, ?, ?, ?, ?, ?)",
        (
            answer.rating_id, session["session_id"], answer.trial_index, answer.answers[0],
            int(answer.answers[0] == trial.answer), utc(now),
        ),
    )  # fmt: skip
    own = [number for number, other in enumerate(order, 1) if other.item_id == screen.kind
           and other.trial_type == trial.trial_type]  # fmt: skip
    n, right = db.execute(
        "SELECT count(*), sum(passed) FROM screens "
        "WHERE session_id = ? AND trial_index BETWEEN ? AND ?",
        (session["session_id"], own[0], own[-1]),
    ).fetchone()
    if n < len(screen.trials):
        return False
    passed = right >= screen.passes
    if screen.kind == "jnd":
        found = {"environment_right": right, "environment_passed": int(passed)}
    else:  # of two headphone screens both count
        kinds = [session["headphones"], screen.kind]
        before = session["headphones_passed"]
        found = {
            "headphones": "+".join(filter(None, kinds)),
            "headphones_right": right + (session["headphones_right"] or 0),
            "headphones_passed": int(passed and before != 0),
        }
    db.execute(
        f"UPDATE sessions SET {', '.join(f'{name} = ?' for name in found)} WHERE session_id = ?",
        [*found.values(), session["session_id"]],
    )
    return screen.screens_out and not passed


def _kept_already(
    db: sqlite3.Connection,
    study: PreparedStudy,
    session: sqlite3.Row,
    order: list[Trial],
    answer: Answer,
    now: float,
) -> bool:
    """Whether these very answers are stored; their key under other answers is refused."""
    screened = db.execute(
        "SELECT session_id, trial_index, answer FROM screens WHERE rating_id = ?",
        (answer.rating_id,),
    ).fetchone()
    if screened is not None:
        if tuple(screened) == (session["session_id"], answer.trial_index, answer.answers[0]):
            return True
        raise Refused(409, "key_reused", "This rating key was used for another rating.")
    kept = db.execute("SELECT * FROM ratings WHERE rating_id = ?", (answer.rating_id,)).fetchone()
    if kept is None:
        return False
    here = (kept["session_id"], kept["trial_index"])
    if here == (session["session_id"], answer.trial_index):
        trial = order[answer.trial_index - 1]
        _check_answers(study, trial, answer)
        rows = rating_rows(study, session, trial, _shown(study, trial), answer, now)
        stored = db.execute(
            "SELECT rating_id, score, choice FROM ratings WHERE session_id = ? AND trial_index = ?",
            here,
        ).fetchall()
        if {tuple(row) for row in stored} == {
            (row["rating_id"], row["score"], row["choice"]) for row in rows
        }:
            return True
    raise Refused(409, "key_reused", "This rating key was used for another rating.")


def _check_answers(study: PreparedStudy, trial: Trial, answer: Answer) -> None:
    """One answer a question, or one a clip where the scale is a slider; each of them possible."""
    asked = _asked(study, trial)
    if not asked[0].options:
        asked *= len(trial.clips)
    wanted = len(asked)
    if len(answer.answers) != wanted or not all(
        question.allows(value) for question, value in zip(asked, answer.answers, strict=True)
    ):
        raise Refused(422, "bad_request", f"Not understood: this trial takes {wanted} answers.")


def _check_heard(
    db: sqlite3.Connection,
    study: PreparedStudy,
    session_id: str,
    shown: tuple[str, ...],
    answer: Answer,
    now: float,
) -> None:
    """Every clip of the trial: ours, served long enough ago, and said to be heard whole."""
    if len(answer.clips) != len(shown):
        raise Refused(403, "foreign_clip", "These are not the clips of this trial.")
    for place, (heard, stimulus_id) in enumerate(zip(answer.clips, shown, strict=True)):
        clip = db.execute("SELECT * FROM clips WHERE token = ?", (heard.clip,)).fetchone()
        belongs = (session_id, answer.trial_index, place)
        if clip is None or (clip["session_id"], clip["trial_index"], clip["place"]) != belongs:
            raise Refused(403, "foreign_clip", "This clip does not belong to this trial.")
        duration_ms = 1000 * study.by_id[stimulus_id].duration_s
        first = clip["first_served"]
        since_served = None if first is None else 1000 * (now - first)
        if (
            since_served is None
            or heard.plays < 1
            or since_served < duration_ms
            or heard.listened_ms < duration_ms - HEARD_SLACK_MS
            or heard.listened_ms > since_served + HEARD_SLACK_MS
        ):
            raise Refused(409, "not_heard", "Please listen to the whole clip before you rate it.")


def _insert(db: sqlite3.Connection, row: dict[str, Any]) -> None:
    columns = ", ".join(f'"{name}"' for name in RATING_COLUMNS)
    marks = ", ".join("?" for _ in RATING_COLUMNS)
    db.execute(
        f"INSERT INTO ratings ({columns}) VALUES ({marks})",
        [row.get(name) for name in RATING_COLUMNS],
    )


def progress(db: sqlite3.Connection) -> dict[str, int]:
    """Counts for the study's state: sessions started and complete, trials rated, decisions.

    Whom a decision leaves out is started, and counts no further.
    """
    left_out = "session_id IN (SELECT session_id FROM left_out)"
    started, complete = db.execute(
        f"SELECT count(*), coalesce(sum(state = 'complete' AND NOT {left_out}), 0) FROM sessions"
    ).fetchone()
    rated = "SELECT count(*) FROM ratings WHERE trial_type != 'practice'"
    (ratings,) = db.execute(f"SELECT ({rated}) - ({rated} AND {left_out})").fetchone()
    (withdrawn,) = db.execute("SELECT count(*) FROM withdrawals").fetchone()
    (decisions,) = db.execute("SELECT count(*) FROM decisions").fetchone()
    return {
        "started": started, "complete": complete, "ratings": ratings, "withdrawn": withdrawn,
        "decisions": decisions,
    }  # fmt: skip
