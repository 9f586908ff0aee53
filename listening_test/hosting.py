"""The studies of one process: which there are, which are open, and where their ratings go.

Public to `app.py`:

    studies = Studies()
    studies.announce(id, title)        "being prepared" until open or failed
    studies.open(study_dir) -> Hosted  from now on raters can take it
    studies.fail(id, why)
    studies.states() -> list[StudyState]
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from listening_test import trials
from listening_test.prepared import PreparedStudy, load_prepared
from listening_test.store import Store


@dataclass(frozen=True)
class StudyState:
    """What a page may tell of a study. Counts are None while there is no store to count in."""

    study_id: str
    title: str
    status: Literal["preparing", "open", "failed"]
    message: str = ""
    trials_per_rater: int | None = None
    planned_sessions: int | None = None
    sessions_started: int | None = None
    sessions_complete: int | None = None
    ratings: int | None = None
    study_dir: Path | None = None
    withdrawn: int | None = None
    closed_utc: str | None = None

    @property
    def path(self) -> str:
        """Where the rater's page is, below the site's root."""
        return f"/listen/{self.study_id}"


@dataclass(frozen=True)
class Hosted:
    """An open study: its design and its store."""

    study: PreparedStudy
    store: Store
    study_dir: Path

    def audio_path(self, stimulus_id: str) -> Path:
        """File of a stimulus; the id comes from the design, never from a request."""
        return self.study_dir / "serve" / "audio" / f"{stimulus_id}.wav"


class Studies:
    """Registry of studies, safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, StudyState] = {}
        self._hosted: dict[str, Hosted] = {}

    def announce(self, study_id: str, title: str) -> None:
        """Make a study known before it can be taken."""
        with self._lock:
            self._states[study_id] = StudyState(study_id, title, "preparing")

    def fail(self, study_id: str, why: str) -> None:
        """Say that an announced study cannot be offered, and why."""
        with self._lock:
            state = self._states[study_id]
            self._states[study_id] = replace(state, status="failed", message=why)

    def open(self, study_dir: Path) -> Hosted:
        """Open a prepared study to raters; ratings go to STUDY_DIR/data."""
        study = load_prepared(study_dir)
        with self._lock:
            if study.study_id in self._hosted:
                raise ValueError(f"a study named {study.study_id} is open already")
            store = Store(study_dir / "data", study.study_id, study.config_sha256)
            hosted = Hosted(study, store, study_dir)
            self._hosted[study.study_id] = hosted
            self._states[study.study_id] = StudyState(study.study_id, study.title, "open")
        return hosted

    def get(self, study_id: str) -> Hosted | None:
        """The open study of that name."""
        return self._hosted.get(study_id)

    def status(self, study_id: str) -> str | None:
        """`preparing`, `open` or `failed`; None for a study unknown here."""
        state = self._states.get(study_id)
        return state.status if state else None

    def state(self, study_id: str) -> StudyState | None:
        """One study's state, counted now (waits for the store)."""
        state, hosted = self._states.get(study_id), self._hosted.get(study_id)
        if state is None or hosted is None:
            return state
        counts, closed = hosted.store.run(
            lambda db: (trials.progress(db), trials.closed_utc(db))
        ).result()
        study = hosted.study
        return replace(
            state,
            trials_per_rater=study.trials_per_session,
            planned_sessions=study.planned_sessions,
            sessions_started=counts["started"],
            sessions_complete=counts["complete"],
            ratings=counts["ratings"],
            message=hosted.store.csv_error or "",
            study_dir=hosted.study_dir,
            withdrawn=counts["withdrawn"],
            closed_utc=closed,
        )

    def states(self) -> list[StudyState]:
        """All studies' states, in the order they were made known."""
        with self._lock:
            names = list(self._states)
        return [state for name in names if (state := self.state(name)) is not None]

    def close(self) -> None:
        """Close every store."""
        with self._lock:
            for hosted in self._hosted.values():
                hosted.store.close()
            self._hosted.clear()
