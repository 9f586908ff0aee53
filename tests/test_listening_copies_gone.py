"""What is deleted stays deleted in the copies: withdrawals, closing, two servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from listening_test import changes, enrolment
from listening_test.enrolment import Refused
from listening_test.segments import decoded
from tests.copies import Browser, FakeHub, Server, hub_target, scores


def test_what_is_deleted_is_nowhere_any_more_and_stays_deleted(
    server: Server, hub: FakeHub
) -> None:
    leaving, staying = Browser(), Browser()
    for browser in (leaving, staying):
        browser.begin(server)
        browser.rate(server, 3)
        server.copy.cycle()
    gone = leaving.acknowledged[1][0]
    assert any(gone in data.decode() for data in hub.segments.values())
    server.run(lambda db: db.execute("DELETE FROM ratings WHERE rating_id = ?", (gone,)))
    hub.fails = "after"
    server.copy.cycle()
    hub.fails = ""
    server.copy.cycle()
    assert len(hub.versions) == 1  # no history either
    rows = [row for data in hub.segments.values() for row in decoded(data).rows]
    assert [row["rating_id"] for table, row in rows if table == "ratings"] == [
        staying.acknowledged[1][0]
    ]
    server.wipe()
    assert list(scores(server)) == [staying.acknowledged[1][0]]
    assert gone not in (server.folder / "ratings.csv").read_text(encoding="utf-8")


# ---- withdrawal
def nothing_left(server: Server, hub: FakeHub, session_id: str) -> None:
    """Of a session, in the database or in a copy, but that it is gone."""
    assert server.rows("sessions") == server.rows() == server.rows("profiles") == []
    for data in hub.segments.values():
        rows = decoded(data).rows
        assert not [row for _, row in rows if session_id in row.values()]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_who_has_withdrawn_is_not_brought_back(
    server: Server, hub: FakeHub, copied: bool, lost: bool
) -> None:
    browser = Browser()
    browser.begin(server)
    (session,) = server.rows("sessions")
    for score in (2, 4, 5):
        browser.rate(server, score)
    if copied:
        server.copy.cycle()
    browser.rate(server, 1)
    # Another tab has the same key, ticket and receipts in its memory, and knows of nothing.
    tab = Browser()
    tab.key, tab.ticket, tab.kept = browser.key, browser.ticket, dict(browser.kept)
    assert browser.withdraw(server) == 4
    server.copy.cycle()
    if lost:
        server.wipe()
    for _ in range(2):
        with pytest.raises(Refused) as refusal:
            tab.come_back(server)
        assert refusal.value.code == "no_session"
        for answer, receipt in tab.kept.values():
            with pytest.raises(Refused) as refusal:
                tab.send(server, answer, receipt)
            assert refusal.value.code == "no_session"
        server.copy.cycle()
    nothing_left(server, hub, session["session_id"])
    assert [row["ratings"] for row in server.rows("withdrawals")] == [4]
    # With consent, and without the ticket, the same person may begin anew.
    assert tab.begin(server)["trial_index"] == 1
    assert server.rows("sessions")[0]["session_id"] != session["session_id"]


def test_a_withdrawal_on_a_new_disk_holds_against_what_the_old_server_still_copies(
    tmp_path: Path, hub: FakeHub
) -> None:
    old = Server(tmp_path / "old", hub_target(hub))
    known, unknown = Browser(), Browser()
    known.begin(old)
    known.rate(old, 3)
    old.copy.cycle()
    (session,) = old.rows("sessions")
    unknown.begin(old)
    unknown.rate(old, 5)
    new = Server(tmp_path / "new", hub_target(hub))
    new.now = old.now
    # The new server never saw the one's second rating, nor anything of the other but its ticket.
    known.rate(old, 4)
    assert known.withdraw(new) == 1
    assert unknown.withdraw(new) == 0
    old.copy.cycle()
    new.copy.cycle()
    new.copy.cycle()
    nothing_left(new, hub, session["session_id"])
    new.wipe()
    nothing_left(new, hub, session["session_id"])
    old.copy.cycle()
    assert old.rows() == old.rows("sessions") == []
    for _ in range(3):
        old.copy.cycle()
        new.copy.cycle()
    assert new.run(changes.waiting) == old.run(changes.waiting) == 0  # nothing goes to and fro
    for server in (old, new):
        assert len(server.rows("withdrawals")) == 2
        assert server.folder.joinpath("ratings.csv").read_text(encoding="utf-8").count("\n") == 1
        server.store.close()


def test_withdrawals_of_two_disks_are_all_counted(server: Server) -> None:
    for _ in range(2):
        browser = Browser()
        browser.begin(server)
        browser.withdraw(server)
        server.copy.cycle()
        server.wipe()
    first, second = server.rows("withdrawals")
    assert first["note_id"] != second["note_id"]


def test_a_closed_study_stays_closed_and_who_had_begun_comes_back(
    server: Server, hub: FakeHub, tmp_path: Path
) -> None:
    begun = Browser()
    begun.begin(server)
    begun.rate(server, 2)  # copied nowhere
    other = Server(tmp_path / "other", hub_target(hub))
    closed = other.run(lambda db: enrolment.close_study(db, server.now))
    other.copy.cycle()
    other.store.close()
    server.wipe()
    assert server.run(enrolment.closed_utc) == closed
    assert begun.come_back(server)["trial_index"] == 2
    with pytest.raises(Refused) as refusal:
        Browser().begin(server)
    assert refusal.value.code == "closed"
