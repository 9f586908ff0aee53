"""What counts as the same words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.text import normalise


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("What's 7 plus 5?", "what's seven plus five"),
        ("what’s SEVEN plus five", "what's seven plus five"),
        ("7+5", "seven plus five"),
        ("19 - 8", "nineteen minus eight"),
        ("is -3 < 4?", "is minus three four"),
        ("6 × 7 = 42", "six times seven equals forty two"),
        ("1,204 and 3.5%", "one thousand two hundred and four and three point five percent"),
        ("the 21st of May", "the twenty first of may"),
        ("Say: the tide's turning — at noon!", "say the tide's turning at noon"),
        ("café, well-known", "cafe well known"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("0043 1234567890123456", "forty three one two three four five six seven eight nine zero "
         "one two three four five six"),
        ("?!…", ""),
    ],
)  # fmt: skip
def test_normalise(typed: str, words: str) -> None:
    assert normalise(typed) == words


@given(st.text(max_size=80))
def test_normalised_text_is_plain_and_stable(text: str) -> None:
    words = normalise(text)
    assert set(words) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert normalise(words) == words
