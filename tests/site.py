"""A study served in this process for scripts to attack, and what a good refusal is."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from listening_test import calls
from listening_test.hosting import Hosted, Studies
from listening_test.server import attach
from tests.listening import SYSTEMS, Clock, InProcess, Rater, prepared_study

SECONDS = 0.42
ASKED = """
questionnaire:
  - {id: age, question: How old are you?, choices: [under 40, 40 or over]}
  - {id: ears, question: Anything about your hearing?}
screening: {environment: {}}
"""
KINDS = {
    "acr": "",
    "asked": ASKED,
    "p835": "method: p835",
    "mushra": f"method: mushra\nreference: {SYSTEMS[0]}\nanchors: [3500]",
}
WRITTEN = ("sessions", "ratings", "screens", "profiles", "withdrawals", "meta")


@dataclass(repr=False)
class Site:
    """A study that is served in this process, at a time set by hand."""

    client: InProcess
    hosted: Hosted
    clock: Clock
    log: list[str] = field(default_factory=list)

    def kept(self) -> dict[str, list[Any]]:
        """All that is stored, but for when who was last seen."""

        def look(db: Any) -> dict[str, list[Any]]:
            return {
                table: [
                    {k: v for k, v in dict(row).items() if k != "last_seen"}
                    for row in db.execute(f"SELECT * FROM {table}")
                ]
                for table in WRITTEN
            }  # fmt: skip

        return self.hosted.store.read(look)

    def hear(self, rater: Rater, state: dict[str, Any]) -> int:
        """Fetch the clips and let the time pass that they take; milliseconds."""
        rater.fetch(state)
        longest = 5 if state["state"] == "environment" else SECONDS + 0.1
        self.clock.wait(longest)
        return round(1000 * longest)


def served(folder: Path, kind: str) -> Iterator[Site]:
    practice = "{id: text-p}" if kind == "mushra" else None
    study_dir = prepared_study(
        folder, items=2, systems=SYSTEMS[:2], seconds=SECONDS, extra=KINDS[kind], practice=practice
    )
    studies, app = Studies(), FastAPI(openapi_url=None)
    hosted = studies.open(study_dir)
    attach(app, studies)
    made = Site(InProcess(app), hosted, Clock())

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made.log.append(record.getMessage())

    notes, logger = Notes(), logging.getLogger("listening_test.replies")
    logger.addHandler(notes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "time", made.clock)
        yield made
    logger.removeHandler(notes)
    made.client.close()
    studies.close()


def refused_well(reply: httpx.Response, log: list[str]) -> None:
    """A 4xx with a code and a short sentence; logged; and nothing of the server's inside."""
    assert 400 <= reply.status_code < 500, reply.text
    told = reply.json()
    assert re.fullmatch(r"[a-z_]+", told["error"])
    assert re.fullmatch(r"[A-Z].*\.", told["message"])
    assert len(reply.content) < 2000
    assert "Traceback" not in reply.text
    assert ".py" not in reply.text
    assert len(log) == 1
    assert log[0].startswith("refused ")
    assert "\n" not in log[0]
