"""Tidy ratings in the formats of other listening tests and back, as data frames.

One module a tool knows its columns; this one knows which formats there are. Not known: files,
encodings and formula guards (`convert.py`), and what scores say.

`to_...` takes tidy ratings (`columns.py`) and leaves out what is no answer, see `exported`.
`from_...` gives tidy ratings: text, and the columns in `base.NUMBERS` as floats, nan where missing.
Both raise FormatError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from listening_test.formats.base import MADE, FormatError, Shape, as_text, exported
from listening_test.formats.crowdmos import MATRIX, from_matrix, to_matrix
from listening_test.formats.p808 import (
    VOTES_PER_CLIP,
    VOTES_PER_WORKER,
    from_votes_per_clip,
    from_votes_per_worker,
    to_votes_per_clip,
    to_votes_per_worker,
)
from listening_test.formats.ratings import RATINGS, from_ratings, to_ratings
from listening_test.formats.webmushra import (
    LSS,
    MUSHRA,
    PAIRED_COMPARISON,
    from_lss,
    from_mushra,
    from_paired_comparison,
    to_lss,
    to_mushra,
    to_paired_comparison,
)

__all__ = ["FORMATS", "MADE", "Format", "FormatError", "Shape", "as_text", "exported"]


@dataclass(frozen=True)
class Format:
    """A format's shape, and how tables in it are read and written."""

    shape: Shape
    read: Callable[[pd.DataFrame], pd.DataFrame]
    write: Callable[[pd.DataFrame], pd.DataFrame]


FORMATS = {
    kind.shape.name: kind
    for kind in (
        Format(RATINGS, from_ratings, to_ratings),
        Format(VOTES_PER_WORKER, from_votes_per_worker, to_votes_per_worker),
        Format(VOTES_PER_CLIP, from_votes_per_clip, to_votes_per_clip),
        Format(MUSHRA, from_mushra, to_mushra),
        Format(LSS, from_lss, to_lss),
        Format(PAIRED_COMPARISON, from_paired_comparison, to_paired_comparison),
        Format(MATRIX, from_matrix, to_matrix),
    )
}
