"""The studies of one process: which there are, which are open, and where their ratings go.

Public to `app.py`:

    studies = Studies()
    studies.announce(id, title)        "being prepared" until open or failed
    studies.open(study_dir) -> Hosted  from now on raters can take it
    studies.fail(id, why)
    studies.states() -> list[StudyState]
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from listening_test import enrolment, trials
from listening_test.limit import Limiter
from listening_test.offsite import Copy, begin_patiently, place_of
from listening_test.prepared import PreparedStudy, load_prepared
from listening_test.session_plan import block_rows
from listening_test.store import NotSaved, Store
from listening_test.targets import Target

# Between two looks at the stop rules.
WATCH_S = 60.0


@dataclass(frozen=True)
class StudyState:
    """What a page may tell of a study. Counts are None while there is no store to count in."""

    study_id: str
    title: str
    status: Literal["preparing", "open", "failed"]
    message: str = ""
    trials_per_rater: int | None = None
    clips_per_trial: int | None = None
    minutes: int | None = None
    planned_sessions: int | None = None
    sessions_started: int | None = None
    sessions_complete: int | None = None
    ratings: int | None = None
    study_dir: Path | None = None
    withdrawn: int | None = None
    decisions: int | None = None
    closed_utc: str | None = None

    @property
    def path(self) -> str:
        """Where the rater's page is, below the site's root."""
        return f"/listen/{self.study_id}"


@dataclass(frozen=True)
class Hosted:
    """An open study: its design, its store and, where there is one, the copy off the machine.

    `unsaved_servings`: when a clip was first served (seconds since 1970), by its token, while the
    disk took no note of it.
    """

    study: PreparedStudy
    store: Store
    study_dir: Path
    copy: Copy | None = None
    unsaved_servings: dict[str, float] = field(default_factory=dict)

    def audio_path(self, stimulus_id: str) -> Path:
        """File of a stimulus; the id comes from the design, never from a request."""
        return self.study_dir / "serve" / "audio" / f"{stimulus_id}.wav"


class Studies:
    """Registry of studies, safe to use from several threads.

    Args:
        copy_to: where ratings are copied, off the machine; None where the disk is to be trusted.
        limiter: of the requests that one address may make to all of them.
    """

    def __init__(self, copy_to: Target | None = None, limiter: Limiter | None = None) -> None:
        self._copy_to = copy_to
        self.limiter = limiter or Limiter()
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # one study at a time; taking copies back may be slow
        self._states: dict[str, StudyState] = {}
        self._hosted: dict[str, Hosted] = {}
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def copied(self) -> bool:
        """Whether ratings are copied off the machine."""
        return self._copy_to is not None

    def announce(self, study_id: str, title: str, message: str = "") -> None:
        """Make a study known before it can be taken; `message`: what it waits for."""
        with self._lock:
            self._states[study_id] = StudyState(study_id, title, "preparing", message)

    def fail(self, study_id: str, why: str) -> None:
        """Say that an announced study cannot be offered, and why."""
        with self._lock:
            state = self._states[study_id]
            self._states[study_id] = replace(state, status="failed", message=why)

    def open(self, study_dir: Path) -> Hosted:
        """Open a prepared study to raters; ratings go to STUDY_DIR/data.

        Raises:
            NotCopied, ForeignCopy, BadTarget: ratings are to be copied, and cannot be.
        """
        study = load_prepared(study_dir)
        with self._opening:
            if study.study_id in self._hosted:
                raise ValueError(f"a study named {study.study_id} is open already")
            store = Store(study_dir / "data", study.study_id, study.config_sha256)
            try:
                copy = self._begun(store, study, study_dir)
            except Exception:
                store.close()
                raise
            hosted = Hosted(study, store, study_dir, copy)
            with self._lock:
                self._hosted[study.study_id] = hosted
                self._states[study.study_id] = StudyState(study.study_id, study.title, "open")
        return hosted

    def _begun(self, store: Store, study: PreparedStudy, study_dir: Path) -> Copy | None:
        """The copying of a store, after it took back what is off the machine."""
        if self._copy_to is None:
            return None
        copy = Copy(store, self._copy_to, place_of(study, study_dir), block_rows(study))
        begin_patiently(copy)
        copy.start()
        return copy

    def watch(self, every_s: float = WATCH_S) -> None:
        """Close studies on the day of their stop rule, though nobody comes and no page looks."""

        def look() -> None:
            while not self._ended.wait(every_s):
                with suppress(sqlite3.Error, NotSaved):  # then it looks again
                    self.states()

        self._watch = threading.Thread(target=look, name="stop-rules", daemon=True)
        self._watch.start()

    def get(self, study_id: str) -> Hosted | None:
        """The open study of that name."""
        return self._hosted.get(study_id)

    def status(self, study_id: str) -> str | None:
        """`preparing`, `open` or `failed`; None for a study unknown here."""
        state = self._states.get(study_id)
        return state.status if state else None

    def state(self, study_id: str) -> StudyState | None:
        """One study's state, counted now beside the store's writer.

        Closes a study whose stop rule is due though nobody came since: on its day, or by what
        another server copied.
        """
        state, hosted = self._states.get(study_id), self._hosted.get(study_id)
        if state is None or hosted is None:
            return state
        study, now = hosted.study, time.time()
        counts, closed, due = hosted.store.read(
            lambda db: (
                trials.progress(db), enrolment.closed_utc(db), enrolment.is_due(db, study, now)
            )
        )  # fmt: skip
        if due and closed is None:
            with suppress(NotSaved):  # then it is tried again at the next look
                closed = hosted.store.run(lambda db: enrolment.close_study(db, now)).result()
        return replace(
            state,
            trials_per_rater=study.trials_per_session,
            clips_per_trial=study.clips_per_trial,
            minutes=study.minutes,
            planned_sessions=study.planned_sessions,
            sessions_started=counts["started"],
            sessions_complete=counts["complete"],
            ratings=counts["ratings"],
            message=hosted.store.csv_error or "",
            study_dir=hosted.study_dir,
            withdrawn=counts["withdrawn"],
            decisions=counts["decisions"],
            closed_utc=closed,
        )

    def states(self) -> list[StudyState]:
        """All studies' states, in the order they were made known."""
        with self._lock:
            names = list(self._states)
        return [state for name in names if (state := self.state(name)) is not None]

    def shown(self) -> StudyState | None:
        """The study that the app's pages show: the first that is there."""
        return next((state for state in self.states() if state.study_dir is not None), None)

    def close(self) -> None:
        """Close every store, after a last copy off the machine."""
        self._ended.set()
        if self._watch:
            self._watch.join()
        with self._lock:
            for hosted in self._hosted.values():
                if hosted.copy:
                    hosted.copy.close()
                hosted.store.close()
            self._hosted.clear()
