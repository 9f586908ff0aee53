"""What the rater's browser keeps until it is safe, and how a server that lost its disk trusts it.

A ticket is a session's own facts, a receipt says when one answer was acknowledged. Both are
signed with the store's salt, which was off the machine before the first rater came, so they are
believed after the disk is gone; neither can be made up or altered, and neither names a system.
"""

from __future__ import annotations

import base64
import hmac
import json
import sqlite3
from dataclasses import asdict
from typing import Any

from listening_test import enrolment, trials
from listening_test.enrolment import Refused
from listening_test.prepared import PreparedStudy
from listening_test.rows import Answer

# What start_session draws or is told; all else follows from the answers.
_FACTS = (
    "session_id", "rater_id", "platform", "design_row", "consent_utc", "person", "submission",
    "consent_version", "ui_lang", "device", "browser",
)  # fmt: skip
TICKET_PATTERN = r"^[A-Za-z0-9_=-]{1,1500}\.[0-9a-f]{64}$"
RECEIPT_PATTERN = r"^[0-9]{1,17}\.[0-9a-f]{64}$"


def _signed(db: sqlite3.Connection, kind: str, text: str) -> str:
    salt = db.execute("SELECT value FROM meta WHERE name = 'salt'").fetchone()[0]
    return hmac.new(bytes.fromhex(salt), f"{kind}\0{text}".encode(), "sha256").hexdigest()


def ticket(db: sqlite3.Connection, session: sqlite3.Row) -> str:
    """The session's facts, signed."""
    facts = json.dumps([session[name] for name in _FACTS])
    text = base64.urlsafe_b64encode(facts.encode()).decode()
    return f"{text}.{_signed(db, 'ticket', text)}"


def readmit(db: sqlite3.Connection, study: PreparedStudy, key: str, given: str, now: float) -> None:
    """Bring back the session of a ticket, with none of its answers, if it is not here.

    Raises:
        Refused: the ticket is false, its session was deleted, or goes on in another browser. Then
            the rater is asked for consent before a session begins anew.
    """
    if enrolment.known(db, key):
        return
    refused = Refused(401, "no_session", "This session is not known. Reload the page to start.")
    text, _, signature = given.partition(".")
    if not hmac.compare_digest(signature, _signed(db, "ticket", text)):
        raise refused
    # Not strict: a ticket of an earlier version lacks the last ones.
    facts = dict(zip(_FACTS, json.loads(base64.urlsafe_b64decode(text)), strict=False))
    taken = db.execute(
        "SELECT 1 FROM sessions WHERE session_id = ? OR (person IS NOT NULL AND person = ?) "
        "UNION ALL SELECT 1 FROM gone WHERE \"table\" = 'sessions' AND key = ?",
        (facts["session_id"], facts["person"], facts["session_id"]),
    ).fetchone()
    if taken is not None:
        raise refused
    enrolment.insert_session(db, study, key, facts, now)


def _told(session_id: str, answer: Answer, at_us: int) -> str:
    return json.dumps([session_id, at_us, asdict(answer)], sort_keys=True)


def receipt(db: sqlite3.Connection, key: str, answer: Answer, now: float) -> str:
    """That this session's answer was acknowledged, and when."""
    at_us = round(1e6 * now)
    told = _told(enrolment.session_of(db, key)["session_id"], answer, at_us)
    return f"{at_us}.{_signed(db, 'receipt', told)}"


def acknowledged(db: sqlite3.Connection, key: str, answer: Answer, given: str) -> float | None:
    """When this very answer was acknowledged by a server of this study; None if it never was."""
    at_us, _, signature = given.partition(".")
    if not given:
        return None
    told = _told(enrolment.session_of(db, key)["session_id"], answer, int(at_us))
    if not hmac.compare_digest(signature, _signed(db, "receipt", told)):
        return None
    return int(at_us) / 1e6


def save(
    db: sqlite3.Connection,
    study: PreparedStudy,
    key: str,
    answer: Answer,
    given: str,
    now: float,
) -> dict[str, Any]:
    """`trials.save_rating`; an answer with its receipt was heard before, and keeps its time."""
    then = acknowledged(db, key, answer, given)
    if then is None:
        return trials.save_rating(db, study, key, answer, now)
    state = trials.save_rating(db, study, key, answer, then, heard=True)
    enrolment.touch(db, key, now)
    return state
