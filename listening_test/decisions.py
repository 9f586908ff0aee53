"""What whoever runs a study decides about a rater: left out by hand, or internal, a test run.

Each decision is an event that is kept: whose session, what, why, when. The last one of a session
and a rule holds, so a decision is taken back by the opposite one. Both rules take the rater's
answers out of the results, and out of what counts towards the wanted ratings: the place in the
design is free for somebody else (the view `left_out` of `database.py` says of which sessions).

Those that change something take the open transaction and run inside `Store.run`.
"""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from listening_test.columns import clean_text
from listening_test.rows import utc

BY_HAND: Final = "by hand"
INTERNAL: Final = "internal"
Rule = Literal["by hand", "internal"]
# What a decision makes of a rating's status.
STATUS = {BY_HAND: "exclude", INTERNAL: "test"}
MAX_REASON = 200


class BadDecision(ValueError):
    """A decision that cannot be taken; the text says what is lacking."""


@dataclass(frozen=True)
class Decision:
    """What can be decided: that a rule holds for a rater, or does so no longer."""

    rule: Rule
    holds: bool


DECISIONS = {
    "Leave out": Decision(BY_HAND, True),
    "Take back": Decision(BY_HAND, False),
    "Internal: a test run of ours": Decision(INTERNAL, True),
    "Not internal": Decision(INTERNAL, False),
}


def decide(
    db: sqlite3.Connection, rater_id: str, decision: Decision, reason: str, now: float
) -> None:
    """Note a decision about all sessions of a rater.

    Args:
        reason: printed with the results, so a must where somebody is left out by hand.
        now: seconds since 1970.

    Raises:
        BadDecision: nobody has that id, it is so already, or a reason is lacking or too long.
    """
    reason = clean_text(reason)
    if decision == DECISIONS["Leave out"] and not reason:
        raise BadDecision("Give a reason: it is printed with the results.")
    if len(reason) > MAX_REASON:
        raise BadDecision(f"The reason has {len(reason)} characters; {MAX_REASON} are room enough.")
    sessions = db.execute(
        "SELECT session_id FROM sessions WHERE rater_id = ?", (rater_id,)
    ).fetchall()
    if not sessions:
        raise BadDecision("Choose a rater: nobody with that id has a session here.")
    held = {
        row[0] for row in db.execute(
            "SELECT session_id FROM left_out WHERE rule = ?", (decision.rule,))
    }  # fmt: skip
    changed = [row[0] for row in sessions if (row[0] in held) != decision.holds]
    if not changed:
        raise BadDecision("It is so already: nothing was changed.")
    for session_id in changed:
        db.execute(
            "INSERT INTO decisions (decision_id, session_id, rule, holds, reason, server_utc) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                str(uuid.uuid4()), session_id, decision.rule, int(decision.holds), reason,
                _after_the_last(db, session_id, decision.rule, now),
            ),
        )  # fmt: skip


def _after_the_last(db: sqlite3.Connection, session_id: str, rule: Rule, now: float) -> str:
    """The time of a decision: later than the one before it, even if the clock was set back."""
    (last,) = db.execute(
        "SELECT max(server_utc) FROM decisions WHERE session_id = ? AND rule = ?",
        (session_id, rule),
    ).fetchone()
    if last is None or utc(now) > last:
        return utc(now)
    return (datetime.fromisoformat(last) + timedelta(milliseconds=1)).isoformat(
        timespec="milliseconds"
    )


def told(rule: str, reason: str, decided_utc: str, closed_utc: str | None) -> str:
    """A decision as the results print it, with its reason where somebody was left out by hand.

    Args:
        closed_utc: when the study was closed, and its results opened; None while it runs.
    """
    late = " after the results were open" if closed_utc and decided_utc > closed_utc else ""
    return f"{rule}{late}: {reason}" if rule == BY_HAND else f"{rule}{late}"
