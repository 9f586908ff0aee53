"""What a rater's page can ask for, one function each; each takes a `Call`.

What it returns becomes the answer's JSON, unless it is a response already. `server.py` says which
address asks for what, and turns a `Refused` into its answer. The rules are in `enrolment.py` and
`trials.py`, the disk is `store.py`'s.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response

from listening_test import enrolment, replies, resend, trials, wording
from listening_test.bodies import (
    MAX_COMMENT,
    QuestionnaireBody,
    RatingBody,
    SessionBody,
    WithdrawBody,
    body_of,
)
from listening_test.client import client_of
from listening_test.enrolment import Refused
from listening_test.hosting import Hosted
from listening_test.prepared import VOLUME_FILE, Texts
from listening_test.questionnaire import MAX_TEXT
from listening_test.store import NotSaved

T = TypeVar("T")
Json = dict[str, Any]
# Of the 20 s that a page waits for an answer.
SETTLE_S = 15.0


@dataclass(frozen=True)
class Call:
    """One request to an open study; `key` is its browser's, where there has to be one."""

    request: Request
    hosted: Hosted
    key: str

    async def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation; its effects are durable when this returns."""
        return await asyncio.wrap_future(self.hosted.store.run(operation))

    async def look(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation that writes nothing, beside a disk that refuses."""
        return await asyncio.to_thread(self.hosted.store.read, operation)

    @property
    def safe(self) -> int:
        """The trials that the browser says are safe off the machine, by any server of the study."""
        given = self.request.headers.get("x-safe", "")
        return int(given) if re.fullmatch(r"[0-9]{1,5}", given) else 0

    def told(self, db: sqlite3.Connection, state: Json) -> Json:
        """A session's state for its page; where ratings are copied, with what is safe."""
        copy = self.hosted.copy
        return copy.tell(db, self.key, state) if copy else state

    def standing(self, db: sqlite3.Connection, now: float) -> Json:
        """Where the session stands."""
        return self.told(db, trials.current_trial(db, self.hosted.study, self.key, now))


Asked = Callable[[Call], Awaitable[Json | Response]]


async def begin(call: Call) -> Json:
    """Consent: begin, or go on with, this browser's session."""
    body = await body_of(call.request, SessionBody)
    if not body.consent:
        raise Refused(400, "no_consent", "Without your consent there is no session.")
    study, copy, key, now = call.hosted.study, call.hosted.copy, call.key, time.time()
    rows = copy.rows() if copy else None
    client = client_of(call.request.headers.get("user-agent", ""), body.touch, body.ui_lang)

    def operation(db: sqlite3.Connection) -> Json:
        if body.ticket and copy:
            resend.readmit(db, study, key, body.ticket, now)
            copy.check_caught_up(db, key, call.safe)
        enrolment.start_session(db, study, key, body.ids, now, rows, client)
        return call.standing(db, now)

    try:
        return await call.run(operation)
    except Refused as error:
        if error.code == "no_place" and copy:
            copy.wake()  # it takes more places with each copy
        raise


async def trial(call: Call) -> Json:
    """Where the session stands, with the clips' tokens of the trial that is up."""
    now = time.time()

    def operation(db: sqlite3.Connection) -> Json:
        if call.hosted.copy:
            call.hosted.copy.check_caught_up(db, call.key, call.safe)
        return call.standing(db, now)

    try:
        return await call.run(operation)
    except NotSaved:
        return await call.look(operation)  # the clips of a trial that is up have their tokens


async def rate(call: Call) -> Json:
    """One trial's answers; acknowledged only after they are on disk."""
    body = await body_of(call.request, RatingBody)
    answer, now = body.answer(), time.time()
    study, copy, key = call.hosted.study, call.hosted.copy, call.key
    unsaved = call.hosted.unsaved_servings
    served = {heard.clip: unsaved[heard.clip] for heard in answer.clips if heard.clip in unsaved}

    def operation(db: sqlite3.Connection) -> Json:
        for token, at in served.items():
            trials.note_serving(db, token, at)
        if copy is None:
            state = trials.save_rating(db, study, key, answer, now)
            return {"saved": answer.rating_id, "next": state}
        copy.check_caught_up(db, key, call.safe)
        state = resend.save(db, study, key, answer, body.receipt or "", now)
        return {
            "saved": answer.rating_id,
            "receipt": resend.receipt(db, key, answer, now),
            "next": call.told(db, state),
        }

    saved = await call.run(operation)
    for token in served:
        unsaved.pop(token, None)
    return saved


async def about(call: Call) -> Json:
    """What the rater says about themselves, if anything."""
    answers = (await body_of(call.request, QuestionnaireBody)).answers
    study, now = call.hosted.study, time.time()
    return await call.run(
        lambda db: call.told(db, trials.save_profile(db, study, call.key, answers, now))
    )


async def volume_set(call: Call) -> Json:
    """The rater has set the volume."""
    study, now = call.hosted.study, time.time()
    return await call.run(lambda db: call.told(db, trials.volume_set(db, study, call.key, now)))


async def withdraw(call: Call) -> Json:
    """Delete all of this session."""
    body, now = await body_of(call.request, WithdrawBody), time.time()
    store, copy = call.hosted.store, call.hosted.copy

    def operation(db: sqlite3.Connection) -> int:
        if body.ticket and copy:
            resend.readmit(db, call.hosted.study, call.key, body.ticket, now)
        return trials.withdraw(db, call.key, now)

    withdrawn = await call.run(operation)
    # Deleted is told once it is so in the file too; one that cannot be written is an alarm.
    await asyncio.to_thread(store.settle, SETTLE_S)
    if copy:
        copy.wake()  # the copies still hold what was deleted
    return {"withdrawn": withdrawn}


async def clip(call: Call) -> Response:
    """The sound behind a token."""
    token, now = call.request.path_params["token"], time.time()
    try:
        stimulus_id = await call.run(lambda db: trials.serve_clip(db, token, now))
    except NotSaved:
        # A disk that refuses stops no sound; when it came is kept with the rating.
        stimulus_id = await call.look(lambda db: trials.stimulus_of(db, token))
        call.hosted.unsaved_servings.setdefault(token, now)
    data = await asyncio.to_thread(call.hosted.audio_path(stimulus_id).read_bytes)
    return replies.sound(data, call.request.headers.get("range"))


async def volume_sound(call: Call) -> Response:
    """The sound to set the volume by, the same for everyone."""
    path = call.hosted.study_dir / "serve" / VOLUME_FILE
    data = await asyncio.to_thread(path.read_bytes)
    return replies.sound(data, call.request.headers.get("range"))


async def texts(call: Call) -> Json:
    """The texts of the study, and what its page has to know of its form."""
    study = call.hosted.study
    closed = await call.look(enrolment.closed_utc)
    return {
        **_words(study.texts_in(study.language)),
        "languages": [_words(words) for words in study.texts.values()],
        "method": study.method,
        "names": study.layout.names,
        "in_turn": study.layout.in_turn,
        "trials": study.trials_per_session,
        "clips": study.clips_per_trial,
        "minutes": study.minutes,
        "practice": len(study.items("practice")),
        "headphones": any(screen.kind != "jnd" for screen in study.screens),
        "room": any(screen.kind == "jnd" for screen in study.screens),
        "platform": study.platform and study.platform.name,
        "max_comment": MAX_COMMENT,
        "max_text": MAX_TEXT,
        "closed": closed is not None,
    }


def _words(words: Texts) -> Json:
    """The study in one language, as its page shows it."""
    return {
        "language": words.language,
        "title": words.title,
        "consent": words.consent,
        "instructions": words.instructions,
        "payment": words.payment,
        "questions": [{"text": one.text, "options": one.options} for one in words.questions],
        "questionnaire": [asked.model_dump() for asked in words.questionnaire],
        "bands": wording.bands(words.language),
        "screens": wording.screen_words(words.language),
    }
