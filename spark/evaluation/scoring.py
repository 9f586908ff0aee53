"""Whether a reply is right, by its words alone. The same rule judges text and what was heard.

The built-in suite's rules are here, the public sets' alias match in `alias`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jiwer

from spark.evaluation import alias
from spark.evaluation.suite import Item
from spark.text import normalise, number_words

_NUMBER_WORDS = frozenset(
    word for n in (*range(20), *range(20, 100, 10), 100) for word in number_words(str(n)).split()
) | {"minus"}
_COMPARISONS = frozenset({"larger", "smaller"})


@dataclass(frozen=True)
class Errors:
    """Word errors of one reply: substitutions, deletions and insertions over reference words."""

    edits: int
    words: int


def _plain(text: str) -> str:
    return normalise(text, longest=None)


def word_errors(reference: str, heard: str, words: Callable[[str], str] = _plain) -> Errors:
    """Edits that turn `reference` into `heard`, both normalised by `words`."""
    reference, heard = words(reference), words(heard)
    if not reference or not heard:
        return Errors(max(len(reference.split()), len(heard.split())), len(reference.split()))
    counts = jiwer.process_words(reference, heard)
    edits = counts.substitutions + counts.deletions + counts.insertions
    return Errors(edits, len(reference.split()))


def _find(words: list[str], phrase: list[str]) -> int:
    """Where `phrase` stands in `words` as a whole number or name, -1 if nowhere."""
    numeric = set(phrase) <= _NUMBER_WORDS
    for i in range(len(words) - len(phrase) + 1):
        if words[i : i + len(phrase)] == phrase:
            around = words[max(0, i - 1) : i] + words[i + len(phrase) :][:1]
            if not (numeric and set(around) & _NUMBER_WORDS):
                return i
    return -1


def correct(item: Item, reply: str) -> bool | None:
    """Whether the reply is right by the item's rule; None where only a judge can say."""
    match item.rule:
        case "alias":
            return alias.matches(reply, item.aliases)
        case "judge":
            return None
    return is_right(item, reply)


def is_right(item: Item, reply: str) -> bool:
    """Whether the reply says the key, beyond repeating what the question named.

    Reading aloud: every word. Dialogue and not knowing: the whole set phrase. Questions: the key
    as a whole (twenty is not in twenty one; "five" named in the question does not count). In a
    difference the minus sign between the operands is no part of a number.
    """
    words = normalise(reply, longest=None).split()
    if item.family in ("read_aloud", "dialogue", "unknown"):
        return words == item.key.split()
    if item.family == "reasoning":
        return _right_number(item, words)
    for slot in item.slots:
        at = _find(words, slot.split())
        if at >= 0:
            del words[at : at + len(slot.split())]
    return _find(words, item.key.split()) >= 0


def _right_number(item: Item, words: list[str]) -> bool:
    """The result stands after "is" (sums, differences) or is the only number (comparisons).

    A comparison that is named must be the one asked for.
    """
    named = _COMPARISONS & set(words)
    if named and named != _COMPARISONS & set(item.expected.split()):
        return False
    if "is" in words and not named:
        words = words[len(words) - words[::-1].index("is") :]
    return [word for word in words if word in _NUMBER_WORDS] == item.key.split()
