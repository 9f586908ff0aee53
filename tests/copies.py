"""Helpers of the tests of copying: a dataset in memory, a server that can lose its disk, and a
browser that does what `page/kept.js` does.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from listening_test import enrolment, resend, trials
from listening_test.enrolment import Refused
from listening_test.offsite import Copy
from listening_test.rows import Answer, Heard
from listening_test.session_plan import block_rows
from listening_test.store import Store
from listening_test.targets import HubTarget, Target
from tests.test_listening_store import tiny_study

T = TypeVar("T")
PREFIX = "tiny/1/"


class HubDown(OSError):
    """What a call to the Hub ends in when the fake is told to fail."""


def as_hf_api(method: Callable[..., T]) -> Callable[..., T]:
    """Refuse what the real API's method of that name would not take."""
    signature = inspect.signature(getattr(HfApi, method.__name__))

    def checked(self: FakeHub, **given: Any) -> T:
        signature.bind(self, **given)
        assert (given["repo_id"], given["repo_type"]) == ("lab/ratings", "dataset")
        if self.fails == "always":
            raise HubDown("503 Server Error\nRequest ID: 1")
        return method(self, **given)

    return checked


class FakeHub:
    """One dataset of the Hub as `HubTarget` sees it. `fails`: "" or, from now on,

    "before": a commit fails, nothing was done. "after": it was done, but its answer is lost.
    "always": every call fails.

    Every commit has an id; one that names a parent which is not the head is refused, as the Hub
    does, and only such a commit may change a file that is there.
    """

    def __init__(self, private: bool = True) -> None:
        self.versions: list[dict[str, bytes]] = [{}]
        self.refused = 0
        self.lock = threading.RLock()
        self.exists = False
        self.private = private
        self.fails = ""

    @property
    def files(self) -> dict[str, bytes]:
        return self.versions[-1]

    @property
    def segments(self) -> dict[str, bytes]:
        """The copies, without the ledger of leases."""
        return {name: data for name, data in self.files.items() if name.endswith(".jsonl")}

    @property
    def sha(self) -> str:
        """The head's id."""
        told = repr((len(self.versions), sorted(self.files.items()))).encode()
        return hashlib.sha1(told).hexdigest()

    @as_hf_api
    def create_repo(self, private: bool, exist_ok: bool, **_: Any) -> None:
        assert private
        assert exist_ok
        self.exists = True

    @as_hf_api
    def repo_info(self, **_: Any) -> Any:
        return SimpleNamespace(private=self.private, sha=self.sha)

    @as_hf_api
    def list_repo_files(self, **_: Any) -> list[str]:
        assert self.exists
        return [".gitattributes", *self.files]

    @as_hf_api
    def snapshot_download(self, allow_patterns: list[str], local_dir: str, **_: Any) -> str:
        for name in set(allow_patterns) & set(self.files):  # what is not there is passed over
            path = Path(local_dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[name])
        return local_dir

    @as_hf_api
    def create_commit(
        self, operations: list[Any], commit_message: str, parent_commit: str = "", **_: Any
    ) -> None:
        assert self.exists
        assert commit_message
        if self.fails == "before":
            raise HubDown("the connection broke")
        with self.lock:
            if parent_commit not in ("", self.sha):
                self.refused += 1
                told = httpx.Response(412, request=httpx.Request("POST", "https://hub.example"))
                raise HfHubHTTPError("412 Client Error: Precondition Failed", response=told)
            self.versions.append(self._changed(operations, bool(parent_commit)))
        if self.fails == "after":
            raise HubDown("the answer was lost")

    def _changed(self, operations: list[Any], may_replace: bool) -> dict[str, bytes]:
        files = dict(self.files)
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                assert isinstance(operation, CommitOperationAdd)
                assert may_replace or operation.path_in_repo not in files  # only ever added
                files[operation.path_in_repo] = bytes(operation.path_or_fileobj)
        return files

    @as_hf_api
    def super_squash_history(self, **_: Any) -> None:
        self.versions = [self.files]


class Server:
    """A store of the tiny study that is copied to `target`; only `copy.cycle()` copies."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        self.study = tiny_study()
        self.now = 1_000_000.0
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder, "tiny", "0" * 64)
        self.copy = Copy(
            self.store, self.target, PREFIX, block_rows(self.study), clock=lambda: self.now
        )
        self.copy.begin()

    def wipe(self) -> None:
        """The machine and its disk are gone; a new one starts from nothing."""
        self.store.close()
        shutil.rmtree(self.folder)
        self.open()

    def run(self, operation: Callable[[Any], T]) -> T:
        return self.store.run(operation).result()

    def rows(self, table: str = "ratings") -> list[dict[str, Any]]:
        return self.run(lambda db: [dict(r) for r in db.execute(f"SELECT * FROM {table}")])


class Browser:
    """A rater's browser: its answers, those it still keeps, and what it was told is safe."""

    def __init__(self) -> None:
        self.key = uuid.uuid4().hex
        self.ticket: str | None = None
        self.kept: dict[int, tuple[Answer, str]] = {}
        self.acknowledged: dict[int, tuple[str, int, float]] = {}  # rating id, score, when
        self.safe = 0
        self.state: dict[str, Any] = {}

    def _note(self, state: dict[str, Any]) -> dict[str, Any]:
        assert state["safe"] >= 0
        self.state, self.ticket, self.safe = state, state["ticket"], state["safe"]
        self.kept = {n: kept for n, kept in self.kept.items() if n > self.safe}
        return state

    def begin(self, server: Server, ticket: str | None = None) -> dict[str, Any]:
        def operation(db: Any) -> dict[str, Any]:
            if ticket:
                resend.readmit(db, server.study, self.key, ticket, server.now)
            rows = server.copy.rows()
            enrolment.start_session(db, server.study, self.key, {}, server.now, rows)
            state = trials.current_trial(db, server.study, self.key, server.now)
            return server.copy.tell(db, self.key, state)

        return self._note(server.run(operation))

    def look(self, server: Server) -> dict[str, Any]:
        def operation(db: Any) -> dict[str, Any]:
            state = trials.current_trial(db, server.study, self.key, server.now)
            return server.copy.tell(db, self.key, state)

        return self._note(server.run(operation))

    def withdraw(self, server: Server) -> int:
        """Leave the study, by the ticket if there is one; the browser forgets everything."""

        def operation(db: Any) -> int:
            if self.ticket:
                resend.readmit(db, server.study, self.key, self.ticket, server.now)
            return trials.withdraw(db, self.key, server.now)

        deleted = server.run(operation)
        self.ticket, self.kept, self.state = None, {}, {}
        return deleted

    def come_back(self, server: Server) -> dict[str, Any]:
        """Reload the page: what the server lacks is sent again."""
        try:
            self.look(server)
        except Refused as error:
            if error.code != "no_session" or self.ticket is None:
                raise
            self.begin(server, self.ticket)
        while (kept := self.kept.get(self.state["up"])) is not None:
            self.send(server, *kept)
        return self.state

    def send(self, server: Server, answer: Answer, receipt: str = "") -> str:
        def operation(db: Any) -> tuple[str, dict[str, Any]]:
            state = resend.save(db, server.study, self.key, answer, receipt, server.now)
            given = resend.receipt(db, self.key, answer, server.now)
            return given, server.copy.tell(db, self.key, state)

        given, state = server.run(operation)
        self._note(state)
        return given

    def rate(self, server: Server, score: int) -> dict[str, Any]:
        """Hear and rate the trial that is up."""
        state = self.state
        for clip in state["clips"]:
            server.run(lambda db, clip=clip: trials.serve_clip(db, clip, server.now))
        server.now += 1
        answer = Answer(
            rating_id=str(uuid.uuid4()), trial_index=state["trial_index"],
            clips=tuple(Heard(clip, 1, 100) for clip in state["clips"]), answers=(score,),
            rt_ms=900, first_play_to_submit_ms=500, hidden_ms=0, changed_n=0, comment="",
            client_utc="", ui_lang="en",
        )  # fmt: skip
        receipt = self.send(server, answer)
        if answer.trial_index > self.safe:
            self.kept[answer.trial_index] = (answer, receipt)
        self.acknowledged[answer.trial_index] = (answer.rating_id, score, server.now)
        return self.state


def hub_target(hub: FakeHub) -> HubTarget:
    """The target that takes the fake for the Hub."""
    return HubTarget("lab/ratings", hub)


def finish(browser: Browser, server: Server) -> None:
    """Rate all that is left of the session."""
    while "clips" in browser.state:
        browser.rate(server, 1 + browser.state["trial_index"] % 5)


def scores(server: Server) -> dict[str, int]:
    """What the server holds: score by rating id."""
    return {row["rating_id"]: row["score"] for row in server.rows()}
