"""What is worked out once and kept while there is room. Knows nothing of what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Values by key; with as many as there is room for, all are forgotten.

    Threads may ask at once: at worst a value is worked out twice.

    Args:
        most: values kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made where it is not known; never None."""
        known = self._known.get(key)
        if known is None:
            known = make()
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[key] = known
        return known
