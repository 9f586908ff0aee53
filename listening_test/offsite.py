"""Ratings kept off the machine, for disks that are lost at a restart (a Space's).

    copy = Copy(store, target, place_of(study, study_dir), block_rows(study))
    copy.begin()           take back what is there; afterwards raters may come
    copy.start()           from now on copy in the background
    copy.rows()            the places of the design that this server may give out (`leases.py`)
    copy.tell(db, ...)     what the rater's page may know: what is safe, and no code before all is

A thread copies what is new every few minutes, and soon after a session is complete. Nothing
waits for it: ratings are acknowledged once they are on the local disk, and a copy that fails is
tried again, later and later, while `status()` tells the alarm. Until a rating is safe the
rater's browser keeps it too (`resend.py`). Which rows are copied is `changes.py`'s, where they
go `targets.py`'s. Several servers may serve one study and copy it to one place: each takes in what
the others copied.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from listening_test import changes, enrolment, resend
from listening_test.changes import Batch, ForeignCopy
from listening_test.enrolment import Refused
from listening_test.leases import Leases
from listening_test.prepared import PreparedStudy
from listening_test.rows import utc
from listening_test.segments import Damaged, Segment, decoded
from listening_test.store import Store
from listening_test.targets import BadTarget, Target

# Between two copies while raters are at work.
EVERY_S = 120.0
LONGEST_BACK_OFF_S = 300.0
# At the end a copy under way is waited for this long: platforms kill 30 s after they ask.
_LAST_WAIT_S = 20.0
log = logging.getLogger(__name__)


class NotCopied(RuntimeError):
    """The place off the machine cannot be reached, so the study cannot open yet."""


@dataclass(frozen=True)
class CopyStatus:
    """How the copying goes. Times are ISO-8601 in UTC, None for never.

    `waiting`: rows that are on this disk only. `places`: of the design, that new raters can have.
    `damaged`: segments that cannot be read.
    """

    place: str
    waiting: int
    places: int
    last_success: str | None
    last_failure: str | None
    last_error: str
    failing: bool
    damaged: tuple[str, ...]

    @property
    def alarm(self) -> str:
        """What is wrong, as sentences; empty if nothing is."""
        parts = []
        if self.failing:
            parts.append(
                f"Ratings are not copied off the machine ({self.waiting} rows wait; last copy: "
                f"{self.last_success or 'never'}): {self.last_error}."
            )
        if not self.places:
            parts.append(
                "New raters have to wait: this server holds no free place of the design, since it "
                f"cannot agree with {self.place} on any."
            )
        if self.damaged:
            names = ", ".join(self.damaged)
            parts.append(f"{len(self.damaged)} copies at {self.place} are damaged: {names}.")
        return " ".join(parts)


def place_of(study: PreparedStudy, study_dir: Path) -> str:
    """The study's own place in a target; other clips have another, so that they never mix."""
    told = hashlib.sha256(study.config_sha256.encode())
    for path in sorted((study_dir / "serve" / "audio").glob("*.wav")):
        told.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"{study.study_id}/{told.hexdigest()[:16]}/"


class Copy:
    """The copying of one store to one place."""

    def __init__(
        self,
        store: Store,
        target: Target,
        prefix: str,
        block_rows: int,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._target, self._prefix = store, target, prefix
        self._every_s, self._clock = every_s, clock
        self._leases = Leases(store, target, f"{prefix}leases.json", block_rows, clock)
        self._behind: dict[str, int] = {}  # session, and how many copies there had been by then
        self._cycles = 0
        self._state = threading.Condition()
        self._urgent = self._closing = False
        self._failures = 0
        self._ended = time.monotonic()
        self._succeeded: float | None = None
        self._failed: float | None = None
        self._error = ""
        self._damaged: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="copying", daemon=True)

    # ---- before serving
    def begin(self) -> None:
        """Rebuild the database from the copies, and copy what they lack.

        Raises:
            NotCopied: the place cannot be reached; nothing is lost, try again.
            ForeignCopy, BadTarget: it holds something else, or may not be used.
        """
        try:
            place = f"{self._target.place} {self._prefix}"
            self._store.run(lambda db: changes.watch(db, place)).result()
            self._leases.look()
            names = self._target.names(self._prefix)
            known = self._store.read(changes.known_segments)
            if known - names:
                log.warning("%s copies are gone from %s", len(known - names), self._target.place)
                self._store.run(changes.note_all).result()
            self._take_in(names)
            self._leases.sync()
            self._push(names)
        except (ForeignCopy, BadTarget):
            raise
        except Exception as error:  # of whatever library the target is made of
            self._note_failure(error)
            raise NotCopied(
                f"Ratings cannot be copied to {self._target.place}: {_told(error)}. They would be "
                "lost with this disk, so the study opens once they can."
            ) from error
        self._note_success()

    def start(self) -> None:
        """Copy in the background from now on."""
        self._thread.start()

    # ---- while serving
    def wake(self) -> None:
        """Copy as soon as the target allows it, since somebody waits."""
        with self._state:
            self._urgent = True
            self._state.notify()

    def cycle(self) -> None:
        """Copy once, now. A failure is noted, not raised."""
        try:
            # What another server of this study wrote meanwhile, as at a change of containers.
            names = self._target.names(self._prefix)
            self._take_in(names)
            try:
                self._leases.sync()
            finally:  # ratings are safe with or without places for new raters
                self._push(names)
        except Exception as error:  # whatever it is, it must not end the copying
            self._note_failure(error)
        else:
            self._note_success()

    def rows(self) -> tuple[range, ...]:
        """The places of the design that this server may give out now."""
        return self._leases.rows()

    def check_caught_up(self, db: sqlite3.Connection, key: str, safe: int) -> None:
        """See to it that a rater who comes from another server goes on where they were there.

        Args:
            safe: the trials that the browser was told are safe. A claim that the copies do not
                bear out after they were read anew is not waited for.

        Raises:
            Refused: this server has not taken in yet what the other one copied.
        """
        if not enrolment.known(db, key):
            return
        session = enrolment.session_of(db, key)
        if session["n_done"] >= safe:
            self._behind.pop(session["session_id"], None)
            return
        # Two: the copy that is under way may have begun too early.
        if self._cycles < self._behind.setdefault(session["session_id"], self._cycles) + 2:
            self.wake()
            raise Refused(503, "behind", "Your answers are being fetched. This page goes on.")

    def tell(self, db: sqlite3.Connection, key: str, state: dict[str, Any]) -> dict[str, Any]:
        """A session's state with what of it is safe, and without its end before all is.

        `safe`: the last trial up to which the browser need not keep the answers. `up`: the first
        that the server has no answer to. `ticket`: what brings the session back if its disk is
        lost before it was copied.
        """
        session = enrolment.session_of(db, key)
        upto, everything = changes.safe_upto(db, session["session_id"], session["n_done"])
        told = {"safe": upto, "up": session["n_done"] + 1, "ticket": resend.ticket(db, session)}
        if state["state"] in ("done", "screened_out") and not everything:
            self.wake()
            return {"state": "copying", "then": state["state"], **told}
        return {**state, **told}

    def status(self) -> CopyStatus:
        """How it goes."""
        waiting, places = self._store.read(
            lambda db: (changes.waiting(db), enrolment.free_rows(db, self.rows(), self._clock()))
        )
        with self._state:
            return CopyStatus(
                place=self._target.place,
                waiting=waiting,
                places=places,
                last_success=_time(self._succeeded),
                last_failure=_time(self._failed),
                last_error=self._error,
                failing=self._failures > 0,
                damaged=tuple(sorted(self._damaged)),
            )

    def close(self) -> None:
        """Stop, after a last copy."""
        with self._state:
            self._closing = True
            self._state.notify()
        if self._thread.is_alive():
            self._thread.join(_LAST_WAIT_S)
        if not self._thread.is_alive():
            self.cycle()
            with suppress(Exception):  # then it runs out by itself
                self._leases.release()

    # ---- the work
    def _take_in(self, names: set[str]) -> None:
        known = self._store.read(changes.known_segments)
        with self._state:
            unseen = names - known - self._damaged
        segments: dict[str, Segment] = {}
        for name, data in self._target.read(unseen).items():
            try:
                segments[name] = decoded(data)
            except Damaged as error:
                log.error("the copy %s is damaged: %s", name, error)
                with self._state:
                    self._damaged.add(name)
        self._store.run(lambda db: changes.restore(db, segments)).result()

    def _push(self, names: set[str]) -> None:
        if not self._leases.agreed or not self._store.read(changes.waiting):
            return
        order = self._store.run(changes.next_order).result()
        batch: Batch | None = self._store.read(lambda db: changes.take(db, order))
        if batch is None:
            return
        add = {
            f"{self._prefix}{uuid.uuid4()}.jsonl": segment.encoded() for segment in batch.segments
        }
        self._target.commit(add, sorted(batch.replaces & names))
        if batch.replaces:
            self._target.forget_history()
        self._store.run(partial(changes.settle, batch=batch, names=list(add))).result()

    def _work(self) -> None:
        while self._wait():
            self.cycle()

    def _wait(self) -> bool:
        """Until the next copy is due; False at the end."""
        with self._state:
            while not self._closing:
                left = self._ended + self._pause() - time.monotonic()
                if left <= 0:
                    self._urgent = False
                    return True
                self._state.wait(left)
            return False

    def _pause(self) -> float:
        """Seconds from the last copy to the next."""
        pause = self._target.pause_s
        if self._failures:
            return min(max(pause, 1.0) * 2.0 ** min(self._failures - 1, 20), LONGEST_BACK_OFF_S)
        pause = pause if self._urgent else max(pause, self._every_s)
        settles = self._leases.settles_in()
        return pause if settles is None else min(pause, max(settles, self._target.pause_s))

    def _note_success(self) -> None:
        with self._state:
            self._failures, self._succeeded = 0, time.time()
            self._cycles += 1
            self._ended = time.monotonic()

    def _note_failure(self, error: Exception) -> None:
        log.error("ratings are not copied to %s: %s", self._target.place, _told(error))
        with self._state:
            self._failures += 1
            self._failed, self._error = time.time(), _told(error)
            self._ended = time.monotonic()


def _told(error: Exception) -> str:
    """The first line of what went wrong: the Hub's errors go on with request ids and advice."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else utc(seconds)


Pause = Callable[[float], None]


def begin_patiently(copy: Copy, tries: int = 5, pause: Pause = time.sleep) -> None:
    """`begin`, again after 1, 2, 4, ... seconds while the place cannot be reached."""
    for number in range(tries):
        try:
            copy.begin()
        except NotCopied:
            if number == tries - 1:
                raise
            pause(2.0**number)
        else:
            return
