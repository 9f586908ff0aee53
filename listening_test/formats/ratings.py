"""Our own `ratings.csv` as a format among the others: read with `analyse`'s checks, kept whole."""

from __future__ import annotations

import pandas as pd

from listening_test.analyse import REQUIRED, RatingsError, checked_ratings
from listening_test.formats.base import NUMBERS, FormatError, Shape, checked, numbers, texts, tidy

RATINGS = Shape("ratings", "ratings.csv", REQUIRED)


def from_ratings(table: pd.DataFrame) -> pd.DataFrame:
    """Our own ratings, checked as `analyse` does; a repeated `rating_id` is excluded.

    Raises:
        FormatError: what `analyse` would not take, or a number that is none.
    """
    table = checked(table, REQUIRED)
    text = pd.DataFrame({name: texts(table, name) for name in table.columns})
    try:
        frame = checked_ratings(text)
    except RatingsError as error:
        raise FormatError(str(error)) from None
    return tidy(frame.assign(**{name: numbers(text, name) for name in NUMBERS if name in text}))


def to_ratings(frame: pd.DataFrame) -> pd.DataFrame:
    """Tidy ratings with our columns first and in order; nothing is left out."""
    return tidy(checked(frame, REQUIRED))
