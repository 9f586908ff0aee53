"""The models a page offers, loaded when first asked for; at once where a GPU is lent.

Knows the registry; knows no page.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from weakref import WeakValueDictionary

from spark import models
from spark.lending import lends
from spark.models.base import SpokenLM
from spark.models.fits import TooLarge

_numbers = itertools.count()
_shelves: WeakValueDictionary[int, Shelf] = WeakValueDictionary()


def numbered(number: int) -> Shelf:
    """A shelf by its number, which a process that was forked later knows too."""
    return _shelves[number]


class Shelf:
    """The models on offer; each is loaded once, when first asked for.

    Attributes:
        number: names it to another process.
        default: the model to begin with.
        infos: of all, by name.
    """

    def __init__(self, loaded: SpokenLM, infos: list[models.ModelInfo] | None = None) -> None:
        self.number = next(_numbers)
        _shelves[self.number] = self
        self._loaded: dict[str, SpokenLM] = {}
        self._lent: set[str] = set()
        self._lock = threading.Lock()
        self.default = loaded.name
        known = models.available() if infos is None else infos
        self.infos = {info.name: info for info in known}
        self.add(loaded)

    def add(self, lm: SpokenLM) -> None:
        """Put a loaded model on it."""
        self._loaded[lm.name] = lm
        self.infos.setdefault(lm.name, models.ModelInfo(lm.name, lm.title, True))
        # Asked in the thread that loads: in others a GPU that is yet to be lent does not show.
        if lends() and lm.transformer.device.type == "cuda":
            self._lent.add(lm.name)

    def get(self, name: str) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where it cannot run.

        One is loaded at a time, since each counts the memory that is free; nobody who asks for
        one that is there waits for that.
        """
        if (there := self._loaded.get(name)) is not None:
            return there
        with self._lock:
            if name not in self._loaded:
                self.add(fitting(name))
            return self._loaded[name]

    def load_all(self) -> None:
        """Load every model that can run: a lent process forgets what it loads itself.

        What cannot be loaded then stays in the menu with the reason.
        """
        for name, info in self.infos.items():
            if name in self._loaded:
                continue
            reason = info.reason
            if info.runnable:
                try:
                    self.get(name)
                    continue
                except ValueError as error:
                    reason = str(error)
            reason += (
                "; models are loaded when this app starts, from preload_from_hub of its README"
            )
            self.infos[name] = replace(info, runnable=False, reason=reason)

    def lent(self, name: str) -> bool:
        """Whether the model waits for a lent GPU."""
        return name in self._lent

    def loaded(self, name: str) -> SpokenLM | None:
        """The model of that name where it has been loaded; loads nothing."""
        return self._loaded.get(name)

    def choices(self) -> list[tuple[str, str]]:
        """For a menu: (what it says, name); those that cannot run here say so."""
        return [
            (info.title if self._runs(info) else f"{info.title} (cannot run here)", info.name)
            for info in self.infos.values()
        ]

    def why_not(self, name: str) -> str:
        """Why a model cannot run here; empty where it can."""
        info = self.infos[name]
        return "" if self._runs(info) else f"{info.title} cannot run here: {info.reason}"

    def _runs(self, info: models.ModelInfo) -> bool:
        return info.runnable or info.name in self._loaded


def fitting(name: str) -> SpokenLM:
    """The model as it is, or with 8-bit layers where only those fit: its notes say which.

    Raises:
        ValueError: there is none, or it cannot run here.
    """
    try:
        return models.load(name)
    except TooLarge:
        return models.load(name, bits=8)
