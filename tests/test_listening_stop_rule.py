"""The stop rule: it counts every server's sessions, and closes a study that nobody looks after."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from listening_test import enrolment, prepare
from listening_test.enrolment import Refused
from listening_test.hosting import Studies
from tests.copies import Browser, FakeHub, Server, finish, hub_target
from tests.listening import prepared_study, write_study


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


def test_a_server_closes_its_study_though_no_page_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = Studies()
    hosted = studies.open(prepared_study(tmp_path, extra="stop_rule: {until: 2030-01-31}"))
    end, now = hosted.study.stops_at, time.time
    assert end is not None
    shift = end - now() + 1
    studies.watch(every_s=0.02)
    monkeypatch.setattr("time.time", lambda: now() + shift)
    deadline = time.monotonic() + 20
    while hosted.store.read(enrolment.closed_utc) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hosted.store.read(enrolment.closed_utc) is not None
    studies.close()


@pytest.mark.parametrize(("until", "over"), [("2020-01-01", True), ("2999-12-31", False)])
def test_preparing_a_study_whose_last_day_is_over_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], until: str, over: bool
) -> None:
    path = write_study(tmp_path / "source", items=2, extra=f"stop_rule: {{until: {until}}}")
    assert prepare.main([str(path), "--out", str(tmp_path / "study")]) == 0
    assert ("ends the study on a day that is over" in capsys.readouterr().err) == over


def test_a_last_day_without_end_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path / "source", items=2, extra="stop_rule: {until: 9999-12-31}")
    assert prepare.main([str(path), "--out", str(tmp_path / "study")]) == 2
    assert "line 11: stop_rule.until" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path / "source", items=2)
    (tmp_path / "file").write_text("mine")
    assert prepare.main([str(path), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
