"""The rater x item matrix of crowdMOS, one a system.

Not known: files of one matrix without its system and raters' names, which is what crowdMOS and
`mean-opinion-score` take in the end.
"""

from __future__ import annotations

import pandas as pd

from listening_test.formats.base import (
    FormatError,
    Shape,
    as_text,
    checked,
    exported,
    give,
    numbers,
    only,
    take,
    texts,
    tidy,
)

# Their column: ours.
_MATRIX = {"system": "system", "rater_id": "rater_id"}
MATRIX = Shape(
    "matrix",
    "matrix.csv",
    tuple(_MATRIX),
    ("item_id", "score", *_MATRIX.values()),
    made={"method": "acr"},
    methods=("acr", "dcr", "p835", "mushra"),
)


def to_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """A rater x item matrix a system, stacked: system, rater_id, then a column an item.

    The rows of one system without those two columns, and without the empty columns, are the
    array that crowdMOS and `mean-opinion-score` take.
    """
    rows, _ = exported(frame, MATRIX)
    only(texts(rows, "dimension"), "dimension")
    table = give(rows, _MATRIX).assign(item=texts(rows, "item_id"))
    for label, again in table.duplicated().items():
        if again:
            raise FormatError(
                f"row {label + 2}: this rater scored this item of this system before, and a "
                "matrix holds one score. Set the status of one to exclude."
            )
    if set(table["item"]) & set(_MATRIX):
        raise FormatError("has an item called system or rater_id, like a column. Rename it.")
    table = table.assign(score=numbers(rows, "score"))
    wide = table.pivot(index=list(_MATRIX), columns="item", values="score")
    return wide.rename_axis(columns=None).reset_index()


def from_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings from stacked rater x item matrices; an empty cell is no rating."""
    table = checked(table, MATRIX.required)
    ids = take(table, _MATRIX)
    items = [c for c in table.columns if c not in _MATRIX]
    if not items or not all(str(item).strip() for item in items):
        raise FormatError("needs a column an item after system and rater_id, each with its name.")
    parts = [ids.assign(item_id=as_text(c), score=numbers(table, c)) for c in items]
    long = pd.concat(parts).dropna(subset="score").sort_index(kind="stable")
    stimulus = long["item_id"] + "/" + long["system"]
    return tidy(long.assign(session_id=long["rater_id"], stimulus_id=stimulus), MATRIX.made)
