"""A checkpoint's safetensors files: found, checked against what a model needs, read lazily.

Knows files, names and shapes; knows no family. Whatever can be wrong with a download is said in
one sentence with a remedy, before the first weight is read. Tensors are memory-mapped and read
one at a time, so that a model on its way to a GPU never lies in main memory as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_LAYERS, MOST_SIZE = 1000, 10**7  # beyond, a config.json is wrong
_NUMBERS = ("BF16", "F16", "F32", "F64")  # safetensors' names of what weights can be
_LFS = b"version https://git-lfs"
_NUMBER = re.compile(r"\.(\d+)\.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong and what helps."""


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a folder's safetensors files, by name.

    Attributes:
        folder: where the files lie.
        shapes: by tensor name.
        nbytes: of all tensors, as stored.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    nbytes: int
    _files: dict[str, Any] = field(repr=False)  # open, memory-mapped, by tensor name

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open all files of a folder; reads their headers only.

        Raises:
            CheckpointError: a file is missing, cut off or no safetensors file.
        """
        files: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        nbytes = 0
        for path, names in _listed(folder).items():
            opened = _opened(path)
            held = set(opened.keys())
            if lacking := sorted(names - held):
                raise CheckpointError(
                    f"{path.name} lacks {folded(lacking)}, which {INDEX} places there: "
                    f"{_again(folder)}"
                )
            for name in held:
                view = opened.get_slice(name)
                if (kind := view.get_dtype()) not in _NUMBERS:
                    raise CheckpointError(
                        f"{name} of {path.name} holds {kind} numbers: it is a quantised or another "
                        "model; take the published files, and --bits 8 for less memory"
                    )
                shapes[name] = tuple(view.get_shape())
                files[name] = opened
            nbytes += path.stat().st_size
        return cls(folder, shapes, nbytes, files)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, memory-mapped."""
        return self._files[name].get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 of a tensor."""
        return self._files[name].get_slice(name)[start:stop]

    def require(self, wanted: Mapping[str, tuple[int, ...]], apart: tuple[str, ...] = ()) -> None:
        """Check that the checkpoint holds exactly these tensors, in these shapes.

        Args:
            wanted: shape by name.
            apart: prefixes of names that belong to something else.

        Raises:
            CheckpointError: it does not; every name is given.
        """
        held = {name for name in self.shapes if not name.startswith(apart or ("\0",))}
        missing, extra = sorted(wanted.keys() - held), sorted(held - wanted.keys())
        if missing or extra:
            parts = [f"lacks {folded(missing)}"] if missing else []
            parts += [f"holds {folded(extra)}, which the model has no place for"] if extra else []
            raise CheckpointError(
                f"{titled(self.folder)} {' and '.join(parts)}: it is another model, or the "
                f"download is not whole; {_again(self.folder)}"
            )
        for name, shape in wanted.items():
            if self.shapes[name] != shape:
                raise CheckpointError(
                    f"{name} is {self.shapes[name]}, config.json says {shape}: the files are of "
                    f"different models; {_again(self.folder)}"
                )
        self._check_norms(name for name, shape in wanted.items() if len(shape) == 1)

    def _check_norms(self, names: Iterator[str]) -> None:
        """Look into the small tensors: a download that broke off can leave zeros behind."""
        for name in names:
            values = self.tensor(name).float()
            norm = name.endswith("norm.weight")
            if not torch.isfinite(values).all() or (norm and not values.any()):
                raise CheckpointError(
                    f"{name} holds {'only zeros' if norm and not values.any() else 'no numbers'}: "
                    f"the file is damaged; {_again(self.folder, 'delete it and ')}"
                )


class NamedTensors(Mapping[str, Tensor]):
    """A checkpoint under other names: reads each tensor when it is asked for.

    Args:
        checkpoint: the files.
        sources: by new name: the name in the files, and the rows to take (None for all).
        told: called with the bytes of each tensor read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sources: Mapping[str, tuple[str, tuple[int, int] | None]],
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._checkpoint, self._sources, self._told = checkpoint, sources, told

    def __getitem__(self, name: str) -> Tensor:
        source, rows = self._sources[name]
        if rows is None:
            found = self._checkpoint.tensor(source)
        else:
            found = self._checkpoint.rows(source, *rows)
        self._told(found.nbytes)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def refuse_pointer(path: Path) -> None:
    """Refuse a file that stands for another, as a clone without Git LFS leaves it.

    Raises:
        CheckpointError: it is such a file, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be opened ({error.strerror}): see to its permissions, or fetch it "
            "again"
        ) from error
    if start == _LFS:
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
            "folder"
        )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder.

    Raises:
        CheckpointError: the file is missing or holds no object.
    """
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{name} is missing in {titled(folder)}: {_again(folder)}")
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} cannot be read ({error}): {_again(folder)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is no JSON object: {_again(folder)}")
    return value


def whole_numbers(config: object, names: Sequence[str], source: str) -> dict[str, int]:
    """Numbers of a part's config that can be sizes or counts: a module is built of them.

    Args:
        config: the object that holds them.
        names: of the numbers.
        source: what the config is of, for messages.

    Raises:
        CheckpointError: one is missing or impossible.
    """
    given = config if isinstance(config, Mapping) else {}
    wrong = [name for name in names if not _possible(name, given.get(name))]
    if wrong:
        raise CheckpointError(f"{source} has no usable {', '.join(wrong)}: fetch it again")
    return {name: given[name] for name in names}


def _possible(name: str, value: object) -> bool:
    most = MOST_LAYERS if name.endswith(("layer", "layers", "quantize_position")) else MOST_SIZE
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def folded(names: list[str]) -> str:
    """Names with the numbers of layers folded together: a.{0-2,5}.b, c."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        numbers = groups.setdefault(_NUMBER.sub(".{}.", name, count=1), [])
        if number:
            numbers.append(int(number[1]))
    return ", ".join(
        pattern.replace("{}", "{" + _ranges(sorted(numbers)) + "}") if numbers else pattern
        for pattern, numbers in groups.items()
    )


def _ranges(numbers: list[int]) -> str:
    """0-2,5 of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def titled(folder: Path) -> str:
    """A folder's name for people: OWNER/NAME for one of the hub's cache, else its own."""
    home = folder.parent.parent.name
    if folder.parent.name == "snapshots" and home.startswith("models--"):
        return home.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def _listed(folder: Path) -> dict[Path, set[str]]:
    """The folder's weight files with the tensors that an index places in each."""
    if (folder / INDEX).is_file():
        placed = read_json(folder, INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise CheckpointError(f"{INDEX} has no weight_map: {_again(folder)}")
        shards: dict[Path, set[str]] = {}
        for name, file in placed.items():
            if Path(str(file)).name != file:  # an index must not lead out of its folder
                raise CheckpointError(f"{INDEX} names the file {file!r}, which no model has")
            shards.setdefault(folder / file, set()).add(name)
        missing = sorted(path.name for path in shards if not path.is_file())
        if missing:
            raise CheckpointError(
                f"{', '.join(missing)} missing in {titled(folder)}, {len(missing)} of "
                f"{len(shards)} weight files: the download is not finished; {_again(folder)}"
            )
        return dict(sorted(shards.items()))
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{titled(folder)} holds pickled weights only, which could run code: take the "
            "safetensors files of the model"
        )
    raise CheckpointError(f"{titled(folder)} holds neither {INDEX} nor {SINGLE}: {_again(folder)}")


def _opened(path: Path) -> Any:
    """An open safetensors file; its header is checked against its size."""
    refuse_pointer(path)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is cut off or damaged ({error}): {_again(path.parent, 'delete it and ')}"
        ) from error


def _again(folder: Path, first: str = "") -> str:
    title = titled(folder)
    if title != folder.name:
        return f"fetch it again: hf download {title} --force-download"
    return f"{first}fetch or copy it again"
