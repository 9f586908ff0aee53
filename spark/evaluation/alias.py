"""Whether a reply names a right answer: the alias match of the open question sets, by tokens.

UltraEval-Audio's rule: Unicode NFD; tokens are runs of letters, digits and combining marks, or
single other visible characters, in lower case; a reply is right where some alias stands in it as
a run of whole tokens. Nothing else is mapped: "three" is not "3" and an article counts. `numbers`
is a second reading in which number words and digits are the same, to be reported apart.
Knows words only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from spark.text import number_words

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def tokens(text: str) -> list[str]:
    """Tokens of a text, in order."""
    found: list[str] = []
    inside = False  # a run of letters, digits and marks
    for char in unicodedata.normalize("NFD", text):
        group = unicodedata.category(char)[0]
        if group in "LNM":
            if inside:
                found[-1] += char
            else:
                found.append(char)
        elif group not in "ZC":  # neither a space nor invisible
            found.append(char)
        inside = group in "LNM"
    return [token.lower() for token in found]


def matches(reply: str, aliases: Sequence[str]) -> bool:
    """Whether some alias stands in the reply as a run of whole tokens."""
    words = tokens(reply)
    return any(_stands(tokens(alias), words) for alias in aliases)


def numbers(reply: str, aliases: Sequence[str]) -> bool:
    """The same where digits on both sides are read as English number words."""
    return matches(_spelled(reply), [_spelled(alias) for alias in aliases])


def _spelled(text: str) -> str:
    """The text with numbers as words, hyphens between them as gaps."""
    words = _NUMBER.sub(lambda found: f" {number_words(found[0])} ", text)
    return re.sub(r"(?<=\w)-(?=\w)", " ", words)


def _stands(run: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a run of tokens is somewhere in others; one without tokens is nowhere."""
    length = len(run)
    starts = range(len(words) - length + 1)
    return length > 0 and any(list(words[at : at + length]) == list(run) for at in starts)
