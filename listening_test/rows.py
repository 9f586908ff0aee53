"""From one trial's answers to rows of ratings: one a question, or one a clip of a MUSHRA trial.

Which columns there are is `columns.py`'s; whether an answer counts is `trials.py`'s.
"""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from listening_test.columns import SCHEMA_VERSION
from listening_test.methods import Question, Value
from listening_test.prepared import PreparedStudy
from listening_test.session_plan import Trial
from listening_test.wording import standard


@dataclass(frozen=True)
class Heard:
    """What the browser claims of one clip: its token, and how often and how long it was heard."""

    clip: str
    plays: int
    listened_ms: int


@dataclass(frozen=True)
class Answer:
    """One trial's answers as the browser claims them. Times in milliseconds.

    `answers`: one a question, in their order; for sliders one a clip, in the order shown.
    """

    rating_id: str
    trial_index: int
    clips: tuple[Heard, ...]
    answers: tuple[Value, ...]
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


def rating_rows(
    study: PreparedStudy,
    session: sqlite3.Row,
    trial: Trial,
    shown: tuple[str, ...],
    answer: Answer,
    now: float,
) -> list[dict[str, Any]]:
    """The rows of one answered trial. The first has the browser's key, the others keys from it."""
    common = {
        "schema_version": SCHEMA_VERSION,
        "study_id": study.study_id,
        "config_sha256": study.config_sha256,
        "session_id": session["session_id"],
        "rater_id": session["rater_id"],
        "platform": session["platform"],
        "block_id": session["design_row"],
        "design_row": session["design_row"],
        "trial_index": answer.trial_index,
        "trial_type": trial.trial_type,
        "method": study.method,
        "item_id": trial.item_id,
        "ui_lang": answer.ui_lang,
        "rt_ms": answer.rt_ms,
        "first_play_to_submit_ms": answer.first_play_to_submit_ms,
        "hidden_ms": answer.hidden_ms,
        "changed_n": answer.changed_n,
        "client_utc": answer.client_utc,
        "server_utc": utc(now),
        "status": "use",
        "comment": answer.comment or None,
    }
    rows = []
    questions = study.texts_in(answer.ui_lang).questions
    for number, value in enumerate(answer.answers):
        sliders = not questions[0].options
        question = questions[0] if sliders else questions[number]
        rated = len(shown) - len(trial.clips) + number if sliders else 0
        rows.append(
            common
            | {"rating_id": _key(answer.rating_id, number)}
            | _clips(study, shown, answer, rated)
            | _given(trial, question, value, answer.ui_lang, number == len(answer.answers) - 1)
        )
    return rows


def _key(rating_id: str, number: int) -> str:
    """The browser's key for the first row, one computed from it for each further row."""
    if not number:
        return rating_id
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{rating_id}/{number}"))


def _clips(
    study: PreparedStudy, shown: tuple[str, ...], answer: Answer, rated: int
) -> dict[str, Any]:
    """The rated clip; of a pair also the other one, in the order shown.

    Of a reference and a clip the clip is rated, though it is heard second; beside the open
    reference of a MUSHRA trial it is the one at `rated`.
    """
    places: dict[str, tuple[int, int | None]] = {
        "each": (0, None), "pair": (0, 1), "reference": (1, 0), "all": (rated, 0),
    }  # fmt: skip
    one, two = places[study.layout.conditions]
    cells = _heard(study, shown[one], answer.clips[one])
    if two is not None:
        cells |= {f"{k}_b": v for k, v in _heard(study, shown[two], answer.clips[two]).items()}
        cells["stimulus_b_id"] = cells.pop("stimulus_id_b")
    return cells


def _heard(study: PreparedStudy, stimulus_id: str, heard: Heard) -> dict[str, Any]:
    duration_ms = 1000 * study.by_id[stimulus_id].duration_s
    return {
        "stimulus_id": stimulus_id,
        "plays": heard.plays,
        "listened_ms": heard.listened_ms,
        "listened_fraction": round(heard.listened_ms / duration_ms, 3),
    }


def _label(question: Question, value: Value, language: str) -> str:
    """What the rater saw beside the answer."""
    label = question.label(value)
    return label if question.options else standard(label, language)


def _given(
    trial: Trial, question: Question, value: Value, language: str, last: bool
) -> dict[str, Any]:
    """The answer; and whether it is the right one, where the question asked last has one."""
    chosen = isinstance(value, str)
    cells: dict[str, Any] = {
        "dimension": question.dimension,
        "score": None if chosen else value,
        "choice": value if chosen else None,
        "scale_id": question.scale_id,
        "label_shown": _label(question, value, language),
    }
    if trial.answer is not None and last:
        if isinstance(value, int) and isinstance(trial.answer, int):
            cells["expected_score"] = trial.answer
            cells["check_passed"] = int(abs(value - trial.answer) <= trial.tolerance)
        else:
            cells["check_passed"] = int(value == trial.answer)
    return cells
