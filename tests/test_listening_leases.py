"""Several servers of one study: who may give out which places, whatever happens between them."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test import changes, enrolment, leases, offsite
from listening_test.changes import ForeignCopy
from listening_test.database import SCHEMA
from listening_test.design import balanced_rows, session_order, williams
from listening_test.enrolment import Refused
from listening_test.leases import CLOCKS_S, LEASE_S, Block, Leases, Ledger, advanced
from listening_test.store import Store
from listening_test.targets import FolderTarget, Target
from tests.copies import PREFIX, Browser, FakeHub, Server, finish, hub_target

LEDGER = f"{PREFIX}leases.json"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def target_of(kind: str, hub: FakeHub, bucket: Path) -> Target:
    return hub_target(hub) if kind == "hub" else FolderTarget(bucket)


def assert_disjoint(servers: Collection[Server | Leases]) -> None:
    held = [s.copy.rows() if isinstance(s, Server) else s.rows() for s in servers]
    for one, two in combinations(held, 2):
        assert not {n for part in one for n in part} & {n for part in two for n in part}


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_servers_give_out_different_places_and_know_each_others_ratings(
    kind: str, tmp_path: Path, hub: FakeHub, bucket: Path
) -> None:
    target = target_of(kind, hub, bucket)
    servers = [Server(tmp_path / str(n), target) for n in range(3)]
    browsers = []
    for turn in range(4):
        for server in servers:
            browser = Browser()
            browser.begin(server)
            browser.rate(server, 1 + turn)
            browsers.append(browser)
    assert_disjoint(servers)
    for _ in range(2):
        for server in servers:
            server.copy.cycle()
    for server in servers:
        assert len(server.rows()) == 12
        assert len({s["design_row"] for s in server.rows("sessions")}) == 12
        assert server.copy.status().alarm == ""
        server.store.close()


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_servers_that_begin_at_once_share_one_salt_and_no_place(
    kind: str, tmp_path: Path, hub: FakeHub, bucket: Path
) -> None:
    target = target_of(kind, hub, bucket)
    gate, made = threading.Barrier(6), []

    def start(number: int) -> None:
        gate.wait()
        made.append(Server(tmp_path / str(number), target))

    threads = [threading.Thread(target=start, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 6
    assert_disjoint(made)
    assert len({server.run(changes.salt) for server in made}) == 1
    assert all(server.copy.rows() for server in made)
    if kind == "hub":
        assert hub.refused  # the race was one
    for server in made:
        server.copy.cycle()
        assert server.copy.status().alarm == ""
        server.store.close()


def test_a_commit_in_between_is_refused_by_its_parent_and_tried_again(
    server: Server, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = hub_target(hub)
    data, version = target.shared(LEDGER)
    assert data is not None
    hub.versions.append({**hub.files, "another/study.jsonl": b"x"})  # somebody else's commit
    assert not target.swap(LEDGER, b"{}\n", version)
    assert target.shared(LEDGER)[0] == data
    whole, meanwhile = hub_target(hub).swap, iter([True, True])

    def interrupted(name: str, new: bytes, seen: str) -> bool:
        if next(meanwhile, False):
            hub.versions.append({**hub.files, f"another/{len(hub.versions)}.jsonl": b"x"})
        return whole(name, new, seen)

    monkeypatch.setattr(target, "swap", interrupted)
    hub.refused = 0
    late = Server(tmp_path / "late", target)
    assert hub.refused == 2
    assert_disjoint([server, late])
    late.store.close()


def test_an_answer_that_got_lost_takes_no_second_block(
    server: Server, hub: FakeHub, tmp_path: Path
) -> None:
    hub.fails = "after"
    with pytest.raises(offsite.NotCopied):
        Server(tmp_path / "late", hub_target(hub))
    hub.fails = ""
    store = Store(tmp_path / "late", "tiny", "0" * 64)
    mine = Leases(store, hub_target(hub), LEDGER, 8, lambda: server.now)
    mine.sync()
    data, _ = hub_target(hub).shared(LEDGER)
    ledger = Ledger.model_validate_json(data or b"")
    assert [n for part in mine.rows() for n in part] == list(ledger.rows([1])[0])
    assert len(ledger.blocks) == 2
    store.close()


def test_a_lease_is_renewed_given_back_and_taken_over(tmp_path: Path, hub: FakeHub) -> None:
    one, two = Server(tmp_path / "one", hub_target(hub)), Server(tmp_path / "two", hub_target(hub))
    first = one.copy.rows()
    for _ in range(8):  # renewed, each time before it runs out
        for server in (one, two):
            server.now += LEASE_S / 4
            server.copy.cycle()
        assert one.copy.rows() == first
    one.now = two.now = max(one.now, two.now)
    for _ in range(3):  # one is cut off
        one.now = two.now = two.now + LEASE_S / 8
        two.copy.cycle()
        assert_disjoint([one, two])
    data, _ = hub_target(hub).shared(LEDGER)
    one.now = two.now = Ledger.model_validate_json(data or b"").blocks[0].until
    # By its own clock it is over: it gives out no place any more.
    assert one.copy.rows() == ()
    with pytest.raises(Refused) as refusal:
        Browser().begin(one)
    assert (refusal.value.status, refusal.value.code) == (503, "no_place")
    assert "New raters have to wait" in one.copy.status().alarm
    two.copy.cycle()
    assert first[0] not in two.copy.rows()  # its clock may be ahead
    two.now += CLOCKS_S + 1
    two.copy.cycle()
    assert first[0] in two.copy.rows()
    one.now = two.now
    one.copy.cycle()  # it is back, and finds its block in other hands
    assert one.copy.rows()
    assert_disjoint([one, two])
    two.copy.close()
    one.copy.cycle()
    assert first[0] in one.copy.rows()
    for server in (one, two):
        server.store.close()


def test_a_server_that_is_asked_to_end_leaves_its_places_to_the_next(
    tmp_path: Path, hub: FakeHub
) -> None:
    old = Server(tmp_path / "old", hub_target(hub))
    begun = Browser()
    begun.begin(old)
    begun.rate(old, 3)
    old.copy.close()
    assert old.copy.rows() == ()
    old.store.close()
    new = Server(tmp_path / "new", hub_target(hub))
    new.now = old.now
    begun.come_back(new)
    Browser().begin(new)
    assert [row["design_row"] for row in new.rows("sessions")] == [0, 1]
    new.store.close()


def test_more_places_are_taken_before_they_run_out(server: Server) -> None:
    size = len(server.copy.rows()[0])
    for _ in range(size):
        Browser().begin(server)
    with pytest.raises(Refused) as refusal:
        Browser().begin(server)
    assert refusal.value.code == "no_place"
    server.copy.cycle()
    assert len(server.copy.rows()) == 2
    for _ in range(size // 2 + 1):
        Browser().begin(server)
    server.copy.cycle()
    assert len(server.copy.rows()) == 3
    given = {row["design_row"] for row in server.rows("sessions")}
    assert given == set(range(size + size // 2 + 1))


def test_a_damaged_ledger_is_told_and_ratings_are_copied_all_the_same(
    server: Server, hub: FakeHub
) -> None:
    browser = Browser()
    browser.begin(server)
    for damage in (b"", b"{not json\n", b'{"salt": 1}\n', b'{"salt":"x","rows_per_block":0}\n'):
        hub.versions.append({**hub.files, LEDGER: damage})
        browser.rate(server, 3)
        server.copy.cycle()
        assert "leases.json at hf://datasets/lab/ratings is damaged" in server.copy.status().alarm
        assert browser.look(server)["safe"] == browser.state["up"] - 1
    hub.versions.append({name: data for name, data in hub.files.items() if name != LEDGER})
    server.copy.cycle()
    assert server.copy.status().alarm == ""


def test_a_folder_under_another_salt_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    Server(tmp_path / "one", hub_target(hub)).store.close()
    two = Server(tmp_path / "two", hub_target(FakeHub()))
    Browser().begin(two)
    two.target = hub_target(hub)
    two.store.close()
    with pytest.raises(ForeignCopy, match="place of its own"):
        two.open()
    two.store.close()


# ---- a shared file in a folder
def test_a_version_that_was_never_finished_holds_nobody_up_for_long(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FolderTarget(bucket)
    assert target.shared("a/f.json") == (None, "0")
    assert target.swap("a/f.json", b"one\n", "0")
    assert not target.swap("a/f.json", b"two\n", "0")
    (bucket / "a" / "f.json-00000002").write_bytes(b"tw")  # its writer died
    monkeypatch.setattr("listening_test.targets._PATIENCE_S", 0.1)
    with pytest.raises(OSError, match="being written"):
        target.shared("a/f.json")
    monkeypatch.setattr("listening_test.targets._WRITING_S", -1.0)
    assert target.shared("a/f.json") == (b"one\n", "2")
    assert target.swap("a/f.json", b"three\n", "2")
    assert target.shared("a/f.json") == (b"three\n", "3")


def test_a_reader_waits_for_a_version_that_is_being_written(bucket: Path) -> None:
    target = FolderTarget(bucket)
    assert target.swap("f.json", b"one\n", "0")
    path = bucket / "f.json-00000002"
    path.write_bytes(b"")
    writer = threading.Timer(0.3, path.write_bytes, [b"two\n"])
    writer.start()
    assert target.shared("f.json") == (b"two\n", "2")
    writer.join()


def test_old_versions_are_cleared_away_and_a_latecomer_loses(bucket: Path) -> None:
    target = FolderTarget(bucket)
    for number in range(60):
        assert target.swap("f.json", b"%d\n" % number, str(number))
    assert len(list(bucket.iterdir())) <= 21
    assert not target.swap("f.json", b"late\n", "3")
    assert target.shared("f.json") == (b"59\n", "60")


# ---- any order of events
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["sync", "sync", "crash", "release", "wait", "use"]),
        st.integers(0, 3),
        st.floats(1, 2 * LEASE_S),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_block_ever_has_two_holders(steps: list[tuple[str, int, float]]) -> None:
    now, ledger = 0.0, Ledger(salt="s", rows_per_block=8)
    names = [f"server-{n}" for n in range(4)]
    known: dict[str, Ledger] = {}  # the ledger as each server read it last
    used: set[int] = set()
    for what, who, value in steps:
        name = names[who]
        if what == "wait":
            now += value
        elif what == "sync":
            taken = frozenset(used)
            ledger = advanced(
                ledger, name, now,
                lambda rows, taken=taken: len({n for part in rows for n in part} - taken),
            )  # fmt: skip
            known[name] = ledger
            assert ledger.held(name)
        elif what == "release":
            ledger = leases.released(ledger, name)
            known.pop(name, None)
        elif what == "crash":
            known.pop(name, None)
            names[who] = name + "'"
        elif name in known:
            used |= set(range(8 * len(ledger.blocks)))
        rows = [
            n
            for server, seen in known.items()
            for n, until in seen.held(server).items()
            if until > now
        ]
        assert max(Counter(rows).values(), default=1) == 1


def test_nothing_is_written_while_nothing_changes() -> None:
    ledger = advanced(Ledger(salt="s", rows_per_block=8), "a", 0.0, lambda rows: 8 * len(rows))
    assert advanced(ledger, "a", 10.0, lambda rows: 8 * len(rows)) is ledger
    assert advanced(ledger, "a", LEASE_S / 2 + 1, lambda rows: 8 * len(rows)) is not ledger
    assert ledger.blocks == (Block(server="a", until=LEASE_S),)


class SlowMount:
    """A bucket as one machine sees it: the last writer wins, others see it `delay` seconds late."""

    place, pause_s, settle_s = "bucket", 1.0, 75.0

    def __init__(self, writes: list[tuple[float, int, bytes]], me: int, clock: Callable[[], float],
                 delay: Callable[[], float]) -> None:  # fmt: skip
        self.writes, self.me, self.clock, self.delay = writes, me, clock, delay

    def shared(self, name: str) -> tuple[bytes | None, str]:
        """See `Target`."""
        seen = [
            data for at, who, data in self.writes
            if who == self.me or at + self.delay() <= self.clock()
        ]  # fmt: skip
        return (seen[-1] if seen else None), ""

    def swap(self, name: str, data: bytes, version: str) -> bool:
        """See `Target`: nobody is ever refused."""
        self.writes.append((self.clock(), self.me, data))
        return True

    def names(self, prefix: str) -> set[str]:
        """Unused."""
        raise NotImplementedError

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """Unused."""
        raise NotImplementedError

    def commit(self, add: Mapping[str, bytes], remove: Collection[str]) -> None:
        """Unused."""
        raise NotImplementedError

    def forget_history(self) -> None:
        """Unused."""
        raise NotImplementedError


class Memory:
    """A store without a disk."""

    def __init__(self, salt: str) -> None:
        self.db = sqlite3.connect(":memory:")
        self.db.row_factory = sqlite3.Row
        self.db.executescript(SCHEMA)
        self.db.execute("INSERT INTO meta VALUES ('salt', ?)", (salt,))

    def run(self, operation: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """As `Store.run`, at once."""
        done: Future[Any] = Future()
        done.set_result(operation(self.db))
        return done

    def read(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """As `Store.read`."""
        return operation(self.db)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 40), st.floats(0, 30)), min_size=6, max_size=40
    )
)
def test_a_mount_where_the_last_writer_wins_still_gives_no_place_twice(
    steps: list[tuple[int, float, float]],
) -> None:
    now, delay = 1000.0, 0.0
    writes: list[tuple[float, int, bytes]] = []
    stores: list[Any] = [Memory(f"salt {n}") for n in range(3)]
    for store in stores:
        store.run(lambda db: changes.watch(db, "bucket")).result()
    servers = [
        Leases(store, SlowMount(writes, n, lambda: now, lambda: delay), "leases", 8, lambda: now)
        for n, store in enumerate(stores)
    ]
    for who, wait, next_delay in steps:
        now += wait
        delay = next_delay
        servers[who].sync()
        assert_disjoint(servers)
    for _ in range(4):  # left alone, each gets its places in the end, and all have one salt
        for server in servers:
            now += 80
            server.sync()
            assert_disjoint(servers)
    assert all(server.rows() and server.agreed for server in servers)
    assert len({store.run(changes.salt).result() for store in stores}) == 1


def test_until_a_slow_mount_has_settled_nobody_begins_and_nothing_is_copied(
    tmp_path: Path, bucket: Path
) -> None:
    target = FolderTarget(bucket)
    target.settle_s = 75.0
    server = Server(tmp_path / "data", target)
    with pytest.raises(Refused) as refusal:
        Browser().begin(server)
    assert refusal.value.code == "no_place"
    assert target.names(PREFIX) == set()
    assert server.copy._pause() == 75  # it looks again as soon as it can know
    server.now += 76
    server.copy.cycle()
    Browser().begin(server)
    assert target.names(PREFIX)
    server.store.close()


# ---- balance
def cells(orders: list[list[tuple[int, int]]]) -> Counter[tuple[int, int]]:
    return Counter(cell for order in orders for cell in order)


@pytest.mark.parametrize(
    ("items", "systems", "each"), [(6, 3, 4), (7, 2, 3), (5, 4, 5), (10, 3, 7)]
)
def test_a_block_is_balanced_in_itself(items: int, systems: int, each: int) -> None:
    size = balanced_rows(items, systems, each, 1, 10)
    assert size >= 10
    assert size % len(williams(systems)) == 0
    for block in (0, 3):
        rows = range(block * size, (block + 1) * size)
        heard = cells([session_order(items, systems, each, 1, row) for row in rows])
        assert len(heard) == items * systems
        assert len(set(heard.values())) == 1


def test_each_servers_cells_differ_by_one_at_most_though_a_third_quits(
    tmp_path: Path, hub: FakeHub
) -> None:
    servers = [Server(tmp_path / str(n), hub_target(hub)) for n in range(2)]
    study = servers[0].study
    for server in servers:
        browsers = [Browser() for _ in range(15)]
        for browser in browsers:
            browser.begin(server)
        for number, browser in enumerate(browsers):
            if number % 3:
                finish(browser, server)
        server.now += enrolment.IDLE_S + 1
        for _ in range(5):
            late = Browser()
            late.begin(server)
            finish(late, server)
    for server in servers:
        done = [s for s in server.rows("sessions") if s["state"] == "complete"]
        rows = sorted(s["design_row"] for s in done)
        assert rows == list(range(rows[0], rows[0] + 15))
        orders = [session_order(3, 2, study.items_per_rater, study.seed, row) for row in rows]
        places = [[(place, arm) for place, (_, arm) in enumerate(order)] for order in orders]
        for counts in (cells(orders), cells(places)):
            assert max(counts.values()) - min(counts.values()) <= 1
        server.store.close()


# ---- a rater who is sent from one server to another
def test_a_rater_goes_on_at_another_server_where_they_were(tmp_path: Path, hub: FakeHub) -> None:
    one, two = Server(tmp_path / "one", hub_target(hub)), Server(tmp_path / "two", hub_target(hub))
    browser = Browser()
    browser.begin(one)
    for score in (1, 2):
        browser.rate(one, score)
    one.copy.cycle()
    browser.rate(one, 3)
    assert browser.safe == 2

    def caught_up(server: Server) -> None:
        server.run(lambda db: server.copy.check_caught_up(db, browser.key, 2))

    browser.begin(two, browser.ticket)
    with pytest.raises(Refused) as refusal:  # it does not know the two that are safe
        caught_up(two)
    assert (refusal.value.status, refusal.value.code) == (503, "behind")
    two.copy.cycle()
    caught_up(two)
    assert browser.come_back(two)["trial_index"] == 4
    finish(browser, two)
    for server in (two, one):
        server.copy.cycle()
    assert browser.look(one)["state"] == "done"
    assert [r["trial_index"] for r in one.rows()] == [r["trial_index"] for r in two.rows()]
    assert len({r["rating_id"] for r in one.rows() + two.rows()}) == 7
    for server in (one, two):
        server.store.close()


def test_a_claim_of_safety_that_nothing_bears_out_holds_nobody_up(server: Server) -> None:
    browser = Browser()
    browser.begin(server)

    def check(db: Any) -> None:
        server.copy.check_caught_up(db, browser.key, 5)

    for _ in range(2):
        with pytest.raises(Refused):
            server.run(check)
        server.copy.cycle()
    server.run(check)


@pytest.mark.parametrize(("before", "after"), list(pairwise(["one", "two", "one"])))
def test_a_crashed_and_a_new_server_never_hold_the_same(
    before: str, after: str, tmp_path: Path, hub: FakeHub
) -> None:
    first = Server(tmp_path / before, hub_target(hub))
    rows = first.copy.rows()
    first.store.close()  # killed: nothing given back
    again = Server(tmp_path / before, hub_target(hub))  # its disk is still there
    assert again.copy.rows() == rows
    other = Server(tmp_path / after, hub_target(hub))
    assert_disjoint([again, other])
    for server in (again, other):
        server.store.close()
