"""Withdrawal: by the rater, by the operator, at the same time as ratings, and what stays of it."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from listening_test import enrolment, shadow, trials, withdraw
from listening_test.enrolment import Refused
from listening_test.export import export
from listening_test.store import Store
from listening_test.study_parts import Platform
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, Rater, prepared_study, serving
from tests.test_listening_crowd import PROLIFIC, ids, start, study_of
from tests.test_listening_methods import served
from tests.test_listening_page import begin, heading, rate
from tests.test_listening_store import Clock, mended, opened, rows, tiny_study

COMMENT = "my-neighbour-called-Ottoline"


def leave(clock: Clock, key: str) -> int:
    n = clock.store.run(lambda db: trials.withdraw(db, key, clock.now)).result()
    clock.store.settle(10)  # the file follows
    return n


def counts(store: Store) -> dict[str, int]:
    def each(db: Any) -> dict[str, int]:
        tables = ("sessions", "ratings", "clips", "screens", "profiles")
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}

    return store.run(each).result()


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    store = opened(tmp_path)
    yield Clock(store, tiny_study())
    store.close()


def one_rating(clock: Clock, key: str, rating_id: str, comment: str = "") -> None:
    state = clock.trial(key)
    clock.serve(state["clips"][0])
    clock.now += 1
    clock.rate(key, state, rating_id, comment=comment)


def test_nothing_of_the_rater_is_left_and_the_others_keep_all(clock: Clock, tmp_path: Path) -> None:
    for key in ("stays", "leaves"):
        clock.start(key)
        one_rating(clock, key, f"{key}-1", COMMENT if key == "leaves" else "clear")
    (session,) = {row["session_id"] for row in rows(tmp_path) if row["comment"] == COMMENT}
    assert leave(clock, "leaves") == 1
    assert [row["rating_id"] for row in rows(tmp_path)] == ["stays-1"]
    assert counts(clock.store) == {
        "sessions": 1, "ratings": 1, "clips": 1, "screens": 0, "profiles": 0,
    }  # fmt: skip
    noted = "SELECT day, ratings, asked_by FROM withdrawals"
    note = clock.store.run(lambda db: tuple(db.execute(noted).fetchone()))
    assert note.result() == ("1970-01-12", 1, "rater")
    # Overwritten on the disk too, in the database, in its log and beside it.
    for path in tmp_path.iterdir():
        assert COMMENT.encode() not in path.read_bytes(), path
        assert session.encode() not in path.read_bytes(), path
    one_rating(clock, "stays", "stays-2")
    assert [row["rating_id"] for row in rows(tmp_path)] == ["stays-1", "stays-2"]
    with pytest.raises(Refused) as refusal:
        leave(clock, "leaves")
    assert refusal.value.code == "no_session"


def test_the_place_in_the_design_is_free_again(clock: Clock) -> None:
    def row_of(key: str) -> int:
        def ask(db: Any) -> int:
            return int(enrolment.session_of(db, key)["design_row"])

        return clock.store.run(ask).result()

    for key in ("a", "b", "c"):
        clock.start(key)
        clock.finish(key)
    assert [row_of(key) for key in "abc"] == [0, 1, 2]
    leave(clock, "b")
    clock.start("d")
    clock.start("e")
    assert (row_of("d"), row_of("e")) == (1, 3)


def test_a_rating_that_comes_after_the_withdrawal_is_refused(clock: Clock, tmp_path: Path) -> None:
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    leave(clock, "key")
    with pytest.raises(Refused) as refusal:
        clock.rate("key", state, "late")
    assert refusal.value.code == "no_session"
    with pytest.raises(Refused):
        clock.serve(state["clips"][0])
    assert rows(tmp_path) == []


def test_a_rating_and_the_withdrawal_in_one_commit_leave_nothing(
    clock: Clock, tmp_path: Path
) -> None:
    clock.start("stays")
    state = clock.start("key")
    clock.serve(state["clips"][0])
    clock.now += 1
    held, gate = threading.Event(), threading.Event()

    def hold(db: Any) -> None:
        held.set()
        gate.wait(5)

    clock.store.run(hold)
    assert held.wait(5)  # else the rating could be in the same batch, and never in the queue
    with ThreadPoolExecutor(2) as pool:
        rated = pool.submit(clock.rate, "key", state, "r1")
        while clock.store._queue.qsize() < 1:
            pass
        left = pool.submit(leave, clock, "key")
        while clock.store._queue.qsize() < 2:
            pass
        gate.set()
        assert rated.result(5)["state"] == "trial"  # it was kept, and then withdrawn
        assert left.result(5) == 1
    assert rows(tmp_path) == []
    one_rating(clock, "stays", "r2")
    assert [row["rating_id"] for row in rows(tmp_path)] == ["r2"]


def test_ratings_and_withdrawals_at_once_keep_who_stays_and_nobody_else(
    clock: Clock, tmp_path: Path
) -> None:
    keys = [f"k{n}" for n in range(24)]
    leaving = set(random.Random(3).sample(keys, 10))
    sessions: dict[str, str] = {}
    for key in keys:
        clock.start(key)
        session = clock.store.run(lambda db, key=key: enrolment.session_of(db, key)["session_id"])
        sessions[key] = session.result()

    def take(key: str) -> None:
        own = Clock(clock.store, clock.study)  # a time of its own, for its thread
        state, at = own.trial(key), random.Random(key).randrange(1, 7)
        with ThreadPoolExecutor(2) as pool:
            while state["state"] != "done":
                own.serve(state["clips"][0])
                own.now += 1
                leaves = key in leaving and state["trial_index"] == at
                left = pool.submit(leave, own, key) if leaves else None
                rated = pool.submit(own.rate, key, state, f"{key}-{state['trial_index']}")
                if left is not None:
                    refused = isinstance(rated.exception(10), Refused)  # it came second
                    assert left.result(10) == at - refused
                    return
                state = rated.result(10)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(take, keys))
    assert clock.store.settle(10)
    kept = rows(tmp_path)
    assert {row["session_id"] for row in kept} == {sessions[k] for k in keys if k not in leaving}
    assert len(kept) == len({row["rating_id"] for row in kept}) == 14 * 7
    assert counts(clock.store)["ratings"] == 14 * 7
    notes = clock.store.run(lambda db: db.execute("SELECT count(*) FROM withdrawals").fetchone()[0])
    assert notes.result() == 10


def test_a_withdrawal_in_another_process_is_noticed_by_the_server(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the server has committed, and is about to append to the file."""
    for key in ("stays", "leaves"):
        clock.start(key)
    other = Clock(opened(tmp_path), tiny_study())
    follow = clock.store._shadow.follow

    def late(new: Any, left: Any) -> None:
        leave(other, "leaves")
        follow(new, left)

    monkeypatch.setattr(clock.store._shadow, "follow", late)
    one_rating(clock, "leaves", "gone")
    assert clock.store.settle(10)
    assert rows(tmp_path) == []
    monkeypatch.setattr(clock.store._shadow, "follow", follow)
    one_rating(clock, "stays", "kept")
    assert clock.store.settle(10)
    assert [row["rating_id"] for row in rows(tmp_path)] == ["kept"]
    other.store.close()


def test_a_csv_that_cannot_be_written_is_told_and_made_good(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "RETRY_S", 0.05)
    for key in ("stays", "leaves"):
        clock.start(key)
        one_rating(clock, key, key)
    (tmp_path / "ratings.csv").unlink()
    (tmp_path / "ratings.csv").mkdir()
    assert leave(clock, "leaves") == 1
    assert clock.store.csv_error
    (tmp_path / "ratings.csv").rmdir()
    one_rating(clock, "stays", "again")
    assert mended(clock.store)
    assert clock.store.csv_error is None
    assert [row["rating_id"] for row in rows(tmp_path)] == ["stays", "again"]


def test_over_http_only_with_the_second_step(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42)
    with served(study_dir) as client:
        rater = Rater(client)
        rater.start()
        for body in ({}, {"confirmed": False}, {"confirmed": True, "key": "x"}):
            assert rater.post("withdraw", body).json()["error"] == "bad_request"
        assert Rater(client).post("withdraw", {"confirmed": True}).status_code == 401
        assert rater.post("withdraw", {"confirmed": True}).json() == {"withdrawn": 0}
        assert rater.post("withdraw", {"confirmed": True}).json()["error"] == "no_session"
        assert rater.start()["state"] == "practice"  # a new session, if they like


def test_an_operator_withdraws_by_the_platforms_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir = study_of(tmp_path, PROLIFIC)
    command = [str(study_dir), "--platform-id"]
    with served(study_dir) as client:  # the server goes on meanwhile
        alice, _ = start(client, ids("alice"))
        bob, _ = start(client, ids("bob"))
        assert withdraw.main([*command, "alicia", "--yes"]) == 1
        assert "Nobody with that id" in capsys.readouterr().out
        monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody there, as in a script
        for id_ in ("alice", "-"):
            assert withdraw.main([*command, id_]) == 1
            assert "Without a terminal, give the id and --yes" in capsys.readouterr().out
        monkeypatch.setattr("builtins.input", lambda asked: "no")
        assert withdraw.main([*command, "alice"]) == 1
        assert alice.trial()["state"] == "practice"
        said = iter(["alice", "yes"])
        monkeypatch.setattr("builtins.input", lambda asked: next(said))
        assert withdraw.main([*command, "-"]) == 0
        assert "Deleted: 1 session(s)" in capsys.readouterr().out
        assert alice.post("withdraw", {"confirmed": True}).json()["error"] == "no_session"
        assert bob.trial()["state"] == "practice"
        export(study_dir, tmp_path / "out")
        sessions = (tmp_path / "out" / "sessions.csv").read_text(encoding="utf-8").splitlines()
        assert len(sessions) == 2
        rater = sessions[1].split(",")[1].strip('"')
        assert withdraw.main([str(study_dir), "--rater", rater, "--yes"]) == 0
    assert withdraw.main([str(tmp_path), "--rater", "x", "--yes"]) == 2


def test_a_study_without_a_platform_has_no_platform_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_dir = study_of(tmp_path, "platform: {name: lab}")
    command = [str(study_dir), "--platform-id", "p", "--yes"]
    assert withdraw.main(command) == 2
    assert "use --rater" in capsys.readouterr().err
    assert withdraw.main([str(study_dir), "--rater", "p", "--yes"]) == 2
    assert "no ratings yet" in capsys.readouterr().err
    assert Platform(name="lab").name == "lab"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("leaving")
    study_dir = prepared_study(folder, items=2, systems=SYSTEMS[:2], seconds=0.42)
    with serving(study_dir) as address:
        yield address


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_asks_twice_and_then_forgets(browser: Browser, url: str, scheme: Any) -> None:
    with local_page(browser, color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
        page.set_default_timeout(15_000)
        page.goto(url)
        expect(page.get_by_role("button", name="I agree")).to_be_visible()
        expect(page.locator("#withdraw")).to_be_hidden()  # there is nothing to withdraw yet
        begin(page, url)
        rate(page, "4")
        heading(page, "Clip 1 of 4")
        page.get_by_role("button", name="Withdraw from the study").click()
        dialog = page.get_by_role("dialog", name="Withdraw from the study?")
        expect(dialog).to_be_visible()
        accessible(page)
        page.keyboard.press("Space")  # the focus is on “No”: a slip costs nothing
        expect(dialog).to_be_hidden()
        expect(page.locator(".play.playing")).to_have_count(0)
        heading(page, "Clip 1 of 4")
        page.get_by_role("button", name="Withdraw from the study").click()
        page.get_by_role("button", name="Yes, delete everything").click()
        heading(page, "You have withdrawn")
        accessible(page)
        assert page.evaluate("Object.keys(localStorage).filter((k) => !k.endsWith('/keys'))") == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.reload()
        expect(page.get_by_role("button", name="I agree")).to_be_visible()


@pytest.mark.browser
def test_at_the_end_the_code_outlives_the_withdrawal(browser: Browser, url: str) -> None:
    with local_page(browser) as page:
        page.set_default_timeout(15_000)
        begin(page, url)
        rate(page, "3")
        for number in range(1, 5):
            heading(page, f"Clip {number} of 4")
            rate(page, "3")
        heading(page, "Thank you")
        code = page.locator("#code").inner_text()
        page.get_by_role("button", name="Withdraw from the study").click()
        page.get_by_role("button", name="Yes, delete everything").click()
        heading(page, "You have withdrawn")
        expect(page.get_by_text(code)).to_be_visible()


@pytest.mark.browser
def test_a_lost_answer_and_a_rating_on_its_way_end_on_the_same_page(
    browser: Browser, url: str
) -> None:
    with local_page(browser) as page:
        page.set_default_timeout(15_000)
        begin(page, url)
        page.route("**/rating", lambda route: route.abort())  # it keeps trying
        rate(page, "4")
        expect(page.get_by_role("alert")).to_be_visible()
        tries: list[int] = []

        def lose(route: Route) -> None:
            tries.append(1)
            if len(tries) == 1:
                route.fetch()
                route.abort()
            else:
                route.continue_()

        page.route("**/withdraw", lose)
        page.get_by_role("button", name="Withdraw from the study").click()
        page.get_by_role("button", name="Yes, delete everything").click()
        heading(page, "You have withdrawn")
        assert len(tries) == 2
        page.unroute("**/rating")
        page.wait_for_timeout(2500)  # the rating's next try is refused, and changes nothing
        heading(page, "You have withdrawn")
        assert page.evaluate("Object.keys(localStorage)") == []
