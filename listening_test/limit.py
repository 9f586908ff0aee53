"""How many requests one address may make: many for a room full of raters, few for a script.

    limit_from(os.environ)     by LISTENING_TEST_REQUESTS, else 50 a second

A token bucket for each address: it holds `BURST_S` seconds' worth of requests, each request takes
one, and they come back at the allowed rate. An address whose bucket is full again is forgotten,
and no more than `MOST_ADDRESSES` are remembered at all. This module knows neither HTTP nor what is
asked for.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

VARIABLE = "LISTENING_TEST_REQUESTS"
# A rater makes about one request in two seconds: fifty leave room for a hundred behind one address.
DEFAULT_RATE = 50.0
# All of a room begin at once, and a page of many clips asks for all of them.
BURST_S = 20.0
MOST_ADDRESSES = 10_000
# Refusals in a flood share a line of the log.
LOG_EVERY_S = 10.0
WINDOW_S = 5 * 60


class BadLimit(ValueError):
    """The environment asks for a limit that is none; the text says what to write."""


def limit_from(environment: Mapping[str, str]) -> Limiter:
    """The limit that LISTENING_TEST_REQUESTS sets, in requests a second; 0 is no limit.

    Raises:
        BadLimit: it is not a number, or below 0.
    """
    given = environment.get(VARIABLE, "").strip()
    try:
        rate = float(given) if given else DEFAULT_RATE
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise BadLimit(
            f"{VARIABLE} is {given!r}: write how many requests a second one address may make, for "
            f"example {DEFAULT_RATE:g}, or 0 for no limit."
        )
    return Limiter(rate)


def counted_as(host: str | None) -> str | None:
    """The address that a request from `host` is counted under; None for this very machine.

    `host` is None where a proxy on this machine talks through a socket without addresses.

    A load test comes from this machine, and so does everybody where a local proxy keeps their
    addresses to itself: neither is to be slowed down. Of IPv6 a network of 64 bits is one, since
    that is what one connection gets.
    """
    if host is None:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]  # no address, but somebody's name for one
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            network = ipaddress.ip_network((address.packed[:8] + bytes(8), 64))
            return None if address.is_loopback else str(network)
        address = address.ipv4_mapped
    return None if address.is_loopback else str(address)


class Limiter:
    """Counts the requests of each address.

    Args:
        rate: requests a second that one address may make in the long run; 0 is no limit.
        most: addresses that are remembered; beyond that the one silent for longest is forgotten.
        clock: seconds that never run backwards; another one for tests.
    """

    def __init__(
        self,
        rate: float = DEFAULT_RATE,
        burst_s: float = BURST_S,
        most: int = MOST_ADDRESSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._clock, self._most = clock, most
        # Below one whole request nothing could ever pass.
        self._room_s = max(burst_s, 1 / rate) if rate else 0.0
        # When each bucket is full again, the address silent for longest first.
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._minutes: OrderedDict[int, int] = OrderedDict()  # refusals in each
        self._unlogged, self._logged_at = 0, -math.inf

    def wait_s(self, host: str | None) -> float:
        """Count a request from `host`: 0 if it may pass, else the seconds until one may."""
        address = counted_as(host)
        if address is None or not self.rate:
            return 0.0
        now = self._clock()
        full_at = max(now, self._full_at.get(address, now)) + 1 / self.rate
        wait = full_at - now - self._room_s
        if wait > 1e-9:  # rounding is no refusal
            self._note_refusal(now)
            return wait
        self._full_at[address] = full_at
        self._full_at.move_to_end(address)
        self._forget(now)
        return 0.0

    @property
    def refused(self) -> int:
        """Requests refused in the last minutes."""
        oldest = int((self._clock() - WINDOW_S) // 60)
        return sum(n for minute, n in list(self._minutes.items()) if minute >= oldest)

    @property
    def remembered(self) -> int:
        """Addresses that are remembered now."""
        return len(self._full_at)

    def _forget(self, now: float) -> None:
        while self._full_at:
            address, full_at = next(iter(self._full_at.items()))
            if full_at > now and len(self._full_at) <= self._most:
                return
            del self._full_at[address]

    def _note_refusal(self, now: float) -> None:
        minute = int(now // 60)
        self._minutes[minute] = self._minutes.get(minute, 0) + 1
        while len(self._minutes) > WINDOW_S // 60 + 1:
            self._minutes.popitem(last=False)
        self._unlogged += 1
        if now - self._logged_at >= LOG_EVERY_S:
            # Raters' addresses are kept nowhere.
            log.warning(
                "refused %d requests: more than %g a second from one address",
                self._unlogged, self.rate,
            )  # fmt: skip
            self._unlogged, self._logged_at = 0, now
