"""Where ratings are copied to and when, and the segments themselves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listening_test import ready, serve
from listening_test.admin import server_alarms
from listening_test.hosting import Studies
from listening_test.offsite import Copy, NotCopied, begin_patiently, place_of
from listening_test.prepared import load_prepared
from listening_test.segments import Damaged, Segment, decoded
from listening_test.store import Store
from listening_test.targets import BadTarget, FolderTarget, HubTarget, target_from
from listening_test.ui.public import _card
from tests.copies import PREFIX, Browser, FakeHub, HubDown, Server, finish, hub_target
from tests.listening import prepared_study


# ---- opening
def test_a_study_does_not_open_before_its_copies_are_there(tmp_path: Path, hub: FakeHub) -> None:
    store = Store(tmp_path, "tiny", "0" * 64)
    copy = Copy(store, hub_target(hub), PREFIX, 8)
    hub.fails, pauses = "always", []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            hub.fails = ""

    begin_patiently(copy, pause=pause)
    assert pauses == [1, 2, 4]
    assert any(b'"salt"' in data for data in hub.files.values())  # before the first rater
    hub.fails = "always"
    with pytest.raises(NotCopied, match="opens once they can"):
        begin_patiently(copy, pause=pauses.append)
    store.close()


def test_the_ready_study_says_what_it_waits_for_and_opens_by_itself(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = prepared_study(tmp_path, items=2)
    study: Any = SimpleNamespace(id="small", title="A <small> test")
    monkeypatch.setattr("listening_test.hosting.begin_patiently", Copy.begin)
    monkeypatch.setattr(ready, "_AGAIN_S", 0.05)
    studies = Studies(hub_target(hub))
    studies.announce(study.id, study.title)
    hub.fails = "always"
    thread = threading.Thread(target=ready._open, args=(study.id, study.title, study_dir, studies))
    thread.start()
    assert_soon(lambda: "503 Server Error" in studies.states()[0].message)
    (state,) = studies.states()
    assert state.status == "preparing"
    assert "opens once they can" in _card(state)
    hub.fails = ""
    thread.join(10)
    (state,) = studies.states()
    assert (state.status, state.message) == ("open", "")
    hosted = studies.get("small")
    assert hosted is not None
    assert hosted.copy is not None
    assert hosted.copy.status().last_success is not None
    assert server_alarms(hosted) == ()
    hub.fails = "always"
    hosted.store.run(lambda db: db.execute("INSERT INTO meta VALUES ('note', 'x')")).result()
    hosted.copy.cycle()
    (alarm,) = server_alarms(hosted)
    assert "not copied off the machine (1 rows wait" in alarm
    assert studies.states()[0].message == ""  # the place is for the Admin page only
    hub.fails = ""
    studies.close()  # with a last copy
    assert any(b'"note"' in data for data in hub.files.values())


def test_serving_with_a_target_that_cannot_be_used_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LISTENING_TEST_COPY", "/no/such/folder")
    monkeypatch.setenv("LISTENING_TEST_KEY", "k")
    assert serve.main([str(tmp_path)]) == 2
    assert "there is no folder /no/such/folder" in capsys.readouterr().err


def test_a_public_dataset_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, "tiny", "0" * 64)
    with pytest.raises(BadTarget, match="is public"):
        Copy(store, hub_target(FakeHub(private=False)), PREFIX, 8).begin()
    store.close()


# ---- segments
@given(st.binary(max_size=200))
def test_any_other_bytes_are_no_segment(data: bytes) -> None:
    with pytest.raises(Damaged):
        decoded(data)


@given(
    st.integers(1, 10**9),
    st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=4)),
    st.data(),
)
def test_a_segment_reads_back_or_is_known_to_be_cut(order: int, rows: Any, data: Any) -> None:
    segment = Segment(order, [("ratings", row) for row in rows], [("sessions", "a")])
    encoded = segment.encoded()
    assert decoded(encoded) == segment
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(Damaged):
        decoded(encoded[:cut])


# ---- in the background
def test_copies_are_made_every_so_often_and_soon_after_a_session_is_complete(
    tmp_path: Path, hub: FakeHub
) -> None:
    server = Server(tmp_path, hub_target(hub))
    target = hub_target(hub)
    target.pause_s = 0.05  # type: ignore[misc]
    server.copy = Copy(server.store, target, PREFIX, 8, every_s=0.4)
    server.copy.begin()
    server.copy.start()
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    assert_soon(lambda: browser.look(server)["safe"] == 1)
    server.copy._every_s = 1000.0
    time.sleep(0.2)  # a copy under way ends
    browser.rate(server, 3)
    time.sleep(0.5)
    assert browser.look(server)["safe"] == 1
    finish(browser, server)
    assert_soon(lambda: browser.look(server)["state"] == "done")
    hub.fails = "always"
    Browser().begin(server)
    server.copy.wake()
    assert_soon(lambda: server.copy.status().failing)
    hub.fails = ""
    assert_soon(lambda: not server.copy.status().failing)  # by itself
    Browser().begin(server)
    server.copy.close()
    server.store.close()
    assert sum(b"key_sha256" in data for data in hub.files.values()) >= 3  # the last one too


def assert_soon(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_tries_come_later_and_later_but_never_end(tmp_path: Path, hub: FakeHub) -> None:
    store = Store(tmp_path, "tiny", "0" * 64)
    copy = Copy(store, hub_target(hub), PREFIX, 8)
    copy.begin()
    assert copy._pause() == 120
    copy.wake()
    assert copy._pause() == 30  # the Hub's own least pause
    pauses = []
    for _ in range(40):
        copy._note_failure(HubDown("down"))
        pauses.append(copy._pause())
    assert pauses[:5] == [30, 60, 120, 240, 300]
    assert set(pauses[5:]) == {300}
    store.close()


def test_copying_stops_no_rating_while_the_network_hangs(
    server: Server, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, gate = Browser(), threading.Event()
    browser.begin(server)
    monkeypatch.setattr(hub, "create_commit", lambda **_: gate.wait(120))
    thread = threading.Thread(target=server.copy.cycle)
    thread.start()
    finish(browser, server)
    assert thread.is_alive()
    gate.set()
    thread.join()


# ---- the environment
KEY = {"LISTENING_TEST_KEY": "k"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LISTENING_TEST_COPY": "hf://datasets/a/b", "HF_TOKEN": "t"}, "needs LISTENING_TEST_KEY"),
        ({"LISTENING_TEST_COPY": "hf://datasets/a/b", **KEY}, "HF_TOKEN is not set"),
        ({"LISTENING_TEST_COPY": "hf://datasets/../b", **KEY, "HF_TOKEN": "t"}, "must be hf://"),
        ({"LISTENING_TEST_COPY": "bucket", **KEY}, "absolute path"),
        ({"LISTENING_TEST_COPY": "/no/such/folder", **KEY}, "no folder"),
    ],
)
def test_an_environment_that_cannot_be_used_is_told(environment: dict[str, str], says: str) -> None:
    with pytest.raises(BadTarget, match=says):
        target_from(environment)


def test_the_environment_names_the_target(tmp_path: Path) -> None:
    assert target_from({}) is None
    assert target_from({"LISTENING_TEST_COPY": " "}) is None
    folder = target_from({"LISTENING_TEST_COPY": str(tmp_path), **KEY})
    assert isinstance(folder, FolderTarget)
    hub = target_from({"LISTENING_TEST_COPY": "hf://datasets/a/b", **KEY, "HF_TOKEN": "t"})
    assert isinstance(hub, HubTarget)
    assert hub.place == "hf://datasets/a/b"


def test_a_mount_that_went_away_is_no_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    folder.mkdir()
    target = FolderTarget(folder)
    assert target.names(PREFIX) == set()
    folder.rmdir()
    with pytest.raises(OSError, match="is gone"):
        target.names(PREFIX)
    with pytest.raises(OSError, match="is gone"):
        target.commit({f"{PREFIX}a.jsonl": b""}, ())


def test_other_clips_have_another_place(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path, items=2)
    study = load_prepared(study_dir)
    place = place_of(study, study_dir)
    assert place.startswith("small/")
    assert place_of(study, study_dir) == place
    clip = next((study_dir / "serve" / "audio").iterdir())
    clip.write_bytes(clip.read_bytes()[:-2] + b"\x01\x02")
    assert place_of(study, study_dir) != place
