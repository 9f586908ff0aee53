"""How the raters' routes answer: stored nowhere on the way, and telling nothing of the system."""

from __future__ import annotations

import logging
import math
import re

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from listening_test.enrolment import Refused

log = logging.getLogger(__name__)

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def refusal(request: Request, error: Refused) -> Response:
    """A refusal as the page reads it, logged."""
    log_refusal(request, error.code)
    return _refused(error)


def too_many(wait_s: float) -> Response:
    """What an address is told that asks too often. The limit logs it: a line each would be a flood.

    `wait_s`: until the next request may pass; pages that all come back then do not fit either.
    """
    seconds = max(2, math.ceil(2 * wait_s))
    message = (
        "Too many requests came from your network at once. Nothing is lost: this page tries again "
        f"by itself in {seconds} seconds."
    )
    return _refused(Refused(429, "too_many", message, seconds))


def _refused(error: Refused) -> Response:
    headers = dict(NO_STORE)
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    return JSONResponse({"error": error.code, "message": str(error)}, error.status, headers=headers)


def log_refusal(request: Request, code: str) -> None:
    """Keep what was refused; whose it was is kept nowhere."""
    # Quoted: a path may hold line breaks.
    log.warning("refused %s %r: %s", request.method, request.url.path[:200], code)


def not_saved(error: Exception) -> Response:
    """What the page is told while the disk refuses: it keeps the answer, and tries again."""
    log.error("not saved: %s", error)
    message = "Not saved yet: the server's disk refused. Keep this page open; it tries again."
    return JSONResponse({"error": "not_saved", "message": message}, 503, headers=NO_STORE)


def sound(data: bytes, range_header: str | None) -> Response:
    """WAV bytes, whole or the asked range (Safari plays nothing without 206)."""
    headers = {**NO_STORE, "Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d{0,12})-(\d{0,12})", (range_header or "").strip())
    if match is None or match[0] == "bytes=-":
        return Response(data, headers=headers, media_type="audio/wav")
    size = len(data)
    first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first >= size or first > last:
        log.warning("refused a part of a clip that has none: %r", match[0])
        message = "The clip has no such part."
        return JSONResponse(
            {"error": "no_such_part", "message": message}, 416,
            {**headers, "Content-Range": f"bytes */{size}"},
        )  # fmt: skip
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Response(data[first : last + 1], 206, headers, "audio/wav")
