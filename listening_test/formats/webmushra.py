"""webMUSHRA's `mushra.csv`, `lss.csv` and `paired_comparison.csv`.

A questionnaire's columns are whatever its experiment asks: there our ids go, where the file has
none of its own. Not known: who heard which clip first, and what the answers of a questionnaire say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd

from listening_test.formats.base import (
    IDS,
    REFERENCE,
    FormatError,
    Shape,
    as_text,
    checked,
    exported,
    give,
    numbers,
    take,
    texts,
    tidy,
)

# Their column: ours.
_MUSHRA = {
    "session_test_id": "study_id", "rater_id": "rater_id", "session_uuid": "session_id",
    "trial_id": "item_id", "rating_stimulus": "system", "rating_score": "score",
    "rating_time": "rt_ms", "rating_comment": "comment",
}  # fmt: skip
_LSS = {
    "session_test_id": "study_id", "rater_id": "rater_id", "session_id": "session_id",
    "trial_id": "item_id", "stimuli": "system", "rating_time": "rt_ms",
}  # fmt: skip
_PAIRED = {
    "session_test_id": "study_id", "rater_id": "rater_id", "session_id": "session_id",
    "trial_id": "item_id", "choice_reference": "system", "choice_non_reference": "system_b",
    "choice_answer": "choice", "choice_time": "rt_ms", "choice_comment": "comment",
}  # fmt: skip
# Whether the listener took the reference for the reference; `a` is the reference here.
_ANSWERS = {"a": "correct", "b": "incorrect", "tie": "undecided", "": "unknown"}

MUSHRA = Shape(
    "mushra",
    "mushra.csv",
    ("trial_id", "rating_stimulus", "rating_score"),
    tuple(_MUSHRA.values()),
    made={"method": "mushra", "dimension": "quality"},
    methods=("mushra",),
)
LSS = Shape(
    "lss",
    "lss.csv",
    ("trial_id", "stimuli"),
    ("score", *_LSS.values()),
    made={"method": "acr"},
    methods=("acr", "dcr", "p835"),
    caution="it does not name the dimensions of its scores",
)
PAIRED_COMPARISON = Shape(
    "paired_comparison",
    "paired_comparison.csv",
    ("trial_id", "choice_reference", "choice_non_reference", "choice_answer"),
    tuple(_PAIRED.values()),
    made={"method": "ab"},
    methods=("ab",),
    answer="choice",
    caution="it does not say which clip was heard first: how often the first one won is unknown",
)


def _ratings(table: pd.DataFrame, shape: Shape, columns: dict[str, str]) -> pd.DataFrame:
    """What all files of webMUSHRA share: ids, and who answered.

    Only `mushra.csv` names the session. Our ids are looked for among the questionnaire's columns;
    without any, its answers, hashed, tell people apart. The answers themselves are not kept:
    they may be personal, and belong with the raters.
    """
    table = checked(table, shape.required)
    frame = take(table, columns)
    own = [c for c in table.columns if c in columns or c.startswith("stimuli_rating")]
    answers = ["\0".join(map(as_text, row)) for row in table.drop(columns=own).to_numpy()]
    if not {"rater_id", "session_id"} & set(frame) and not any(
        text.strip("\0") for text in answers
    ):
        raise FormatError(
            "does not tell people apart: it has neither session_uuid nor a questionnaire's "
            "columns. Add a column rater_id."
        )
    hashed = [f"q-{sha256(text.encode()).hexdigest()[:16]}" for text in answers]
    rater = frame.get("rater_id", frame.get("session_id", pd.Series(hashed, table.index)))
    stimulus = frame["item_id"] + "/" + frame["system"]
    session = frame.get("session_id", rater)
    frame = frame.assign(session_id=session, rater_id=rater, stimulus_id=stimulus)
    if rater.tolist() == hashed:
        same = frame.duplicated([c for c in frame if c in (*IDS, "study_id")])
        for label in frame.index[same]:
            raise FormatError(
                f"row {label + 2}: the same questionnaire answers and trial as in an earlier row; "
                "two people cannot be told apart. Add a column rater_id."
            )
    return frame


def to_mushra(frame: pd.DataFrame) -> pd.DataFrame:
    """webMUSHRA `mushra.csv`, a row a score; the rater's id is a questionnaire column."""
    return give(exported(frame, MUSHRA)[0], _MUSHRA)


def from_mushra(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings from webMUSHRA `mushra.csv`; the hidden reference stays the system `reference`."""
    return tidy(_ratings(table, MUSHRA, _MUSHRA), MUSHRA.made)


def to_lss(frame: pd.DataFrame) -> pd.DataFrame:
    """webMUSHRA `lss.csv`, a row a person, trial and stimulus and a column a dimension.

    The time is that of the page: the longest of its dimensions.
    """
    rows, _ = exported(frame, LSS)
    dimension = texts(rows, "dimension")
    found = dimension.unique()
    column = {
        d: f"stimuli_rating{i}" if len(found) > 1 else "stimuli_rating"
        for i, d in enumerate(found, 1)
    }
    table = give(rows, _LSS)
    ids = table.drop(columns="rating_time").assign(dimension=dimension)
    # What a person rated twice in a trial takes two rows.
    table["again"] = ids.groupby(list(ids)).cumcount()
    pages: dict[tuple[Any, ...], dict[str, Any]] = {}
    scores = numbers(rows, "score")
    for row, d, score in zip(table.to_dict("records"), dimension, scores, strict=True):
        time = row.pop("rating_time")
        page = pages.setdefault(tuple(row.values()), row | {"rating_time": time})
        page |= {column[d]: score, "rating_time": float(np.fmax(time, page["rating_time"]))}
    ends = ("stimuli", "rating_time")
    order = [*(c for c in _LSS if c not in ends), *column.values(), *ends]
    return pd.DataFrame(list(pages.values()))[order]


def from_lss(table: pd.DataFrame, dimensions: Iterable[str] = ()) -> pd.DataFrame:
    """Ratings from webMUSHRA `lss.csv`, a row a dimension; `NA` is a question not answered.

    The file does not name its dimensions: give names for stimuli_rating1, 2 ..., or they are
    called rating1, rating2 ... and the only one has none.
    """
    frame = _ratings(table, LSS, _LSS)
    table = table.set_axis(frame.index)
    ratings = [c for c in table.columns if re.fullmatch(r"stimuli_rating\d*", c)]
    if not ratings:
        raise FormatError("lacks the column stimuli_rating, or stimuli_rating1, 2 ...")
    names = [*dimensions] or [c[8:] if len(ratings) > 1 else "" for c in ratings]
    if len(names) != len(ratings):
        raise FormatError(f"has {len(ratings)} dimensions, not {len(names)}; name each.")
    parts = [
        frame.assign(dimension=name, score=numbers(table, c, "NA"))[texts(table, c) != ""]
        for c, name in zip(ratings, names, strict=True)
    ]
    return tidy(pd.concat(parts).sort_index(kind="stable"), LSS.made)


def to_paired_comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """webMUSHRA `paired_comparison.csv`, a row a choice between `system` and `system_b`.

    The reference's place is for a system of that name, else for `system`: `correct` says that it
    was chosen. Which clip came first has no column.
    """
    table = give(exported(frame, PAIRED_COMPARISON)[0], _PAIRED)
    for label, choice in table["choice_answer"].items():
        if choice not in _ANSWERS:
            raise FormatError(f"row {label + 2}: choice {choice!r} is not a, b or tie. Mend it.")
    pair = ["choice_reference", "choice_non_reference"]
    turned = (table[pair[1]] == REFERENCE) & (table[pair[0]] != REFERENCE)
    table.loc[turned, pair] = table.loc[turned, pair[::-1]].to_numpy()
    other = table["choice_answer"].replace({"a": "b", "b": "a"})
    answer = table["choice_answer"].mask(turned, other)
    return table.assign(choice_answer=answer.map(_ANSWERS))


def from_paired_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings from webMUSHRA `paired_comparison.csv`: choices a (the reference), b and tie."""
    frame = _ratings(table, PAIRED_COMPARISON, _PAIRED)
    for label, answer in frame["choice"].items():
        if answer not in _ANSWERS.values():
            raise FormatError(
                f"row {label + 2}: choice_answer {answer!r} is not one of "
                f"{', '.join(_ANSWERS.values())}. Mend it."
            )
    choice = frame["choice"].map({theirs: ours for ours, theirs in _ANSWERS.items()})
    other = frame["item_id"] + "/" + frame["system_b"]
    frame = frame.assign(choice=choice, stimulus_b_id=other, score=math.nan)
    return tidy(frame, PAIRED_COMPARISON.made)
