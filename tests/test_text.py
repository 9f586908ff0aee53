"""What counts as the same words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.text import LONGEST_TEXT, normalise


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
        ("-3 plus 5", "minus three plus five"),
        ("(-3) + 5", "minus three plus five"),
        ("What is (−3)?", "what is minus three"),
        ("7 - five", "seven minus five"),
        ("seven - five", "seven minus five"),
        ("twenty-one - eleven – 2", "twenty one minus eleven minus two"),
        ("well - known", "well known"),
        ("three of us - two boys", "three of us two boys"),
        ("pages 10-12, a -ness", "pages ten minus twelve a ness"),
        ("12345678901234567th", "one two three four five six seven eight nine zero one two three "
         "four five six seven"),
        ("Smørrebrød, Straße, Łódź, œuvre", "smorrebrod strasse lodz oeuvre"),
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


@pytest.mark.parametrize("ending", ["", "th", ".5", "%"])
def test_any_number_up_to_the_longest_text_has_words(ending: str) -> None:
    digits = "1" * (LONGEST_TEXT - len(ending))
    assert normalise(digits + ending).split()[:400] == ["one"] * 400


def test_too_long_a_text_is_refused_before_anything_else() -> None:
    with pytest.raises(ValueError, match="5000 characters: use at most 1000"):
        normalise("1" * 5000)
    assert normalise("1" * 5000, longest=None).split() == ["one"] * 5000
    assert normalise("1" * 5000 + "th", longest=None).split() == ["one"] * 5000
