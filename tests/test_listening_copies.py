"""Ratings off the machine: the disk is lost, pushes fail, and nothing that counts is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test import changes
from listening_test.changes import ForeignCopy
from listening_test.enrolment import Refused
from listening_test.leases import CLOCKS_S, LEASE_S
from listening_test.offsite import Copy, NotCopied
from listening_test.rows import utc
from listening_test.segments import decoded
from listening_test.session_plan import block_rows
from listening_test.targets import FolderTarget
from tests.copies import PREFIX, Browser, FakeHub, Server, finish, hub_target, scores


# ---- the disk is lost
@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_a_wiped_disk_loses_nothing_that_was_safe(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bucket").mkdir()
    target = hub_target(FakeHub()) if kind == "hub" else FolderTarget(tmp_path / "bucket")
    server = Server(tmp_path / "data", target)
    done, midway = Browser(), Browser()
    for browser in (done, midway):
        browser.begin(server)
    finish(done, server)
    midway.rate(server, 4)
    server.copy.cycle()
    code = done.look(server)["code"]
    before = {table: server.rows(table) for table in ("ratings", "screens", "meta")}
    sessions = server.rows("sessions")
    server.wipe()
    assert {table: server.rows(table) for table in before} == before
    idle = {"last_seen"}
    assert [{k: v for k, v in row.items() if k not in idle} for row in server.rows("sessions")] == [
        {k: v for k, v in row.items() if k not in idle} for row in sessions
    ]
    csv = (tmp_path / "data" / "ratings.csv").read_text(encoding="utf-8")
    assert all(row["rating_id"] in csv for row in before["ratings"])
    assert done.come_back(server)["code"] == code
    state = midway.come_back(server)
    assert (state["trial_index"], state["safe"]) == (2, 1)
    finish(midway, server)
    server.store.close()


def test_the_browser_brings_back_what_was_acknowledged_and_not_yet_safe(server: Server) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 5)
    server.copy.cycle()
    for score in (2, 3, 1):
        browser.rate(server, score)
    assert browser.state["safe"] == 1
    assert sorted(browser.kept) == [2, 3, 4]
    then = browser.acknowledged
    server.now += 3600
    server.wipe()
    assert len(server.rows()) == 1
    assert browser.come_back(server)["trial_index"] == 5
    found = {r["trial_index"]: (r["rating_id"], r["score"], r["server_utc"]) for r in server.rows()}
    assert found == {n: (key, score, utc(at)) for n, (key, score, at) in then.items()}
    (session,) = server.rows("sessions")
    assert session["last_seen"] == server.now  # at work: nobody gets its place


def test_a_session_that_was_never_copied_comes_back_by_its_ticket(server: Server) -> None:
    first, browser = Browser(), Browser()
    first.begin(server)
    browser.begin(server)
    browser.rate(server, 2)
    browser.rate(server, 4)
    (session,) = [r for r in server.rows("sessions") if r["n_done"] == 2]
    rated = scores(server)
    server.wipe()
    assert server.rows("sessions") == []
    assert browser.come_back(server)["trial_index"] == 3
    (back,) = server.rows("sessions")
    same = ("session_id", "rater_id", "design_row", "trials", "consent_utc", "key_sha256")
    assert {name: back[name] for name in same} == {name: session[name] for name in same}
    assert scores(server) == rated
    # The places of the server that died are its own until its lease is over.
    assert Browser().begin(server)["state"] == "practice"
    assert {r["design_row"] for r in server.rows("sessions")} == {1, block_rows(server.study)}
    server.now += LEASE_S + CLOCKS_S + 1
    browser.rate(server, 5)  # is at work: nobody else gets its place
    server.copy.cycle()
    Browser().begin(server)
    Browser().begin(server)
    assert [r["design_row"] for r in server.rows("sessions")][2:] == [0, 2]


# ---- what nobody can make up
def test_without_its_own_receipt_no_answer_counts_unheard(server: Server) -> None:
    browser, thief = Browser(), Browser()
    browser.begin(server)
    thief.begin(server)
    browser.rate(server, 2)
    answer, receipt = browser.kept[1]
    forged = [
        (answer, ""),
        (answer, "1000000000." + "0" * 64),
        (answer, f"{int(receipt.split('.')[0]) - 1}.{receipt.split('.')[1]}"),
        (type(answer)(**{**vars(answer), "answers": (5,)}), receipt),
        (type(answer)(**{**vars(answer), "comment": "better"}), receipt),
    ]
    server.wipe()
    browser.begin(server, browser.ticket)
    for changed, given_receipt in forged:
        with pytest.raises(Refused) as refusal:
            browser.send(server, changed, given_receipt)
        assert refusal.value.code == "foreign_clip"
    thief.begin(server, thief.ticket)
    with pytest.raises(Refused):  # another session's receipt
        thief.send(server, answer, receipt)
    assert server.rows() == []
    browser.send(server, answer, receipt)
    assert len(server.rows()) == 1


def test_a_false_ticket_or_a_deleted_session_is_refused(server: Server) -> None:
    browser = Browser()
    browser.begin(server)
    ticket = browser.ticket
    assert ticket is not None
    server.copy.cycle()
    stranger = Browser()
    for false in (f"{ticket[:-1]}{'0' if ticket[-1] != '0' else '1'}", f"AA{ticket}", ticket):
        with pytest.raises(Refused) as refusal:  # the last: that session goes on elsewhere
            stranger.begin(server, false)
        assert refusal.value.code == "no_session"
    server.run(lambda db: db.execute("DELETE FROM sessions"))
    with pytest.raises(Refused):
        browser.come_back(server)
    server.copy.cycle()
    server.wipe()
    with pytest.raises(Refused):
        browser.come_back(server)


def test_the_code_comes_only_once_all_is_safe(server: Server, hub: FakeHub) -> None:
    browser = Browser()
    browser.begin(server)
    server.copy.cycle()
    hub.fails = "before"
    finish(browser, server)
    for _ in range(2):
        state = browser.look(server)
        assert (state["state"], state["then"], state["safe"]) == ("copying", "done", 0)
        assert "code" not in state
        server.copy.cycle()
    assert len(browser.kept) == 7
    hub.fails = ""
    server.copy.cycle()
    state = browser.look(server)
    assert (state["state"], state["safe"], len(state["code"])) == ("done", 7, 8)
    assert browser.kept == {}


def test_who_is_screened_out_waits_for_the_copy_too(server: Server) -> None:
    browser = Browser()
    browser.begin(server)
    out = {"state": "screened_out", "back": "https://platform.example/?cc=CODE"}
    told = server.run(lambda db: server.copy.tell(db, browser.key, out))
    assert (told["state"], told["then"]) == ("copying", "screened_out")
    assert "CODE" not in repr(told)
    server.copy.cycle()
    told = server.run(lambda db: server.copy.tell(db, browser.key, out))
    assert told.items() >= out.items()


# ---- pushes that fail
@pytest.mark.parametrize("how", ["before", "after", "always"])
def test_a_failing_push_blocks_nobody_and_is_told(server: Server, hub: FakeHub, how: str) -> None:
    browser = Browser()
    browser.begin(server)
    server.copy.cycle()
    assert server.copy.status().alarm == ""
    succeeded = server.copy.status().last_success
    hub.fails = how
    browser.rate(server, 3)
    server.copy.cycle()
    server.copy.cycle()
    status = server.copy.status()
    assert (status.waiting, status.failing) == (2, True)  # the rating and its session
    assert status.last_success == succeeded
    assert status.last_failure is not None
    assert status.place == "hf://datasets/lab/ratings"
    assert "not copied off the machine (2 rows wait" in status.alarm
    assert "Request ID" not in status.alarm
    assert browser.rate(server, 4)["safe"] == 0
    hub.fails = ""
    server.copy.cycle()
    assert server.copy.status().alarm == ""
    assert browser.look(server)["safe"] == 2
    rated = scores(server)
    server.wipe()
    assert scores(server) == rated


def test_a_rating_made_during_a_push_is_not_taken_for_safe(
    server: Server, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    commit = hub.create_commit

    def slow(**given_arguments: Any) -> None:
        browser.rate(server, 4)
        commit(**given_arguments)

    monkeypatch.setattr(hub, "create_commit", slow)
    server.copy.cycle()
    monkeypatch.undo()
    assert browser.look(server)["safe"] == 1
    assert sorted(browser.kept) == [2]
    server.copy.cycle()
    assert browser.look(server)["safe"] == 2


def test_a_folder_push_that_breaks_off_midway_leaves_no_half_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    target = FolderTarget(tmp_path / "bucket")
    server = Server(tmp_path / "data", target)
    monkeypatch.setattr(changes, "SEGMENT_ROWS", 1)  # a segment a session
    browsers = [Browser() for _ in range(4)]
    for browser in browsers:
        browser.begin(server)
        browser.rate(server, 2)
        browser.rate(server, 3)
    replace, written = os.replace, 0

    def fail_third(source: Any, goal: Any) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError("the mount went away")
        replace(source, goal)

    with monkeypatch.context() as broken:
        broken.setattr("listening_test.targets.os.replace", fail_third)
        server.copy.cycle()
    assert "the mount went away" in server.copy.status().alarm
    assert all(browser.look(server)["safe"] == 0 for browser in browsers)
    server.wipe()  # before it is tried again
    rows = server.rows()
    for session in server.rows("sessions"):
        own = [r["trial_index"] for r in rows if r["session_id"] == session["session_id"]]
        assert own == list(range(1, session["n_done"] + 1))
    assert 0 < len(server.rows("sessions")) < 4
    for browser in browsers:
        browser.come_back(server)
        assert browser.rate(server, 4)["trial_index"] == 4
    server.copy.cycle()
    assert all(browser.look(server)["safe"] == 3 for browser in browsers)
    assert len(server.rows()) == 12
    server.store.close()


def test_the_same_segment_twice_changes_nothing(server: Server, hub: FakeHub) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    server.copy.cycle()
    browser.rate(server, 4)
    server.copy.cycle()
    before = {t: server.rows(t) for t in ("ratings", "sessions", "meta", "changes")}
    segments = {name: decoded(data) for name, data in hub.segments.items()}
    assert server.run(lambda db: changes.restore(db, segments)) == 0  # known by name
    renamed = {f"{name}x": segment for name, segment in segments.items()}
    assert server.run(lambda db: changes.restore(db, renamed)) == len(segments)
    assert {t: server.rows(t) for t in before} == before


def test_many_segments_become_few(
    server: Server, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_SEGMENTS", 3)
    browser = Browser()
    browser.begin(server)
    for score in (1, 2, 3, 4, 5):
        browser.rate(server, score)
        server.copy.cycle()
        assert len(hub.segments) <= 4
    rated = scores(server)
    server.wipe()
    assert scores(server) == rated


def test_copies_that_vanished_are_made_again(server: Server, hub: FakeHub) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    server.copy.cycle()
    hub.versions.append({})
    server.store.close()
    server.open()
    rated = scores(server)
    server.wipe()
    assert scores(server) == rated


# ---- two servers for a moment, as when a Space changes its container
def test_what_the_old_server_copies_last_reaches_the_new_one(tmp_path: Path, hub: FakeHub) -> None:
    old = Server(tmp_path / "old", hub_target(hub))
    stays, moves = Browser(), Browser()
    for browser in (stays, moves):
        browser.begin(old)
        browser.rate(old, 3)
    old.copy.cycle()
    new = Server(tmp_path / "new", hub_target(hub))
    new.now = old.now
    stays.rate(old, 5)
    moves.come_back(new)
    moves.rate(new, 2)
    new.copy.cycle()
    # The old server copies that session too, as far as it knows it.
    old.run(lambda db: db.execute("UPDATE sessions SET submission = 's' WHERE n_done = 1"))
    old.copy.cycle()
    segments = len(hub.segments)
    new.copy.cycle()
    assert len(hub.segments) == segments  # what was taken in is not copied again
    assert len(new.rows()) == 4
    assert stays.come_back(new)["trial_index"] == 3
    assert moves.look(new)["trial_index"] == 3  # the old server's view did not set it back
    waiting = new.run(changes.waiting)
    assert waiting == 0  # nothing goes to and fro
    new.wipe()
    assert len(new.rows()) == 4
    for server in (old, new):
        server.store.close()


def test_another_servers_ratings_are_refused(tmp_path: Path, hub: FakeHub) -> None:
    one = Server(tmp_path / "one", hub_target(hub))
    Browser().begin(one)
    one.copy.cycle()
    two = Server(tmp_path / "two", hub_target(FakeHub()))
    Browser().begin(two)
    copy = Copy(two.store, hub_target(hub), PREFIX, 8)
    with pytest.raises(ForeignCopy, match="place of its own"):
        copy.begin()
    for server in (one, two):
        server.store.close()


def test_ratings_made_before_there_was_a_target_are_copied_too(
    tmp_path: Path, hub: FakeHub
) -> None:
    server = Server(tmp_path / "data", hub_target(FakeHub()))
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    server.target = hub_target(hub)
    server.store.close()
    server.open()
    rated = scores(server)
    server.wipe()
    assert scores(server) == rated


# ---- what may lie there
def test_damaged_segments_are_told_and_do_no_harm(server: Server, hub: FakeHub) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 3)
    server.copy.cycle()
    name = f"{PREFIX}cut.jsonl"
    whole = next(iter(hub.files.values()))
    hub.versions.append({**hub.files, name: whole[: len(whole) - 5]})
    rated = scores(server)
    server.wipe()
    assert scores(server) == rated
    assert server.copy.status().alarm == (
        f"1 copies at hf://datasets/lab/ratings are damaged: {name}."
    )


def test_tables_of_later_software_are_copied_too(server: Server, hub: FakeHub) -> None:
    made = [
        "CREATE TABLE moods (session_id TEXT PRIMARY KEY, answers TEXT)",
        "CREATE TABLE days (number INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT)",
    ]

    def make(db: Any) -> None:
        for statement in made:
            db.execute(statement.replace("TABLE", "TABLE IF NOT EXISTS"))

    server.run(make)
    server.store.close()
    server.open()
    browser = Browser()
    browser.begin(server)
    finish(browser, server)
    server.copy.cycle()
    assert browser.look(server)["state"] == "done"
    (session,) = server.rows("sessions")
    server.run(
        lambda db: db.execute("INSERT INTO moods VALUES (?, '{}')", (session["session_id"],))
    )
    assert browser.look(server)["state"] == "copying"  # it is of this session
    for day in ("Monday", "Tuesday"):
        server.run(lambda db, day=day: db.execute("INSERT INTO days (day) VALUES (?)", (day,)))
    server.run(lambda db: db.execute("DELETE FROM days WHERE number = 1"))
    server.copy.cycle()
    assert browser.look(server)["state"] == "done"
    moods, days = server.rows("moods"), server.rows("days")
    assert days == [{"number": 2, "day": "Tuesday"}]
    with pytest.raises(ForeignCopy, match="later one"):
        server.wipe()  # and started with this version
    server.run(make)
    server.copy.begin()
    assert (server.rows("moods"), server.rows("days")) == (moods, days)


def test_no_table_goes_uncopied_by_oversight(server: Server) -> None:
    server.run(lambda db: db.execute("CREATE TABLE pairs (a, b, PRIMARY KEY (a, b))"))
    with pytest.raises(NotCopied, match="pairs has no single key"):
        server.copy.begin()


# ---- any order of events, against the plainest model
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["rate", "back"]), st.integers(0, 2), st.integers(1, 5)),
        st.tuples(
            st.sampled_from(["push", "push", "before", "after", "always", "wipe", "restart"]),
            st.just(0),
            st.just(0),
        ),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(STEPS)
def test_whatever_happens_nothing_safe_is_lost_and_the_browser_brings_the_rest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    hub = FakeHub()
    server = Server(tmp_path_factory.mktemp("any") / "data", hub_target(hub))
    browsers = [Browser() for _ in range(3)]
    for browser in browsers:
        browser.begin(server)
    for what, who, score in steps:
        browser = browsers[who]
        if what in ("rate", "back"):
            browser.come_back(server)
            if what == "rate" and "clips" in browser.state:
                browser.rate(server, score)
        elif what in ("wipe", "restart"):
            if what == "wipe":
                server.wipe()
            else:
                server.store.close()
                server.open()
            assert_safe(server, browsers)
        else:
            hub.fails = "" if what == "push" else what
            server.copy.cycle()
            hub.fails = ""
    server.wipe()
    assert_safe(server, browsers)
    for browser in browsers:
        browser.come_back(server)
    expected = sorted(r[:2] for browser in browsers for r in browser.acknowledged.values())
    assert sorted((r["rating_id"], r["score"]) for r in server.rows()) == expected
    server.copy.cycle()
    server.wipe()
    assert sorted((r["rating_id"], r["score"]) for r in server.rows()) == expected
    assert all(not browser.kept for browser in browsers if browser.look(server))
    server.store.close()


def assert_safe(server: Server, browsers: list[Browser]) -> None:
    stored = scores(server)
    for browser in browsers:
        for trial, (rating_id, score, _) in browser.acknowledged.items():
            if trial <= browser.safe:
                assert stored[rating_id] == score


def test_the_copies_hold_what_a_person_can_read(server: Server, hub: FakeHub) -> None:
    browser = Browser()
    browser.begin(server)
    browser.rate(server, 4)
    server.copy.cycle()
    lines = [json.loads(line) for data in hub.segments.values() for line in data.splitlines()]
    (rating,) = [line["row"] for line in lines if line.get("table") == "ratings"]
    assert (rating["score"], rating["label_shown"], rating["trial_index"]) == (4, "Good", 1)
    assert not any(line.get("table") == "clips" for line in lines)
