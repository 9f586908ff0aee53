"""Fetches a large model's files into the hub's cache, and checks them; what is there stays.

    python -m spark.models                      what each model is made of, and what is here
    python -m spark.models step-audio-2-mini    fetches it, with progress
    python -m spark.models FOLDER --check       looks a folder's files over, fetches nothing

Repositories beside the model's own, for hearing and speaking, are fetched too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from spark.models import glm4_voice, hub, large, readable, step_audio_2
from spark.models.checkpoint import CheckpointError, read_json
from spark.models.family import Family
from spark.models.large import Options

_FAMILIES = {module.FAMILY.name: module.FAMILY for module in (step_audio_2, glm4_voice)}
_GB = 1e9


def told(family: Family) -> list[str]:
    """What a model is made of, a line for each repository with the command that fetches it."""
    here = "here" if hub.cached(family.repo) else "not here"
    folder = hub.cached_folder(family.repo) or Path(family.repo.split("/")[1])
    lines = [
        f"{family.name}: {family.title}. {family.licence}",
        f"  {here}: {family.repo}, {family.nbytes / _GB:.1f} GB: {' '.join(family.files)}",
    ]
    for part in family.parts:
        there = "here" if part.found(folder) else "not here"
        size = "of these" if part.own else f"{part.nbytes / _GB:.1f} GB"
        files = " ".join(part.files)
        needs = f"; Python packages: {' '.join(part.packages)}" if part.packages else ""
        lines.append(f"  {there}: {part.what}: {part.repo}, {size}: {files}{needs}")
    commands = [f"python -m spark.models {family.name}", *(
        part.command for part in family.parts if not part.own)]  # fmt: skip
    return [*lines, f"  all of it: {commands[0]}", *(f"  alone: {c}" for c in commands[1:])]


def check(family: Family, folder: Path) -> list[str]:
    """Look a model's files over without reading the transformer's weights; what is missing.

    What hears and speaks is read, and let go again.

    Raises:
        CheckpointError: a file is damaged, missing or of another model.
    """
    parts = large.checked(family, Options(folder))
    cpu = torch.device("cpu")
    if parts.sound:
        parts.sound.read(cpu, False)
    if parts.ears:
        parts.ears.read(cpu, torch.bfloat16)
    return [reason for reason in (parts.silence, parts.deafness) if reason]


def _family_of(folder: Path) -> Family:
    kind = read_json(folder, "config.json").get("model_type")
    for family in _FAMILIES.values():
        if family.kind == kind:
            return family
    known = ", ".join(f"{family.title} ({family.kind!r})" for family in _FAMILIES.values())
    raise CheckpointError(f"{folder.name} holds a model of type {kind!r}; known: {known}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell, or fetch and check one model; 0, or 2 after a message about what went wrong."""
    parser = argparse.ArgumentParser(
        "python -m spark.models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", nargs="?", help=f"{', '.join(_FAMILIES)}, or a folder")
    parser.add_argument("--check", action="store_true", help="fetch nothing")
    given = parser.parse_args(arguments)
    if given.model is None:
        print("\n".join(line for family in _FAMILIES.values() for line in told(family)))
        return 0
    try:
        with readable():
            family, folder = _found(given.model, fetch=not given.check)
            lacks = check(family, folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for reason in lacks:
        print(reason, file=sys.stderr)
    print(folder)
    return 0


def _found(model: str, fetch: bool) -> tuple[Family, Path]:
    """What a model or folder is, and where; raises CheckpointError where it is none."""
    if family := _FAMILIES.get(model):
        folder = large.fetch_all(family) if fetch else hub.cached_folder(family.repo)
        if folder is None:
            raise CheckpointError(large.absent(family))
        return family, folder
    if Path(model).is_dir():
        return _family_of(Path(model)), Path(model)
    raise CheckpointError(f"there is no model or folder {model}: use {', '.join(_FAMILIES)}")


if __name__ == "__main__":
    sys.exit(main())
