"""A model on its way: where it is wanted, bytes fetched or read, sentences. Knows no model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_GB = 1e9


@dataclass(frozen=True)
class Progress:
    """How far one step of it is.

    Attributes:
        doing: the step, as a sentence begins.
        done: bytes.
        total: bytes; 0 where that is not known.
    """

    doing: str
    done: int
    total: int

    @property
    def words(self) -> str:
        """For people: bytes done of all, and per cent where those are known."""
        if not self.total:
            return f"{self.doing}: {self.done / _GB:.2f} GB so far"
        done = min(self.done, self.total)
        share = 100 * done // self.total
        return f"{self.doing}: {done / _GB:.2f} of {self.total / _GB:.2f} GB ({share} %)"


Watch = Callable[[Progress], None]


def placement(given: argparse.Namespace) -> dict[str, Any]:
    """Options of `models.load` from a command's `--device` and `--bits`, where they were given."""
    asked = {name: getattr(given, name) for name in ("device", "bits")}
    return {name: value for name, value in asked.items() if value is not None}


def say(sentence: str) -> None:
    """A line on standard error, as `told` of `models.load` for a command."""
    print(sentence, file=sys.stderr, flush=True)
