"""A disk that takes nothing more: raters are told, sound goes on, and nothing is lost or doubled.

A small file system is really filled where the machine lets this user mount one; everywhere a
server process is forbidden to write by its limit of file sizes.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import expect

from listening_test import serve
from listening_test.admin import overview, server_alarms
from listening_test.hosting import Hosted, Studies
from listening_test.server import attach
from tests.browser import chromium, local_page
from tests.listening import SYSTEMS, Rater, free_port, prepared_study, start_server
from tests.test_listening_page import begin, heading, rate, stored

ROOM = 16 * 2**20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `ROOM` bytes at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    tried = subprocess.run(mount, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Disk:
    """A running server, and what makes its disk refuse and take again."""

    study_dir: Path
    url: str
    refuse: Callable[[], None]
    take: Callable[[], None]


def fill(folder: Path) -> None:
    """Leave no byte of room, in the database's log neither."""
    with closing(sqlite3.connect(folder / "ratings.sqlite3")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(folder / "filler", "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture(params=["full", "forbidden"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2])
    data, port = study_dir / "data", free_port()
    unlimited = resource.RLIM_INFINITY

    # No note of a refusal can be written anywhere either.
    with open("/dev/full", "w") as log:
        if request.param == "full":
            with small_disk(data):
                process = start_server(study_dir, port, stderr=log)
                yield Disk(
                    study_dir, f"http://127.0.0.1:{port}/listen/small",
                    lambda: fill(data), (data / "filler").unlink,
                )  # fmt: skip
                stop(process)
        else:
            process = start_server(study_dir, port, stderr=log)

            def limit(size: int) -> None:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, unlimited))

            yield Disk(
                study_dir, f"http://127.0.0.1:{port}/listen/small",
                lambda: limit(0), lambda: limit(unlimited),
            )  # fmt: skip
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


def test_raters_are_told_and_all_but_saving_goes_on(disk: Disk) -> None:
    with httpx.Client(timeout=30) as client:
        rater = Rater(client, disk.url)
        state = rater.start()
        disk.refuse()
        for path in ("", "/page.js", "/study", "/volume"):
            assert client.get(disk.url + path).status_code == 200
        assert rater.trial() == state
        assert rater.fetch(state)[:4] == b"RIFF"
        assert client.get(f"{disk.url}/clip/guessed").json()["error"] == "no_clip"
        time.sleep(0.55)
        body = rater.body(state, 4)
        for path, sent in (("rating", body), ("session", {"consent": True}), ("volume", {})):
            who = Rater(client, disk.url) if path == "session" else rater
            reply = who.post(path, sent)
            assert (reply.status_code, reply.json()["error"]) == (503, "not_saved"), path
            assert "Keep this page open" in reply.json()["message"]
        assert stored(disk.study_dir) == []
        disk.take()
        # The clip was heard while its serving could not be noted.
        reply = rater.post("rating", body)
        assert reply.status_code == 200, reply.text
        assert rater.post("rating", body).json() == reply.json()
    assert [row["rating_id"] for row in written(disk.study_dir)] == [body["rating_id"]]


def written(study_dir: Path) -> list[dict[str, str]]:
    """`ratings.csv` once it is mended, some seconds after there is room again."""
    deadline = time.monotonic() + 20
    while not (rows := stored(study_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return rows


@pytest.mark.browser
def test_the_page_keeps_the_answer_and_sends_it_until_there_is_room(disk: Disk) -> None:
    with chromium() as browser, local_page(browser) as page:
        begin(page, disk.url)
        disk.refuse()
        page.reload()
        heading(page, "Practice clip")
        rate(page, "4")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("not saved yet. The server could not write it")
        expect(alert).to_contain_text("Keep this page open")
        page.reload()  # against the advice
        expect(page.locator("#wait-text")).to_contain_text("could not write it")
        disk.take()
        heading(page, "Clip 1 of 4")
        expect(page.get_by_text("saved ✓")).to_be_visible()
    (row,) = written(disk.study_dir)
    assert row["score"] == "4"


def test_a_folder_on_a_read_only_disk_is_told_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2])
    with small_disk(study_dir / "data") as data:
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        assert serve.main([str(study_dir)]) == 2
    told = capsys.readouterr().err
    assert "cannot keep ratings" in told
    assert "that this user may write to" in told


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[tuple[TestClient, Hosted]]:
    studies, app = Studies(), FastAPI()
    found = studies.open(prepared_study(tmp_path, items=2, systems=SYSTEMS[:2]))
    attach(app, studies)
    with TestClient(app) as client:
        yield client, found
    studies.close()


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_the_admin_page_alarms_until_something_is_saved_again(
    hosted: tuple[TestClient, Hosted], kind: str
) -> None:
    client, study = hosted
    rater = Rater(client)
    state = rater.start()
    assert server_alarms(study) == ()

    def pragma(text: str) -> Any:
        # Not as an operation: those are what is refused.
        return study.store._db.execute(f"PRAGMA {text}").fetchone()

    if kind == "full":
        pragma(f"max_page_count={pragma('page_count')[0]}")
    else:
        pragma("query_only=1")
    rater.fetch(state)
    time.sleep(0.51)
    body = rater.body(state, 4, comment="x" * 900)
    while kind == "full" and rater.post("rating", body).status_code == 200:
        state = rater.trial()
        rater.fetch(state)
        time.sleep(0.51)
        body = rater.body(state, 4, comment="x" * 900)
    assert rater.post("rating", body).json()["error"] == "not_saved"
    assert rater.trial() == state  # looking alone does not end the alarm
    (alarm,) = server_alarms(study)
    assert alarm.startswith("The disk takes no ratings (")
    assert alarm in overview(study.study_dir, time.time(), server_alarms(study)).alarms
    pragma("max_page_count=100000" if kind == "full" else "query_only=0")
    assert rater.post("rating", body).status_code == 200
    assert server_alarms(study) == ()
    assert study.unsaved_servings == {}
