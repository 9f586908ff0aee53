"""What every format needs: its shape, columns as text or numbers, and which rows can go.

Known here: tables as data frames, and our own columns. Not known: files, and any format's columns.
Rows in messages count as in a spreadsheet: the header is row 1, and a row's label is 2 less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from listening_test.analyse import REQUIRED
from listening_test.analysis import told_counts
from listening_test.columns import KEY_COLUMNS, RATING_COLUMNS, SCORED_TRIALS
from listening_test.methods import CHOICE_METHODS

NUMBERS = ("score", "score_signed", "expected_score", "rt_ms")
IDS = ("session_id", "rater_id", "item_id", "stimulus_id", "system", "system_b")
# What other tools call the system that the others are held against.
REFERENCE = "reference"
# What reading says of every rating, since no other format holds anything else.
MADE = {"trial_type": "rating", "status": "use"}


class FormatError(ValueError):
    """A table is not what its format says, or does not fit it; names row, column and remedy."""


@dataclass(frozen=True)
class Shape:
    """What one format can hold.

    Attributes:
        file_name: as its tool calls the file.
        required: columns of its own that a table must have.
        keeps: the tidy columns that survive both ways.
        made: what reading says of every row besides `MADE`, since the format holds nothing else.
        methods, statuses: what its rows may have; any method where empty.
        answer: the tidy column it is about.
        caution: for whoever reads such a file.
    """

    name: str
    file_name: str
    required: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ("use",)
    answer: str = "score"
    caution: str = ""


def as_text(value: Any) -> str:
    """A value as the text of a cell: missing is empty, whole numbers have no point."""
    if value is None or value is pd.NA or value != value:  # nan
        return ""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value) if whole else value)


def texts(table: pd.DataFrame, name: str, needed: bool = False) -> pd.Series:
    """A column as text; empty where it is missing, which `needed` does not allow."""
    values = [as_text(v) for v in table[name]] if name in table else [""] * len(table)
    for label, value in zip(table.index, values, strict=True):
        if needed and not value.strip():
            raise FormatError(f"row {label + 2}: {name} is empty. Fill it in.")
    return pd.Series(values, index=table.index, dtype=object)


def numbers(table: pd.DataFrame, name: str, missing: str = "") -> pd.Series:
    """A column as floats; nan where it is empty or says `missing`."""
    found = []
    for label, value in texts(table, name).items():
        text = value.strip()
        try:
            number = math.nan if text in ("", missing) else float(text)
            # Python takes nan, infinity and 1_000 for numbers: here each is a slip.
            fine = text in ("", missing) or (math.isfinite(number) and "_" not in text)
        except ValueError:
            fine = False
        if not fine:
            raise FormatError(
                f"row {label + 2}: {name} {value!r} is not a number. Give one, or leave it empty."
            )
        found.append(number)
    return pd.Series(found, index=table.index, dtype=float)


def checked(
    table: pd.DataFrame, names: Iterable[str], remedy: str = "Is it a file of this format?"
) -> pd.DataFrame:
    """The table with one integer label a row, if it has these columns and any rows."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise FormatError(
            f"lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has: "
            f"{', '.join(map(str, table.columns))}). {remedy}"
        )
    if table.empty:
        raise FormatError("holds no rows. Give a file with at least one answer.")
    labelled = table.index.is_unique and pd.api.types.is_integer_dtype(table.index)
    return table if labelled else table.reset_index(drop=True)


def take(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Their columns, where there, under our names; `columns` is theirs: ours."""
    return pd.DataFrame(
        {
            ours: numbers(table, theirs) if ours in NUMBERS else texts(table, theirs, ours in IDS)
            for theirs, ours in columns.items()
            if theirs in table
        },
        index=table.index,
    )


def give(rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Our columns under their names; `columns` is theirs: ours."""
    return pd.DataFrame(
        {
            theirs: numbers(rows, ours) if ours in NUMBERS else texts(rows, ours)
            for theirs, ours in columns.items()
        }
    )


def tidy(frame: pd.DataFrame, made: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Our columns in order, then others; `MADE` and `made` are filled in where not there."""
    filled = {k: v for k, v in {**MADE, **(made or {})}.items() if k not in frame}
    frame = frame.assign(**filled)
    ours = [c for c in RATING_COLUMNS + KEY_COLUMNS if c in frame]
    return frame[ours + [c for c in frame if c not in ours]].reset_index(drop=True)


def only(values: pd.Series, what: str) -> str:
    """The one value of a column; `what` is its name for people.

    Raises:
        FormatError: there are several.
    """
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        raise FormatError(
            f"has {len(found)} {what}s ({', '.join(map(repr, found))}), and the format holds one. "
            f"Convert the rows of one {what} at a time."
        )
    return str(found[0])


def exported(frame: pd.DataFrame, shape: Shape) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of tidy ratings that a format can hold, and how many each rule left out.

    Other tools count every row of their files. So practice, trap and gold trials, repeats, pairs
    of a system with itself, rows without an answer and, where the format has no status, rows that
    do not count stay behind.

    Raises:
        FormatError: a column is missing, no row is left or a method has no place there.
    """
    pairs = ("choice", "system_b") if shape.answer == "choice" else ()
    frame = checked(frame, (*REQUIRED, *pairs), f"As ratings, {shape.name} needs them.")
    reason = pd.Series("", index=frame.index, dtype=object)
    for column, wanted in (("trial_type", SCORED_TRIALS), ("status", shape.statuses)):
        value = texts(frame, column)
        reason = reason.mask((reason == "") & ~value.isin(wanted), f"{column}: " + value)
    compared = texts(frame, "method").isin(("ccr", *CHOICE_METHODS))
    same = compared & (texts(frame, "system") == texts(frame, "system_b"))
    reason = reason.mask((reason == "") & same, "a pair of a system with itself")
    silent = (reason == "") & (texts(frame, shape.answer).str.strip() == "")
    reason = reason.mask(silent, f"no {shape.answer}")
    counts = {str(k): int(n) for k, n in reason[reason != ""].value_counts().sort_index().items()}
    rows = frame[reason == ""]
    if rows.empty:
        raise FormatError(f"has no answer for {shape.name}; left out: {told_counts(counts)}.")
    _check_methods(rows, shape)
    return rows, counts


def _check_methods(rows: pd.DataFrame, shape: Shape) -> None:
    for label, method in texts(rows, "method").items():
        if shape.methods and method not in ("", *shape.methods):
            raise FormatError(
                f"row {label + 2}: {shape.name} holds the methods {', '.join(shape.methods)}, not "
                f"{method}. Choose another format, or keep only the rows that fit."
            )
