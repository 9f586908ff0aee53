"""The models a page offers, loaded when first asked for; at once where a GPU is lent.

One that was loaded stays until another needs its room, unless somebody is using it. Knows the
registry; knows no page.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from spark import hardware, models
from spark.compiled import prepare
from spark.lending import lends
from spark.models.base import SpokenLM
from spark.models.fits import TooLarge
from spark.models.loading import Progress, Watch

_numbers = itertools.count()
_shelves: WeakValueDictionary[int, Shelf] = WeakValueDictionary()


def numbered(number: int) -> Shelf:
    """A shelf by its number, which a process that was forked later knows too."""
    return _shelves[number]


class Shelf:
    """The models on offer; each is loaded when first asked for.

    Args:
        loaded: the model to begin with.
        infos: what is on offer; None for all that the lab knows.
        source: where `loaded` can be loaded from again, as for `models.load`; None keeps it.
        options: `device` and `bits` of the models loaded later, where chosen.
        fetches: whether a visitor may have a model's files fetched, tens of gigabytes.

    Attributes:
        number: names it to another process.
        default: the model to begin with.
        infos: of all, by name.
    """

    def __init__(
        self,
        loaded: SpokenLM,
        infos: Sequence[models.ModelInfo] | None = None,
        source: str | None = None,
        options: Mapping[str, Any] | None = None,
        fetches: bool = False,
    ) -> None:
        self.number = next(_numbers)
        _shelves[self.number] = self
        self._loaded: dict[str, SpokenLM] = {}
        self._lent: set[str] = set()
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._users = Counter[str]()
        self._sources: dict[str, str] = {}  # of what may be let go
        self._options, self._fetches = dict(options or {}), fetches
        self._on_the_way: dict[str, Progress] = {}
        self.default = loaded.name
        known = models.available() if infos is None else infos
        self.infos = {info.name: info for info in known}
        self.add(loaded, source)

    def add(self, lm: SpokenLM, source: str | None = None) -> None:
        """Put a loaded model on it; with a source it may be let go, and is loaded again from it."""
        self._loaded[lm.name] = lm
        if source is not None:
            self._sources[lm.name] = source
        self.infos.setdefault(lm.name, models.ModelInfo(lm.name, lm.title, True))
        # Asked in the thread that loads: in others a GPU that is yet to be lent does not show.
        if lends() and lm.transformer.device.type == "cuda":
            self._lent.add(lm.name)

    def get(self, name: str, fetch: bool = False) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where it cannot run.

        One is loaded at a time, since each counts the memory that is free; nobody who asks for
        one that is there waits for that.

        Args:
            name: of the model.
            fetch: whether its files are fetched first where they are missing: only where somebody
                chose so, who was told their size.
        """
        if (there := self._loaded.get(name)) is not None:
            return there
        with self._lock:
            if (there := self._loaded.get(name)) is None:
                there = self._brought(name, fetch)
            return there

    def progress(self, name: str) -> Progress | None:
        """How far a model is on its way; None where it is not, or that is not known."""
        return self._on_the_way.get(name)

    def _brought(self, name: str, fetch: bool) -> SpokenLM:
        """A model that was not there, fetched and loaded."""
        source = self._sources.get(name, name)

        def watch(progress: Progress) -> None:
            self._on_the_way[name] = progress

        try:
            if self._is_missing(name):
                self._fetched(name, fetch, watch)
            loaded = fitting(source, self._make_room, watch=watch, **self._options)
        except TooLarge as error:
            raise TooLarge(f"{error}{self._in_the_way()}") from error
        finally:
            self._on_the_way.pop(name, None)
        self.add(loaded, source)
        return loaded

    def _fetched(self, name: str, fetch: bool, watch: Watch) -> None:
        """Bring a model's files from the hub, if that was chosen."""
        info = self.infos[name]
        if not fetch:
            raise ValueError(
                f"{info.title} is not on this machine yet: choose it in the menu of models, which "
                f"fetches its {info.to_fetch / 1e9:.0f} GB"
            )
        models.fetch(name, watch)
        self.infos[name] = replace(info, runnable=True, reason="", to_fetch=0)

    def _is_missing(self, name: str) -> bool:
        """Whether fetching is all that a model needs, and is allowed here."""
        info = self.infos.get(name)
        return self._fetches and info is not None and not info.runnable and info.to_fetch > 0

    @contextmanager
    def using(self, name: str) -> Iterator[SpokenLM]:
        """The model of that name, which stays until the block ends; errors as of `get`."""
        while True:
            lm = self.get(name)
            with self._counting:
                if self._loaded.get(name) is lm:
                    self._users[name] += 1
                    break
        try:
            yield lm
        finally:
            with self._counting:
                self._users[name] -= 1

    def _in_the_way(self) -> str:
        """What a visitor can wait for where a model does not fit; empty where it is no use."""
        with self._counting:
            busy = [self.infos[name].title for name in self._sources if self._users[name]]
        if not busy or lends():
            return ""
        return f". {' and '.join(busy)} answers somebody just now: try again when that is over"

    def _make_room(self) -> bool:
        """Let go of every model that can be loaded again and nobody uses; whether there was one.

        Where a GPU is lent nothing is: what is loaded after the start is lost with each loan.
        """
        if lends():
            return False
        with self._counting:
            idle = [name for name in self._loaded if self._sources.get(name) is not None
                    and not self._users[name]]  # fmt: skip
            for name in idle:
                del self._loaded[name]
        if idle:
            hardware.give_back()
        return bool(idle)

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
        return [(self._labelled(info), info.name) for info in self.infos.values()]

    def _labelled(self, info: models.ModelInfo) -> str:
        if self._is_missing(info.name):
            return f"{info.title} (fetches {info.to_fetch / 1e9:.0f} GB first)"
        return info.title if self._runs(info) else f"{info.title} (cannot run here)"

    def why_not(self, name: str) -> str:
        """Why a model cannot run here; empty where it can."""
        info = self.infos[name]
        return "" if self._runs(info) else f"{info.title} cannot run here: {info.reason}"

    def _runs(self, info: models.ModelInfo) -> bool:
        here = info.name in self._loaded or info.name in self._sources
        return info.runnable or here or self._is_missing(info.name)


def fitting(
    name: str,
    make_room: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
    **options: Any,
) -> SpokenLM:
    """The model as it is, or with 8-bit layers where only those fit: its notes say which.

    Args:
        name: as of `models.load`.
        make_room: called where it does not fit; whether memory has become free.
        watch: told how far it is.
        options: of `models.load`; with `bits` it is that precision or none.

    Raises:
        ValueError: there is none, or it cannot run here.
    """
    try:
        lm = models.load(name, watch=watch, **options)
    except TooLarge:
        if make_room():
            return fitting(name, watch=watch, **options)
        if "bits" in options:
            raise
        return models.load(name, watch=watch, **options, bits=8)
    prepare(lm.transformer)
    return lm
