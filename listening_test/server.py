"""HTTP for raters: the page, the session, one clip at a time by random token, the ratings.

    attach(app, studies)      adds the routes below to a FastAPI app (Gradio's is one)

    GET  /listen/<study>                 the page (static; nothing of systems in it)
    GET  /listen/<study>/page.css, *.js  its style and scripts
    GET  /listen/<study>/study           texts of the study
    POST /listen/<study>/session         consent: begin, or go on with, this browser's session
    GET  /listen/<study>/trial           where the session stands, with the clip's token
    GET  /listen/<study>/clip/<token>    sound; no name, no ETag, no cache; Range honoured
    POST /listen/<study>/rating          one rating; answered only after it is on disk
    GET  /listen/<study>/volume          the sound to set the volume by, the same for everyone
    POST /listen/<study>/volume          the rater has set it
    POST /listen/<study>/questionnaire   what the rater says about themselves, if anything
    POST /listen/<study>/withdraw        delete all of this session

A refusal is JSON {"error": code, "message": sentence} and stores nothing. The session key is
made by the browser and travels in the header X-Session, never in an address. This module knows
HTTP; the rules are in `enrolment.py` and `trials.py`, the disk in `store.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute

from listening_test import enrolment, resend, trials, wording
from listening_test.columns import clean_text
from listening_test.crowd import MTURK_HOSTS
from listening_test.enrolment import Refused
from listening_test.hosting import Hosted, Studies
from listening_test.prepared import VOLUME_FILE, Texts
from listening_test.questionnaire import MAX_TEXT
from listening_test.rows import Answer, Heard
from listening_test.store import NotSaved

T = TypeVar("T")
log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_SCRIPTS = (
    "page.js", "net.js", "kept.js", "clips.js", "questions.js", "crowd.js", "strings.js",
    "about.js", "withdraw.js", "volume.js",
)  # fmt: skip
_PAGE_FILES = {"page.css": "text/css"} | dict.fromkeys(_SCRIPTS, "text/javascript")
# A rating is below 2 kB; four times the longest comment leaves room for escapes.
MAX_BODY = 16_384
MAX_COMMENT = 1000
# Of the 20 s that a page waits for an answer.
SETTLE_S = 15.0
# As many systems as a study can have, the open reference and two anchors.
MAX_CLIPS = 29
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_PAGE_HEADERS = {
    **_NO_STORE,
    # Nothing may come from anywhere but this server, and no rating goes elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "media-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'self'; "
    # A worker's submission may go to MTurk.
    f"form-action {' '.join(MTURK_HOSTS)}",
    "Referrer-Policy": "no-referrer",
}
_SESSION_KEY = re.compile(r"[A-Za-z0-9_-]{22,64}")

Count = Annotated[StrictInt, Field(ge=0, le=10**6)]
ChosenValue = StrictInt | Annotated[StrictStr, Field(max_length=8)]
PlatformKey = Annotated[StrictStr, Field(pattern=r"^[A-Za-z_]{1,20}$")]
PlatformId = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.:-]{0,128}$")]
Ticket = Annotated[StrictStr, Field(pattern=resend.TICKET_PATTERN)]
Milliseconds = Annotated[StrictInt, Field(ge=0, le=10**9)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SessionBody(_Body):
    """Start of a session: only with consent; `ids` are a platform's, from the page's address."""

    consent: bool
    ids: Annotated[dict[PlatformKey, PlatformId], Field(max_length=8)] = {}
    ticket: Ticket | None = None


class QuestionnaireBody(_Body):
    """Answers by the questions' ids; none of them is a must."""

    answers: Annotated[
        dict[
            Annotated[StrictStr, Field(max_length=30)], Annotated[StrictStr, Field(max_length=300)]
        ],
        Field(max_length=12),
    ]


class WithdrawBody(_Body):
    """The second step of a withdrawal."""

    confirmed: Literal[True]
    ticket: Ticket | None = None


class HeardBody(_Body):
    """What the page claims of one clip."""

    clip: Annotated[StrictStr, Field(max_length=64)]
    plays: Count = 0
    listened_ms: Milliseconds = 0


class RatingBody(_Body):
    """One trial's answers as the page sends them."""

    rating_id: UUID
    trial_index: Annotated[StrictInt, Field(ge=1, le=10**4)]
    clips: Annotated[list[HeardBody], Field(min_length=1, max_length=MAX_CLIPS)]
    answers: Annotated[list[ChosenValue], Field(min_length=1, max_length=MAX_CLIPS)]
    rt_ms: Milliseconds = 0
    first_play_to_submit_ms: Milliseconds = 0
    hidden_ms: Milliseconds = 0
    changed_n: Count = 0
    comment: Annotated[StrictStr, Field(max_length=MAX_COMMENT)] = ""
    client_utc: Annotated[StrictStr, Field(pattern=r"^[0-9T:.Z+-]{0,40}$")] = ""
    ui_lang: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9-]{0,35}$")] = ""
    receipt: Annotated[StrictStr, Field(pattern=resend.RECEIPT_PATTERN)] | None = None

    def answer(self) -> Answer:
        """The claim with its text made safe to keep."""
        values = self.model_dump(exclude={"receipt"})
        values["rating_id"] = str(self.rating_id)
        values["clips"] = tuple(Heard(**clip) for clip in values["clips"])
        values["answers"] = tuple(self.answers)
        values["comment"] = clean_text(self.comment)
        return Answer(**values)


def attach(app: FastAPI, studies: Studies) -> None:
    """Add the raters' routes to `app`, before any catch-all route it may have."""
    before: list[BaseRoute] = list(app.router.routes)
    app.include_router(router(studies))
    added = [route for route in app.router.routes if route not in before]
    app.router.routes[:] = added + before


def router(studies: Studies) -> APIRouter:
    """The routes above, for the studies of one process."""
    routes = APIRouter(prefix="/listen/{study_id}", include_in_schema=False)
    _add_page_routes(routes, studies)

    @routes.post("/session")
    async def session(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            body = await _body(request, SessionBody)
            if not body.consent:
                raise Refused(400, "no_consent", "Without your consent there is no session.")
            now, safe = time.time(), _safe(request)
            rows = hosted.copy.rows() if hosted.copy else None

            def operation(db: sqlite3.Connection) -> dict[str, Any]:
                if body.ticket and hosted.copy:
                    resend.readmit(db, hosted.study, key, body.ticket, now)
                    hosted.copy.check_caught_up(db, key, safe)
                enrolment.start_session(db, hosted.study, key, body.ids, now, rows)
                return _told(hosted, db, key, trials.current_trial(db, hosted.study, key, now))

            return await _run(hosted, operation)

        return await _answer(studies, study_id, request, reply)

    @routes.get("/trial")
    async def trial(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            now, safe = time.time(), _safe(request)

            def operation(db: sqlite3.Connection) -> dict[str, Any]:
                if hosted.copy:
                    hosted.copy.check_caught_up(db, key, safe)
                return _told(hosted, db, key, trials.current_trial(db, hosted.study, key, now))

            return await _run(hosted, operation)

        return await _answer(studies, study_id, request, reply)

    @routes.post("/rating")
    async def rating(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            body = await _body(request, RatingBody)
            answer, now, safe = body.answer(), time.time(), _safe(request)

            def operation(db: sqlite3.Connection) -> dict[str, Any]:
                if hosted.copy is None:
                    state = trials.save_rating(db, hosted.study, key, answer, now)
                    return {"saved": answer.rating_id, "next": state}
                hosted.copy.check_caught_up(db, key, safe)
                state = resend.save(db, hosted.study, key, answer, body.receipt or "", now)
                return {
                    "saved": answer.rating_id,
                    "receipt": resend.receipt(db, key, answer, now),
                    "next": _told(hosted, db, key, state),
                }

            return await _run(hosted, operation)

        return await _answer(studies, study_id, request, reply)

    @routes.post("/questionnaire")
    async def questionnaire(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            answers = (await _body(request, QuestionnaireBody)).answers
            now = time.time()

            def operation(db: sqlite3.Connection) -> dict[str, Any]:
                state = trials.save_profile(db, hosted.study, key, answers, now)
                return _told(hosted, db, key, state)

            return await _run(hosted, operation)

        return await _answer(studies, study_id, request, reply)

    @routes.post("/volume")
    async def volume(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            now = time.time()

            def operation(db: sqlite3.Connection) -> dict[str, Any]:
                return _told(hosted, db, key, trials.volume_set(db, hosted.study, key, now))

            return await _run(hosted, operation)

        return await _answer(studies, study_id, request, reply)

    @routes.post("/withdraw")
    async def withdraw(study_id: str, request: Request) -> Response:
        async def reply(hosted: Hosted, key: str) -> dict[str, Any]:
            body, now = await _body(request, WithdrawBody), time.time()

            def operation(db: sqlite3.Connection) -> int:
                if body.ticket and hosted.copy:
                    resend.readmit(db, hosted.study, key, body.ticket, now)
                return trials.withdraw(db, key, now)

            withdrawn = await _run(hosted, operation)
            # Deleted is told once it is so in the file too; one that cannot be written is an alarm.
            await asyncio.to_thread(hosted.store.settle, SETTLE_S)
            if hosted.copy:
                hosted.copy.wake()  # the copies still hold what was deleted
            return {"withdrawn": withdrawn}

        return await _answer(studies, study_id, request, reply)

    @routes.get("/clip/{token}")
    async def clip(study_id: str, token: str, request: Request) -> Response:
        try:
            hosted = _hosted(studies, study_id)
            now = time.time()
            stimulus_id = await _run(hosted, lambda db: trials.serve_clip(db, token, now))
            data = await asyncio.to_thread(hosted.audio_path(stimulus_id).read_bytes)
        except Refused as error:
            return _refusal(request, error)
        except (NotSaved, OSError) as error:
            return _not_saved(error)
        return _sound(data, request.headers.get("range"))

    return routes


def _add_page_routes(routes: APIRouter, studies: Studies) -> None:
    @routes.get("")
    async def page(study_id: str) -> Response:
        if studies.status(study_id) is None:
            return Response("There is no such study here.", 404, _NO_STORE, "text/plain")
        # study_id is one of ours, hence a slug: safe in an attribute.
        html = (PAGE / "index.html").read_text(encoding="utf-8").replace("{study}", study_id)
        return Response(html, headers=_PAGE_HEADERS, media_type="text/html")

    @routes.get("/volume")
    async def volume_sound(study_id: str, request: Request) -> Response:
        try:
            path = _hosted(studies, study_id).study_dir / "serve" / VOLUME_FILE
            data = await asyncio.to_thread(path.read_bytes)
        except Refused as error:
            return _refusal(request, error)
        except OSError as error:
            return _not_saved(error)
        return _sound(data, request.headers.get("range"))

    for name, media_type in _PAGE_FILES.items():
        _add_file(routes, name, media_type)

    @routes.get("/study")
    async def texts(study_id: str, request: Request) -> Response:
        try:
            hosted = _hosted(studies, study_id)
            study = hosted.study
            closed = await asyncio.to_thread(hosted.store.read, enrolment.closed_utc)
        except Refused as error:
            return _refusal(request, error)
        except NotSaved as error:
            return _not_saved(error)
        return JSONResponse(
            {
                **_words(study.texts_in(study.language)),
                "languages": [_words(words) for words in study.texts.values()],
                "method": study.method,
                "names": study.layout.names,
                "in_turn": study.layout.in_turn,
                "trials": study.trials_per_session,
                "practice": len(study.items("practice")),
                "screen": bool(study.screens),
                "platform": study.platform and study.platform.name,
                "max_comment": MAX_COMMENT,
                "max_text": MAX_TEXT,
                "closed": closed is not None,
            },
            headers=_NO_STORE,
        )


def _words(words: Texts) -> dict[str, Any]:
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


def _add_file(routes: APIRouter, name: str, media_type: str) -> None:
    @routes.get(f"/{name}")
    async def file(study_id: str) -> Response:
        return Response((PAGE / name).read_bytes(), headers=_NO_STORE, media_type=media_type)


def _hosted(studies: Studies, study_id: str) -> Hosted:
    hosted = studies.get(study_id)
    if hosted is not None:
        return hosted
    status = studies.status(study_id)
    if status is None:
        raise Refused(404, "no_study", "There is no such study here.")
    if status == "failed":
        raise Refused(503, "failed", "This study cannot be offered at the moment.")
    raise Refused(503, "preparing", "The clips of this study are still being prepared.")


def _told(
    hosted: Hosted, db: sqlite3.Connection, key: str, state: dict[str, Any]
) -> dict[str, Any]:
    """A session's state for its page; where ratings are copied, with what is safe."""
    return hosted.copy.tell(db, key, state) if hosted.copy else state


def _safe(request: Request) -> int:
    """The trials that the browser says are safe off the machine, by any server of the study."""
    given = request.headers.get("x-safe", "")
    return int(given) if re.fullmatch(r"[0-9]{1,5}", given) else 0


async def _run(hosted: Hosted, operation: Callable[[sqlite3.Connection], T]) -> T:
    return await asyncio.wrap_future(hosted.store.run(operation))


async def _answer(
    studies: Studies, study_id: str, request: Request, reply: Callable[[Hosted, str], Any]
) -> Response:
    """Run a session request, and turn what can go wrong into a status and a sentence."""
    try:
        hosted = _hosted(studies, study_id)
        key = request.headers.get("x-session", "")
        if not _SESSION_KEY.fullmatch(key):
            raise Refused(401, "no_session", "The request has no session key (X-Session).")
        return JSONResponse(await reply(hosted, key), headers=_NO_STORE)
    except Refused as error:
        open_study = studies.get(study_id)
        if error.code == "no_place" and open_study and open_study.copy:
            open_study.copy.wake()  # it takes more places with each copy
        return _refusal(request, error)
    except NotSaved as error:
        return _not_saved(error)


def _refusal(request: Request, error: Refused) -> Response:
    # Quoted: a path may hold line breaks. Raters' addresses are kept nowhere.
    log.warning("refused %s %r: %s", request.method, request.url.path[:200], error.code)
    return JSONResponse(
        {"error": error.code, "message": str(error)}, error.status, headers=_NO_STORE
    )


def _not_saved(error: Exception) -> Response:
    log.error("not saved: %s", error)
    message = "Not saved yet: the server's disk refused. Keep this page open; it tries again."
    return JSONResponse({"error": "not_saved", "message": message}, 503, headers=_NO_STORE)


Body = TypeVar("Body", bound=BaseModel)


async def _body(request: Request, model: type[Body]) -> Body:
    """The request's JSON as `model`, read no further than MAX_BODY bytes."""
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                raise Refused(413, "too_large", f"A request may have {MAX_BODY} bytes at most.")
    except ClientDisconnect:  # nobody is left to read this; it will be sent again
        raise Refused(400, "cut_off", "The request ended before its body.") from None
    try:
        return model.model_validate_json(bytes(data))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in p['loc']) or 'body'}: {p['msg']}"
            for p in error.errors(include_input=False)
        )
        raise Refused(422, "bad_request", f"Not understood: {problems}.") from None


def _sound(data: bytes, range_header: str | None) -> Response:
    """WAV bytes, whole or the asked range (Safari plays nothing without 206)."""
    headers = {**_NO_STORE, "Accept-Ranges": "bytes"}
    if range_header is None:
        return Response(data, headers=headers, media_type="audio/wav")
    match = re.fullmatch(r"bytes=(\d{0,12})-(\d{0,12})", range_header.strip())
    if match is None or match[0] == "bytes=-":
        return Response(data, headers=headers, media_type="audio/wav")
    size = len(data)
    first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first >= size or first > last:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Response(data[first : last + 1], 206, headers, "audio/wav")
