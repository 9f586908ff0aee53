"""Models by name. A family's module is imported only when one of its models is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spark.models.base import SpokenLM

_FAMILIES = {"embedded": ("Embedded (CPU)", "spark.models.embedded")}


@dataclass(frozen=True)
class ModelInfo:
    """A model on offer.

    Attributes:
        name: for `load`.
        title: for people.
        runnable: whether it can run here.
        reason: why not, and what helps; empty where it can.
    """

    name: str
    title: str
    runnable: bool
    reason: str = ""


def available() -> list[ModelInfo]:
    """Every model the lab knows, runnable here or not.

    A family's module may have `unavailable() -> str`: a reason, or an empty string.
    """
    return [_info(name, title, module) for name, (title, module) in _FAMILIES.items()]


def _info(name: str, title: str, module: str) -> ModelInfo:
    if find_spec(module) is None:
        return ModelInfo(name, title, False, "this installation does not include it")
    check = getattr(import_module(module), "unavailable", None)
    reason = check() if check else ""
    return ModelInfo(name, title, not reason, reason)


def load(name: str, **options: Any) -> SpokenLM:
    """Load a model; options go to its family's `load`.

    Raises:
        ValueError: no model has this name, or it cannot run here; the message says why.
    """
    known = {info.name: info for info in available()}
    if name not in known:
        raise ValueError(f"there is no model {name!r}: use one of {', '.join(known)}")
    if not known[name].runnable:
        raise ValueError(f"the model {name!r} cannot run here: {known[name].reason}")
    model: SpokenLM = import_module(_FAMILIES[name][1]).load(**options)
    return model


def files(name: str) -> list[Path]:
    """The weights and tables that a known model is made of, by name; none without a folder."""
    family = _FAMILIES.get(name)
    folder = getattr(import_module(family[1]), "FOLDER", None) if family else None
    found = folder.iterdir() if folder else ()
    return sorted(path for path in found if path.suffix in (".safetensors", ".json"))
