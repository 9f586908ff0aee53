"""Convert ratings to and from the formats of other listening tests.

`python -m listening_test.convert IN --from FORMAT --to FORMAT --out FILE_OR_DIR`; our own format is
`ratings`. This module knows files: UTF-8, commas, rows. It does not know which column means what,
see `formats`.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from listening_test.columns import csv_text, uncell
from listening_test.formats import FORMATS, MADE, FormatError, Shape, as_text, exported
from listening_test.formats.base import REFERENCE


def _value(value: Any) -> Any:
    """What `columns.cell` is to write: whole numbers without a point, nothing for what is missing.

    It knows no numbers but Python's own.
    """
    if isinstance(value, str):
        return value
    text = as_text(value)
    return int(text) if re.fullmatch(r"-?\d+", text) else value if text else None


def _records(path: Path) -> list[list[str]]:
    """The records of a CSV file, blank ones too."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror}). Give a CSV file.") from None
    except UnicodeDecodeError:
        raise FormatError("is not UTF-8. Save it as CSV UTF-8.") from None
    if "\0" in text:
        raise FormatError("holds NUL, so it is no text. Save it as CSV UTF-8.")
    records: list[list[str]] = []
    try:
        records.extend(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise FormatError(
            f"row {len(records) + 1}: not CSV ({error}). Close every quote, and double the quotes "
            "inside of quotes."
        ) from None
    if not any(records):
        raise FormatError("is empty. Give a CSV file with a header.")
    return records


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as text, labelled so that label + 2 is the row of a spreadsheet.

    Raises:
        FormatError: the file cannot be read, or is no UTF-8 CSV with one header and even rows.
    """
    records = _records(path)
    header = [uncell(name) for name in records[0]]
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise FormatError("has no commas in its header. Save it with commas between columns.")
    for name in header:
        if header.count(name) > 1:
            raise FormatError(f"has the column {name!r} more than once. Rename one of them.")
    for row, record in enumerate(records, 1):
        if record and len(record) != len(header):
            raise FormatError(
                f"row {row}: {len(record)} cells, where the header has {len(header)}. Fill it up, "
                "or put cells with commas into quotes."
            )
    filled = [(label, record) for label, record in enumerate(records[1:]) if record]
    cells = [[*map(uncell, record)] for _, record in filled]
    return pd.DataFrame(cells, index=[n for n, _ in filled], columns=header, dtype=object)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV with quoted and guarded cells, the header's too.

    Raises:
        FormatError: the file cannot be written.
    """
    columns = tuple(map(str, table.columns))
    header = dict(zip(columns, columns, strict=True))
    rows = [
        dict(zip(columns, map(_value, row), strict=True))
        for row in table.astype(object).itertuples(index=False, name=None)
    ]
    text = csv_text([header, *rows], columns, header=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise FormatError(f"cannot be written ({error.strerror}). Choose another --out.") from None


def lost_columns(frame: pd.DataFrame, shape: Shape) -> list[str]:
    """Columns of tidy ratings with something to say that a format has no place for."""
    made = {**MADE, **shape.made}
    return [
        column
        for column in frame
        if column not in shape.keeps
        and {as_text(value) for value in frame[column]} - {"", made.get(column, "")}
    ]


def _calling_the_reference(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Tidy ratings whose system `name` is called as other tools call it."""
    columns = [column for column in ("system", "system_b") if column in frame]
    systems = {as_text(value) for column in columns for value in frame[column]} - {""}
    if name not in systems:
        raise FormatError(
            f"has no system {name!r} to be the reference: it has {', '.join(sorted(systems))}"
        )
    if name != REFERENCE and REFERENCE in systems:
        raise FormatError(
            f"has a system called {REFERENCE} beside {name!r}. Rename it, or leave out --reference"
        )
    return frame.assign(**{column: frame[column].replace(name, REFERENCE) for column in columns})


def convert(
    source: Path, source_format: str, target_format: str, out: Path, reference: str | None = None
) -> tuple[Path, list[str]]:
    """Convert one file; returns the file written and what did not come along.

    IN may be a folder with a file of the format's usual name, and OUT a folder to put one in.

    Args:
        source: IN.
        source_format, target_format: names in `FORMATS`.
        out: OUT.
        reference: the system that other tools look for under the name `reference`.

    Raises:
        FormatError: the message names the file, its row and column, and the remedy.
    """
    read, write = FORMATS[source_format], FORMATS[target_format]
    source = source / read.shape.file_name if source.is_dir() else source
    target = out if out.suffix and not out.is_dir() else out / write.shape.file_name
    if target.resolve() == source.resolve():
        raise FormatError(f"{target} is the file to read. Choose another --out.")
    notes = [f"{source.name}: {read.shape.caution}"] if read.shape.caution else []
    try:
        frame = read.read(read_table(source))
        if reference is not None:
            frame = _calling_the_reference(frame, reference)
        if target_format != "ratings":
            rows, left_out = exported(frame, write.shape)
            notes += [f"left out: {n} with {rule}" for rule, n in left_out.items()]
            if lost := lost_columns(rows, write.shape):
                notes.append(f"{target_format} has no place for: {', '.join(lost)}")
        table = write.write(frame)
    except FormatError as error:
        raise FormatError(f"{source} {error}") from None
    try:
        write_table(table, target)
    except FormatError as error:
        raise FormatError(f"{target} {error}") from None
    return target, notes


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a CSV file, or a folder with it")
    parser.add_argument("--from", dest="source_format", choices=FORMATS, required=True)
    parser.add_argument("--to", dest="target_format", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE_OR_DIR")
    parser.add_argument(
        "--reference", metavar="SYSTEM",
        help="the system that is the reference: other tools look for it under that name",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        target, notes = convert(
            options.source, options.source_format, options.target_format, options.out,
            options.reference,
        )  # fmt: skip
    except FormatError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.target_format}: {target}")
    for note in notes:
        print(note)
    if target.name == "ratings.csv":
        print(f"next: python -m listening_test.analyse {target.parent} --json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
