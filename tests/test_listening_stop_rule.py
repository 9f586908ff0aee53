"""The stop rule: it counts every server's sessions, and closes a study that nobody looks after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from listening_test import enrolment
from listening_test.enrolment import Refused
from listening_test.hosting import Studies
from tests.copies import Browser, FakeHub, Server, finish, hub_target
from tests.listening import prepared_study


def complete(server: Server) -> None:
    browser = Browser()
    browser.begin(server)
    finish(browser, server)


def closed(server: Server) -> str | None:
    return server.run(enrolment.closed_utc)


def test_sessions_that_other_servers_copied_count(tmp_path: Path, hub: FakeHub) -> None:
    one, two = (Server(tmp_path / name, hub_target(hub)) for name in ("one", "two"))
    for server in (one, two):
        server.study = replace(server.study, stops_when_planned=True, planned_sessions=4)
        complete(server)
    late = Browser()
    late.begin(two)
    complete(two)
    assert closed(one) is closed(two) is None
    one.copy.cycle()
    two.copy.cycle()
    complete(two)  # the fourth, one of which was at the other server
    assert closed(two) is not None
    with pytest.raises(Refused) as refusal:
        Browser().begin(two)
    assert refusal.value.code == "closed"
    finish(late, two)  # who has begun may finish: one more than planned
    # The other server knows once it has taken in the copies, and until then takes raters.
    assert closed(one) is None
    two.copy.cycle()
    one.copy.cycle()
    assert closed(one) == closed(two)
    with pytest.raises(Refused):
        Browser().begin(one)
    for server in (one, two):
        server.store.close()


def test_a_server_that_took_in_the_last_session_closes_by_itself(
    tmp_path: Path, hub: FakeHub
) -> None:
    one, two = (Server(tmp_path / name, hub_target(hub)) for name in ("one", "two"))
    for server in (one, two):
        complete(server)
        server.copy.cycle()
    one.copy.cycle()
    # No server saw two at once before; the rule of the first is asked at the next start.
    one.study = replace(one.study, stops_when_planned=True, planned_sessions=2)
    with pytest.raises(Refused):
        Browser().begin(one)
    for server in (one, two):
        server.store.close()


def test_a_study_closes_on_its_day_though_nobody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = prepared_study(tmp_path, extra="stop_rule: {until: 2030-01-31}")
    studies = Studies()
    hosted = studies.open(study_dir)
    for day, shut in (("before", False), ("after", True), ("after", True)):
        end = hosted.study.stops_at
        assert end is not None
        monkeypatch.setattr("time.time", lambda: end - 1 if day == "before" else end)  # noqa: B023
        (state,) = studies.states()
        assert (state.closed_utc is not None) == shut
    assert state.closed_utc == "2030-02-01T00:00:00.000+00:00"
    studies.close()
