"""The models a page offers, loaded when first asked for, and the loan of a GPU where there is one.

Knows the registry; knows no page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from spark import models
from spark.models.base import SpokenLM


def gpu(function: Callable[..., Any], lm: SpokenLM) -> Callable[..., Any]:
    """The function with a GPU lent for its time, where the model is on one that is lent.

    Elsewhere the function as it is: a loan runs it in a process of its own, which a model on the
    CPU, or on a GPU of one's own, does not need.
    """
    if lm.transformer.device.type != "cuda" or find_spec("spaces") is None:
        return function
    lent: Callable[..., Any] = import_module("spaces").GPU(function)
    return lent


class Shelf:
    """The models on offer; each is loaded once, when first asked for."""

    def __init__(self, loaded: SpokenLM, infos: list[models.ModelInfo] | None = None) -> None:
        self._loaded = {loaded.name: loaded}
        self._lock = threading.Lock()
        self.default = loaded.name
        known = models.available() if infos is None else infos
        self.infos = {info.name: info for info in known}
        self.infos.setdefault(loaded.name, models.ModelInfo(loaded.name, loaded.title, True))

    def get(self, name: str) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where it cannot run."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = models.load(name)
            return self._loaded[name]

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
