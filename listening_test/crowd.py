"""Crowd platforms: who comes from where, one session a person, and the way back with a code.

Prolific sends PROLIFIC_PID, STUDY_ID and SESSION_ID in the address and takes a completion code in
the address of its own page. MTurk (ExternalQuestion) sends workerId, assignmentId and hitId, shows
a preview before a worker accepts, and takes a POST to its externalSubmit address. The page hands
the ids over once, with the consent; here they become HMACs under the store's secret, and are not
kept in any other form. This module knows neither HTTP nor the tables.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from listening_test.study_parts import Platform

PROLIFIC_COMPLETE = "https://app.prolific.com/submissions/complete"
# Where MTurk takes submissions; anything else in the address is not believed.
MTURK_HOSTS = ("https://www.mturk.com", "https://workersandbox.mturk.com")
MTURK_PREVIEW = "ASSIGNMENT_ID_NOT_AVAILABLE"
# How a session ends: at its last trial, with too many wrong traps or without, or at a screen.
Ending = Literal["completed", "failed_check", "screened_out"]
# What each platform puts into the address: who, and which submission.
PARAMETERS = {
    "prolific": ("PROLIFIC_PID", "SESSION_ID"),
    "mturk": ("workerId", "assignmentId"),
}


# Prolific puts its ids in the place of these.
_PROLIFIC_QUERY = "&".join(
    f"{name}={{{{%{name}%}}}}" for name in ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")
)
_EXTERNAL_QUESTION = """\
<ExternalQuestion xmlns="http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/\
2006-07-14/ExternalQuestion.xsd">
  <ExternalURL>{url}</ExternalURL>
  <FrameHeight>0</FrameHeight>
</ExternalQuestion>"""


@dataclass(frozen=True)
class Invitation:
    """What to give to raters, or to their platform: `text` is to be copied, `what` it is."""

    what: str
    text: str


def invitation(platform: Platform | None, address: str) -> Invitation:
    """How raters of a platform come to a study.

    Args:
        address: of the study's own page, not of one that frames it and drops the platform's ids.
    """
    name = platform.name if platform else "open"
    if name == "prolific":
        return Invitation("Study URL for Prolific", f"{address}?{_PROLIFIC_QUERY}")
    if name == "mturk":
        secure = "" if address.startswith("https:") else " (which takes https addresses only)"
        return Invitation(
            f"ExternalQuestion for MTurk{secure}", _EXTERNAL_QUESTION.format(url=escape(address))
        )
    return Invitation("Address for raters", address)


@dataclass(frozen=True)
class Visitor:
    """Who comes, as HMACs; both empty where the study is open to anybody."""

    platform: str = "open"
    person: str | None = None
    submission: str | None = None


class NotFromPlatform(ValueError):
    """The address lacks what the platform puts into it."""


def visitor(platform: Platform | None, ids: dict[str, str], secret: bytes) -> Visitor:
    """The visitor behind the ids of the address.

    Raises:
        NotFromPlatform: the study is a platform's, and its ids are not there.
    """
    if platform is None:
        return Visitor()
    if platform.name == "lab":
        return Visitor("lab")
    person, submission = (ids.get(name, "") for name in PARAMETERS[platform.name])
    if submission == MTURK_PREVIEW:
        raise NotFromPlatform("This is a preview. Accept the task on MTurk to begin.")
    if not person or not submission:
        title = {"prolific": "Prolific", "mturk": "MTurk"}[platform.name]
        raise NotFromPlatform(
            f"This study is for participants of {title}: open it by the link there, since this "
            "address lacks your participant id."
        )
    return Visitor(
        platform.name,
        person_hash(platform, person, secret),
        _hashed(secret, f"{platform.name}/{person}/{submission}"),
    )


def person_hash(platform: Platform | None, person: str, secret: bytes) -> str:
    """The form in which a platform's id of a person is kept."""
    name = platform.name if platform else "open"
    return _hashed(secret, f"{name}/{person}")


def _hashed(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), "sha256").hexdigest()


def code_of(platform: Platform | None, ending: Ending) -> str | None:
    """The platform's own code for an ending of a session; None where it made none."""
    if platform is None:
        return None
    if ending == "screened_out":
        return platform.screened_out
    failed = platform.failed_check if ending == "failed_check" else None
    return failed or platform.completed


def way_back(platform: Platform | None, ending: Ending) -> dict[str, Any]:
    """What the page needs to send the rater back.

    Only sessions that ended so are told, so that nobody learns a code beforehand.
    """
    if platform is not None and platform.name == "mturk":
        return {} if ending == "screened_out" else {"submit": True}
    code = code_of(platform, ending)
    return {"back": f"{PROLIFIC_COMPLETE}?{urlencode({'cc': code})}"} if code else {}
