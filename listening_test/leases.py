"""Which places of the design this server may give out, where several servers share one study.

The rows of the design are cut into blocks of equal length, each balanced in itself. A ledger beside
the copies says which server holds which block, and until when. It changes by compare-and-swap only
(`Target.swap`: on the Hub a commit with its `parent_commit`), so no block has two holders. A server
renews what it holds, takes over what was given back or ran out, and takes a new block before its
own are used up. One that cannot renew for an hour gives out no place any more: by then it copies
nothing either, and whoever began could not get a completion code.

The ledger also fixes the salt of the raters' ids: of servers that begin at once, the first to write
decides it.

What this does not know: how far the machines' clocks are apart (five minutes are allowed for), and
which rows were given out by a server that died before it copied the session. Such a row may be
given out once more.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from listening_test import changes, enrolment
from listening_test.store import Store
from listening_test.targets import Target

LEASE_S = 3600.0
# Another machine's clock may be behind by this much.
CLOCKS_S = 300.0
_TRIES = 8


class Block(BaseModel):
    """One block's holder, nobody if it was given back; `until` in seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: str | None
    until: float


class Ledger(BaseModel):
    """Who holds which block: `blocks[n]` is the rows n * rows_per_block and on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    salt: str
    rows_per_block: int = Field(ge=1)
    blocks: tuple[Block, ...] = ()

    def held(self, server: str) -> dict[int, float]:
        """The blocks of a server, and until when."""
        return {n: block.until for n, block in enumerate(self.blocks) if block.server == server}

    def rows(self, blocks: Sequence[int]) -> tuple[range, ...]:
        """The rows of some blocks, in order."""
        size = self.rows_per_block
        return tuple(range(n * size, (n + 1) * size) for n in sorted(blocks))


def advanced(
    ledger: Ledger, server: str, now: float, free: Callable[[tuple[range, ...]], int]
) -> Ledger:
    """The ledger as `server` wants it; the same object if nothing needs to change.

    Args:
        free: how many of these rows nobody completed or is at work on.
    """
    blocks = list(ledger.blocks)
    for n, block in enumerate(blocks):
        mine = block.server == server
        orphaned = not mine and (block.server is None or block.until < now - CLOCKS_S)
        if orphaned or (mine and block.until < now + LEASE_S / 2):
            blocks[n] = Block(server=server, until=now + LEASE_S)
    wanted = ledger.model_copy(update={"blocks": tuple(blocks)})
    if free(wanted.rows(list(wanted.held(server)))) < max(1, ledger.rows_per_block // 2):
        more = Block(server=server, until=now + LEASE_S)
        wanted = wanted.model_copy(update={"blocks": (*wanted.blocks, more)})
    return ledger if wanted == ledger else wanted


def released(ledger: Ledger, server: str) -> Ledger:
    """The ledger without what `server` held."""
    blocks = (
        Block(server=None, until=block.until) if block.server == server else block
        for block in ledger.blocks
    )
    return ledger.model_copy(update={"blocks": tuple(blocks)})


class Leases:
    """One server's share of the design.

    Args:
        name: of the ledger at the target.
        rows_per_block: for a ledger that is not there yet.
        clock: seconds since 1970; another one for tests.
    """

    def __init__(
        self,
        store: Store,
        target: Target,
        name: str,
        rows_per_block: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._target, self._name = store, target, name
        self._rows_per_block, self._clock = rows_per_block, clock
        self._server = ""
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None  # as it was last read for certain
        self._written: float | None = None  # when we last changed it, until that is certain
        self._agreed = False

    def rows(self) -> tuple[range, ...]:
        """The rows that this server may give out now."""
        with self._lock:
            if self._ledger is None:
                return ()
            now = self._clock()
            held = self._ledger.held(self._server)
            return self._ledger.rows([n for n, until in held.items() if until > now])

    @property
    def agreed(self) -> bool:
        """Whether the salt is for certain all servers' one: before that nothing may be copied."""
        return self._agreed

    def settles_in(self) -> float | None:
        """Seconds until a change can be taken for certain; None if none is under way."""
        written = self._written
        if written is None:
            return None
        return max(0.0, written + self._target.settle_s - self._clock())

    def look(self) -> None:
        """Take over the salt of a ledger that is there already."""
        self._read(self._target.shared(self._name)[0])

    def sync(self) -> None:
        """Read the ledger, and change it as needed.

        Raises:
            ForeignCopy: it is of another server's ratings.
            OSError: others change it all the time, or it is damaged.
        """
        self._change(self._advanced)

    def release(self) -> None:
        """Give back what this server holds, for another to go on with."""
        if self._server and self._ledger is not None:
            self._change(lambda ledger: released(ledger, self._server))
            with self._lock:
                self._ledger = None

    def _advanced(self, ledger: Ledger) -> Ledger:
        def free(rows: tuple[range, ...]) -> int:
            now = self._clock()
            return self._store.read(lambda db: enrolment.free_rows(db, rows, now))

        return advanced(ledger, self._server, self._clock(), free)

    def _change(self, wish: Callable[[Ledger], Ledger]) -> None:
        if not self._server:
            self._server = self._store.run(changes.server_id).result()
        for attempt in range(_TRIES):
            data, version = self._target.shared(self._name)
            ledger = self._read(data)
            if data is not None:
                self._note(ledger)
                if self._written is not None:
                    return  # not certain yet whether our own change stands
            wanted = wish(ledger)
            if data is not None and wanted is ledger:
                return
            if self._target.swap(self._name, _encoded(wanted), version):
                self._written = self._clock()
                self._note(wanted)
                return
            # Somebody was quicker: again, and not at the same moment as they.
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt * self._target.pause_s / 30)
        raise OSError(f"the leases at {self._target.place} change all the time")

    def _read(self, data: bytes | None) -> Ledger:
        if data is None:
            salt = self._store.read(changes.salt)
            return Ledger(salt=salt, rows_per_block=self._rows_per_block)
        try:
            ledger = Ledger.model_validate_json(data)
        except ValidationError as error:
            raise OSError(
                f"{self._name} at {self._target.place} is damaged: with all servers of the study "
                "stopped, delete it"
            ) from error
        self._store.run(lambda db: changes.take_salt(db, ledger.salt)).result()
        return ledger

    def _note(self, ledger: Ledger) -> None:
        """Take a ledger for certain, unless a change of ours may still be overwritten."""
        with self._lock:
            if self._written is not None:
                if self._clock() < self._written + self._target.settle_s:
                    return
                self._written = None
            self._ledger = ledger
            self._agreed = self._agreed or bool(ledger.held(self._server))


def _encoded(ledger: Ledger) -> bytes:
    return ledger.model_dump_json().encode() + b"\n"
