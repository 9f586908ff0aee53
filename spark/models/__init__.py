"""Models by name, folder or repository. A family's module is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spark.models.base import SpokenLM
from spark.models.checkpoint import CheckpointError
from spark.models.fits import TooLarge
from spark.models.loading import Watch

_FAMILIES = {
    "embedded": ("Embedded (CPU)", "spark.models.embedded"),
    "step-audio-2-mini": ("Step-Audio-2-mini", "spark.models.step_audio_2"),
    "glm-4-voice-9b": ("GLM-4-Voice-9B", "spark.models.glm4_voice"),
}
_KINDS = {  # by the model_type of a config.json
    "qwen2": "spark.models.embedded",
    "step_audio_2": "spark.models.step_audio_2",
    "chatglm": "spark.models.glm4_voice",
}
_SHOWN = 80  # letters of a name in a message


@dataclass(frozen=True)
class ModelInfo:
    """A model on offer.

    Attributes:
        name: for `load`.
        title: for people.
        runnable: whether it can run here.
        reason: why not, and what helps; empty where it can.
        to_fetch: bytes that are all it lacks to run here; 0 where it lacks none, or more.
    """

    name: str
    title: str
    runnable: bool
    reason: str = ""
    to_fetch: int = 0


def available(device: str | None = None) -> list[ModelInfo]:
    """Every model the lab knows, runnable here and now or not.

    A family's module may have `unavailable() -> str`, why the machine cannot run it, and
    `absent() -> str`, what has to be fetched first; an empty string where nothing is in the way.

    Args:
        device: where large models are to run; None for the best there is.
    """
    return [_info(name, title, module, device) for name, (title, module) in _FAMILIES.items()]


def _info(name: str, title: str, module: str, device: str | None) -> ModelInfo:
    if reason := _hindrance(module, device):
        return ModelInfo(name, title, False, reason)
    reason = _asked(module, "absent")
    to_fetch = import_module(module).FAMILY.all_nbytes if reason and _is_large(module) else 0
    return ModelInfo(name, title, not reason, reason, to_fetch)


def _hindrance(module: str, device: str | None = None) -> str:
    if find_spec(module) is None:
        return "this installation does not include it"
    where = {"device": device} if device and _is_large(module) else {}
    return _asked(module, "unavailable", **where)


def _asked(module: str, question: str, **options: str) -> str:
    check = getattr(import_module(module), question, None)
    return check(**options) if check else ""


def _is_large(module: str) -> bool:
    return hasattr(import_module(module), "FAMILY")


def fetch(name: str, watch: Watch | None = None) -> None:
    """Fetch a known large model with all that hears and speaks into the hub's cache.

    Args:
        name: of the model.
        watch: told how far it is.

    Raises:
        ValueError: no network, no room.
    """
    from spark.models import large

    large.fetch_all(import_module(_FAMILIES[name][1]).FAMILY, watch)


def load(
    name: str,
    *,
    told: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    aloud: bool = False,
    **options: Any,
) -> SpokenLM:
    """Load a model, fetching a known one's files from the hub where they are missing.

    Args:
        name: of a known model, a folder with a checkpoint, or OWNER/NAME of the hub.
        told: gets a sentence where there is one to say before the weights are read; those of the
            embedded model are read at once.
        watch: told how far fetching and reading are.
        aloud: whether it is of no use without a voice: then it is not read without one.
        options: of the family's `load`: device, dtype, bits.

    Raises:
        ValueError: no model has this name, or it cannot run here; the message says why.
    """
    with readable():
        return _loaded(name, {"told": told, "watch": watch, "aloud": aloud}, options)


@contextmanager
def readable() -> Iterator[None]:
    """Say in a sentence what the system would not let be read of a model's files.

    Raises:
        CheckpointError: it raised an error of its own (permissions, a name that is too long).
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:  # no file's: a library that cannot be loaded, say
            raise
        raise CheckpointError(
            f"{Path(str(error.filename)).name[:_SHOWN]} cannot be read ({error.strerror}): see to "
            "its permissions and its disk, or name another model or folder"
        ) from error


def _loaded(name: str, of_large: dict[str, Any], options: dict[str, Any]) -> SpokenLM:
    if name in _FAMILIES:
        module = _FAMILIES[name][1]
        # With options it is the family's own to say, knowing them, whether it can.
        if not options and (reason := _hindrance(module)):
            # A large one that the machine cannot run is one that does not fit.
            kind = TooLarge if find_spec(module) and _is_large(module) else ValueError
            raise kind(f"the model {name!r} cannot run here: {reason}")
        known: SpokenLM = import_module(module).load(**options, **_more(module, of_large))
        return known
    module = _module_of(name)
    model: SpokenLM = import_module(module).load(
        Path(name) if Path(name).is_dir() else name, **options, **_more(module, of_large)
    )
    return model


def _more(module: str, of_large: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a family that takes long to load; the embedded one loads in a moment."""
    given = of_large if _is_large(module) else {}
    return {name: value for name, value in given.items() if value}


def _module_of(source: str) -> str:
    """The family of a folder or repository, by its config.json.

    Raises:
        ValueError: there is no such place, or its model is none the lab runs.
    """
    from spark.models import checkpoint, hub

    if Path(source).is_file():
        raise ValueError(f"{source} is a file: give the folder that holds all of the model's files")
    if not Path(source).is_dir() and not hub.is_repo(source):
        raise ValueError(
            f"there is no model {source!r}: use one of {', '.join(_FAMILIES)}, a folder with a "
            "checkpoint, or OWNER/NAME of the hub"
        )
    folder = hub.fetch(source, ("config.json",))
    kind = checkpoint.read_json(folder, "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{source} holds a model of type {kind!r}: the lab runs "
            f"{', '.join(title for title, _ in _FAMILIES.values())}"
        )
    return _KINDS[kind]


def files(name: str) -> list[Path]:
    """The weights and tables that a model is made of; none where they are not on this machine."""
    folder = _folder(name)
    found = folder.iterdir() if folder else ()
    return sorted(path for path in found if path.suffix in (".safetensors", ".json"))


def _folder(name: str) -> Path | None:
    """Where a model's files are: a family's own folder, the one named, or the hub's cache."""
    from spark.models import hub

    if name not in _FAMILIES:
        return Path(name) if Path(name).is_dir() else hub.cached_folder(name)
    module = import_module(_FAMILIES[name][1])
    family = getattr(module, "FAMILY", None)
    folder: Path | None = hub.cached_folder(family.repo) if family else module.FOLDER
    return folder
