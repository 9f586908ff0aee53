"""A run's sound on its way to the page while its tokens come; `assets/live.js` plays it.

Pieces go as they are, int16: Gradio's own streaming output would send them through ffmpeg as AAC,
which is lossy and needs a program that is not everywhere. A page may skip an update that the next
one overtakes, so each brings the last few pieces again, numbered; a page that lacks one all the
same waits for the complete clip. Knows no model and no card.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections import deque
from html import escape

from spark.compare import Sounded

_RUNS = itertools.count()  # a page tells one run's pieces from another's
_AGAIN = 6  # pieces in an update; a second of them at the pace of `spark.compare`


class LivePieces:
    """The pieces of one run."""

    def __init__(self) -> None:
        self._run, self._count = next(_RUNS), itertools.count()
        self._pieces: deque[dict[str, str | int]] = deque(maxlen=_AGAIN)

    def add(self, event: Sounded) -> str:
        """HTML that holds this piece and some before it."""
        pcm = base64.b64encode(event.pcm.astype("<i2").tobytes()).decode()
        self._pieces.append(
            {"n": next(self._count), "policy": event.policy, "rate": event.rate, "pcm": pcm}
        )
        told = escape(json.dumps(list(self._pieces)), quote=True)
        return f'<div hidden data-run="{self._run}" data-pieces="{told}"></div>'
