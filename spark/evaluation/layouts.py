"""Where a set's rows and recordings lie in the three toolkits' folders, and how they are read.

OpenAudioBench: eval_datas/SET/SET.csv with audios/. VoiceBench: CONFIG/*.parquet with the sound in
the rows. UltraEval-Audio: parquet as on the hub, arrow as `datasets` saves it, or JSON lines with
`WavPath`. Knows files and columns; what they mean is `datasets`'.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
# Of the recording's column: OpenAudioBench's, UltraEval-Audio's, the hub's.
_AUDIO = ("audio_filename", "WavPath", "audio")
_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".opus")


class DataError(ValueError):
    """A data set that cannot be used; the message says what is wrong and what helps."""


@dataclass(frozen=True)
class Table:
    """Rows that can be read.

    Attributes:
        name: of the file or folder, for messages.
        folder: recordings may lie in or below it.
        columns: all there are.
        read: columns -> rows.
    """

    name: str
    folder: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]

    def rows(self, columns: Sequence[str], spoken: bool) -> Iterator[Row]:
        """Rows with these columns, and with the recording's where it is wanted.

        Raises:
            DataError: there is no column of recordings.
        """
        if not spoken:
            return self.read(columns)
        found = [name for name in _AUDIO if name in self.columns]
        if not found:
            raise DataError(
                f"{self.name} has no column of recordings ({', '.join(_AUDIO)}): leave out --spoken"
            )
        return self.read([*columns, found[0]])


def find(root: Path, name: str, folder: str, alone: bool) -> Table:
    """The table of a set under a folder, in whichever layout.

    Args:
        root: as given.
        name: of the set, as OpenAudioBench has it.
        folder: of the set in the other layouts.
        alone: whether `root` may be the set's own folder.

    Raises:
        DataError: none is there.
    """
    tables = [
        root / "eval_datas" / name / f"{name}.csv", root / name / f"{name}.csv",
        root / f"{name}.csv",
    ]  # fmt: skip
    for path in tables:
        if path.is_file():
            return _csv(path)
    places = [root / folder, root / name, *([root] if alone else [])]
    for place in places:
        for pattern, read in (("*.parquet", _parquet), ("*.arrow", _arrow), ("*.jsonl", _lines)):
            files = sorted((*place.glob(pattern), *place.glob(f"data/{pattern}")))
            tests = [path for path in files if path.name.startswith("test")]
            if files:
                return read(place, tests or files)
    looked = ", ".join(str(path.relative_to(root)) for path in tables)
    raise DataError(
        f"{root} holds no {name}: looked for {looked}, and for parquet, arrow or JSON lines in "
        f"{' and '.join(str(p.relative_to(root)) for p in places)}"
    )


def _csv(path: Path) -> Table:
    """OpenAudioBench's table."""

    def opened() -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)

    with path.open(encoding="utf-8-sig", newline="") as file:
        columns = csv.DictReader(file).fieldnames or ()
    return Table(path.name, path.parent, tuple(columns), lambda wanted: opened())


def _lines(folder: Path, files: Sequence[Path]) -> Table:
    """UltraEval-Audio's JSON lines."""

    def opened() -> Iterator[dict[str, Any]]:
        for path in files:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if line.strip():
                    yield _record(line, f"{path.name}, line {number}")

    first = next(opened(), {})
    return Table(files[0].name, folder, tuple(first), lambda wanted: opened())


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} is no record but {type(record).__name__}")
    return record


def _parquet(folder: Path, files: Sequence[Path]) -> Table:
    """VoiceBench's and the hub's tables."""
    _expect_pyarrow(files[0])
    from pyarrow import parquet

    def opened(wanted: Sequence[str]) -> Iterator[Row]:
        for path in files:
            for batch in parquet.ParquetFile(path).iter_batches(64, columns=list(wanted)):
                yield from batch.to_pylist()

    columns = parquet.read_schema(files[0]).names
    return Table(files[0].name, folder, tuple(columns), opened)


def _arrow(folder: Path, files: Sequence[Path]) -> Table:
    """What `datasets` saves to disk: a stream of record batches a file."""
    _expect_pyarrow(files[0])
    import pyarrow

    def opened(wanted: Sequence[str]) -> Iterator[Row]:
        for path in files:
            with pyarrow.memory_map(str(path)) as file:
                for batch in pyarrow.ipc.open_stream(file):
                    yield from batch.select(list(wanted)).to_pylist()

    with pyarrow.memory_map(str(files[0])) as file:
        columns = pyarrow.ipc.open_stream(file).schema.names
    return Table(files[0].name, folder, tuple(columns), opened)


def _expect_pyarrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise DataError(
            f"reading {path.name} needs the package pyarrow: "
            "pip install -r requirements-evaluation.txt"
        )


def recording(row: Row, table: Table, scratch: Path, place: str) -> Path:
    """The sound file of a row's question.

    Args:
        row: with one of the recording's columns.
        table: it is of.
        scratch: where sound that stands in the row itself is written, but for the file's ending.
        place: for messages.

    Raises:
        DataError: there is none, or it lies outside the set's folder.
    """
    value = next((row[name] for name in _AUDIO if name in row), None)
    if isinstance(value, Mapping) and value.get("bytes"):
        return _written(value, scratch)
    told = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(told, str) or not told:
        raise DataError(f"{place}: there is no recording")
    root = table.folder.resolve()
    for path in (root / told, root / "audios" / told, root / "audios" / Path(told).name):
        found = path.resolve()
        if found.is_file() and found.is_relative_to(root):
            return found
    raise DataError(f"{place}: the recording {told} is not in {table.folder.name}: fetch it again")


def _written(sound: Mapping[str, Any], scratch: Path) -> Path:
    suffix = Path(str(sound.get("path") or "")).suffix.lower()
    path = scratch.with_suffix(suffix if suffix in _SUFFIXES else ".wav")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound["bytes"])
    return path
