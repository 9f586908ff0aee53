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
made by the browser and travels in the header X-Session, never in an address. What each address
does is in `calls.py`; this module knows which there are, and what becomes of errors.

An address of the network that asks too often gets 429 with Retry-After (`limit.py`). The page and
its scripts are not counted: with one of them missing, no page could say so and try again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute

from listening_test import calls, replies
from listening_test.calls import Asked, Call
from listening_test.crowd import MTURK_HOSTS
from listening_test.enrolment import Refused
from listening_test.hosting import Hosted, Studies
from listening_test.store import NotSaved

Endpoint = Callable[..., Awaitable[Response]]

PAGE = Path(__file__).parent / "page"
_SCRIPTS = (
    "page.js", "net.js", "kept.js", "clips.js", "questions.js", "crowd.js", "strings.js",
    "about.js", "withdraw.js", "volume.js", "draft.js",
)  # fmt: skip
_PAGE_FILES = {"page.css": "text/css"} | dict.fromkeys(_SCRIPTS, "text/javascript")
_PAGE_HEADERS = {
    **replies.NO_STORE,
    # Nothing may come from anywhere but this server, and no rating goes elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "media-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'self'; "
    # A worker's submission may go to MTurk.
    f"form-action {' '.join(MTURK_HOSTS)}",
    "Referrer-Policy": "no-referrer",
}
_NO_STUDY = "There is no such study here."
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_SESSION_KEY = re.compile(r"[A-Za-z0-9_-]{22,64}")

# Of a session: these need its key.
_OF_SESSION: tuple[tuple[str, str, Asked], ...] = (
    ("POST", "/session", calls.begin),
    ("GET", "/trial", calls.trial),
    ("POST", "/rating", calls.rate),
    ("POST", "/questionnaire", calls.about),
    ("POST", "/volume", calls.volume_set),
    ("POST", "/withdraw", calls.withdraw),
)
# An element that plays sound sends no key: a clip has its token, and the others are for everyone.
_WITHOUT_KEY: tuple[tuple[str, str, Asked], ...] = (
    ("GET", "/study", calls.texts),
    ("GET", "/volume", calls.volume_sound),
    ("GET", "/clip/{token}", calls.clip),
)


def attach(app: FastAPI, studies: Studies) -> None:
    """Add the raters' routes to `app`, before any catch-all route it may have."""
    before: list[BaseRoute] = list(app.router.routes)
    app.include_router(router(studies))
    added = [route for route in app.router.routes if route not in before]
    app.router.routes[:] = added + before


def router(studies: Studies) -> APIRouter:
    """The routes above, for the studies of one process."""
    routes, of_study = APIRouter(include_in_schema=False), "/listen/{study_id}"
    routes.add_api_route(of_study, _page(studies), methods=["GET", "HEAD"])
    for name, media_type in _PAGE_FILES.items():
        routes.add_api_route(f"{of_study}/{name}", _file(name, media_type))
    for keyed, table in ((True, _OF_SESSION), (False, _WITHOUT_KEY)):
        for method, path, asked in table:
            routes.add_api_route(
                of_study + path, _endpoint(studies, asked, keyed), methods=[method]
            )
    for path in (
        of_study, of_study + "/{name}", of_study + "/{name}/{rest:path}",
        of_study + "//{rest:path}", "/listen//{rest:path}",  # with a part that is empty
    ):  # fmt: skip
        routes.add_api_route(path, _endpoint(studies, _nothing, False), methods=_METHODS)
    return routes


async def _nothing(call: Call) -> Response:
    raise Refused(404, "no_address", "There is nothing here that can be asked for in this way.")


def _page(studies: Studies) -> Endpoint:
    async def page(study_id: str, request: Request) -> Response:
        if studies.status(study_id) is None:
            replies.log_refusal(request, "no_study")
            return Response(_NO_STUDY, 404, replies.NO_STORE, "text/plain")
        # study_id is one of ours, hence a slug: safe in an attribute.
        html = (PAGE / "index.html").read_text(encoding="utf-8").replace("{study}", study_id)
        return Response(html, headers=_PAGE_HEADERS, media_type="text/html")

    return page


def _file(name: str, media_type: str) -> Endpoint:
    async def file(study_id: str, request: Request) -> Response:
        data = (PAGE / name).read_bytes()
        return Response(data, headers=replies.NO_STORE, media_type=media_type)

    return file


def _endpoint(studies: Studies, asked: Asked, keyed: bool) -> Endpoint:
    """A route that answers `asked`, and turns what can go wrong into a status and a sentence."""

    async def endpoint(request: Request, study_id: str = "") -> Response:
        if wait := studies.limiter.wait_s(request.client.host if request.client else None):
            return replies.too_many(wait)
        try:
            call = Call(request, _hosted(studies, study_id), _key(request) if keyed else "")
            found = await asked(call)
        except Refused as error:
            return replies.refusal(request, error)
        except (NotSaved, OSError) as error:
            return replies.not_saved(error)
        if isinstance(found, Response):
            return found
        return JSONResponse(found, headers=replies.NO_STORE)

    return endpoint


def _hosted(studies: Studies, study_id: str) -> Hosted:
    hosted = studies.get(study_id)
    if hosted is not None:
        return hosted
    status = studies.status(study_id)
    if status is None:
        raise Refused(404, "no_study", _NO_STUDY)
    if status == "failed":
        raise Refused(503, "failed", "This study cannot be offered at the moment.")
    raise Refused(503, "preparing", "The clips of this study are still being prepared.")


def _key(request: Request) -> str:
    key = request.headers.get("x-session", "")
    if not _SESSION_KEY.fullmatch(key):
        raise Refused(401, "no_session", "The request has no session key (X-Session).")
    return key
