"""The door of the Admin page: one secret from the environment, and no patience with guessers.

This module knows neither the page behind it nor how a request came.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

SECRET_VARIABLE = "LISTENING_TEST_SECRET"
# A guesser gets this many wrong secrets in the window, and all guessers together ten times that.
WRONG_PER_ADDRESS = 5
WRONG_IN_ALL = 50
WINDOW_S = 5 * 60


class Gate:
    """Opens to the secret of the environment, and slows down who guesses at it.

    Args:
        clock: seconds that never run backwards; another one for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: deque[tuple[float, str]] = deque()

    @staticmethod
    def exists() -> bool:
        """Whether a secret is set; without one there is nothing to open."""
        return bool(os.environ.get(SECRET_VARIABLE))

    @property
    def wrong(self) -> int:
        """Wrong secrets in the last minutes."""
        while self._wrong and self._wrong[0][0] <= self._clock() - WINDOW_S:
            self._wrong.popleft()
        return len(self._wrong)

    def refusal(self, given: str, address: str) -> str | None:
        """Why `given` does not open the page; None where it does.

        Args:
            address: whose guesses are counted together; it is logged, the secret never is.
        """
        expected = os.environ.get(SECRET_VARIABLE, "")
        if not expected:
            return f"This page is off: no secret is set ({SECRET_VARIABLE})."
        if not given:
            return "Type the secret first."
        here = sum(who == address for _, who in list(self._wrong)) if self.wrong else 0
        if here >= WRONG_PER_ADDRESS or len(self._wrong) >= WRONG_IN_ALL:
            return f"Too many wrong secrets. Wait {WINDOW_S // 60} minutes, then try again."
        # Digests, so that not even the length of the secret shows in the time.
        if hmac.compare_digest(_digest(given), _digest(expected)):
            return None
        self._wrong.append((self._clock(), address))
        log.warning("wrong secret for the admin page from %s (%d recently)", address, here + 1)
        return "That is not the secret."


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
