"""The alias match on its edge cases, and against a slow reading of its rule."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from spark.evaluation import alias

# Runs of letters, digits and combining marks, or one visible character: the rule in a regex.
_RULE = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@pytest.mark.parametrize(
    ("reply", "aliases", "right"),
    [
        ("The capital is Lima.", ["Lima"], True),
        ("LIMA", ["lima"], True),  # case
        ("It is in Limassol.", ["Lima"], False),  # whole tokens, no substrings
        ("three", ["3"], False),  # no number words
        ("3", ["3"], True),
        ("in 1999", ["99"], False),
        ("Barack Obama was", ["Barack Obama"], True),
        ("Barack Hussein Obama", ["Barack Obama"], False),  # a contiguous run
        ("Obama Barack", ["Barack Obama"], False),
        ("Beatles wrote it", ["The Beatles"], False),  # articles count
        ("the  Beatles\nwrote it", ["The Beatles"], True),  # spaces do not
        ("the U.S. army", ["US"], False),  # punctuation is kept, as tokens
        ("the U.S. army", ["U.S."], True),
        ("it's rock'n'roll", ["rock 'n' roll"], True),
        ("rock n roll", ["rock'n'roll"], False),
        ("Jean-Paul", ["Jean Paul"], False),
        ("caf\u00e9", ["cafe\u0301"], True),  # NFD on both sides
        ("cafe", ["caf\u00e9"], False),  # accents count
        ("no idea", ["Ann", "idea"], True),  # any alias
        ("", ["Ann"], False),
        ("anything", [" "], False),  # an alias without tokens is nowhere
        ("anything", [], False),
        ("5 %", ["5%"], True),
        ("zero\u200bwidth", ["zero width"], True),  # invisible characters part tokens
    ],
)
def test_edge_cases(reply: str, aliases: list[str], right: bool) -> None:
    assert alias.matches(reply, aliases) is right


@pytest.mark.parametrize(
    ("reply", "aliases", "right"),
    [
        ("three", ["3"], True),
        ("3", ["Three"], True),
        ("twenty-one", ["21"], True),
        ("one hundred and five", ["105"], True),
        ("1,204 men", ["1204"], True),
        ("twenty one", ["20"], True),  # tokens, as in the plain match: "twenty" is one
        ("four", ["3"], False),
        ("Lima", ["lima"], True),
    ],
)
def test_number_words_are_a_second_reading(reply: str, aliases: list[str], right: bool) -> None:
    assert alias.numbers(reply, aliases) is right


# Characters that no Unicode version names yet are told apart differently by the two libraries.
@given(st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=40))
def test_tokens_are_those_of_the_rule(text: str) -> None:
    found = [token.lower() for token in _RULE.findall(unicodedata.normalize("NFD", text))]
    assert alias.tokens(text) == found


WORDS = st.lists(st.sampled_from(("a", "b", "c", "ab")), max_size=8)


@given(WORDS, st.integers(0, 8), st.integers(1, 3))
def test_every_run_of_a_reply_is_found(words: list[str], at: int, length: int) -> None:
    run = words[at : at + length]
    assert alias.matches(" ".join(words), [" ".join(run)]) is bool(run)
