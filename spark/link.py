"""A comparison's prompt and settings as a link, and back. Knows names and values only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from spark.comparison import CompareSettings

_PARSE: dict[str, Callable[[str], Any]] = {
    "schedule": str,
    "exit_layer": int,
    "drift_target": float,
    "acceptance": str,
    "measure": str,
    "threshold": float,
    "head": str,
    "temperature": float,
    "top_p": float,
    "repetition_penalty": float,
    "max_tokens": int,
    "seed": int,
    "system": str,
}


@dataclass(frozen=True)
class Linked:
    """What a link asks for.

    Attributes:
        prompt: empty where the link has none.
        model: empty where the link has none.
        settings: by name, only those the link gives and that can be read.
        unread: names whose values mean nothing.
    """

    prompt: str
    model: str
    settings: dict[str, Any]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """What a control of the page takes.

    Attributes:
        label: as the page names the control.
        choices: of a menu; empty for a number.
        low, high: of a number, both included.
        read: where the control stands for a value; raises ValueError where it is none.
    """

    label: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    read: Callable[[Any], float] = float

    def refusal(self, value: Any) -> str:
        """Why the control cannot take a value; empty where it can."""
        if self.choices:
            known = ", ".join(map(str, self.choices))
            return "" if value in self.choices else f"{self.label}: {value} is none of {known}"
        try:
            place = self.read(value)
        except ValueError as error:
            return f"{self.label}: {error}"
        if self.low <= place <= self.high:  # false for nan
            return ""
        asked = value if isinstance(value, str) else f"{value:g}"
        return f"{self.label}: {asked} is not between {self.low:g} and {self.high:g}"


def to_query(model: str, prompt: str, settings: CompareSettings) -> str:
    """A query string, from "?" on, that `from_query` reads back."""
    values = {name: getattr(settings, name) for name in _PARSE}
    given = {name: value for name, value in values.items() if value is not None}
    return "?" + urlencode({"prompt": prompt, "model": model, **given})


def from_query(query: Mapping[str, str]) -> Linked:
    """What a page's query parameters ask for; unknown names are ignored."""
    settings: dict[str, Any] = {}
    unread = []
    for name, parse in _PARSE.items():
        if name in query:
            try:
                settings[name] = parse(query[name])
            except ValueError:
                unread.append(name)
    return Linked(query.get("prompt", ""), query.get("model", ""), settings, tuple(unread))
