"""Text as the embedded model and the word error rate see it: lower-case words, nothing else.

One place decides what "the same words" means, so that case, punctuation and digits can neither
change what the model is asked nor be counted as recognition errors. Knows English only.
"""

from __future__ import annotations

import re
import unicodedata

import inflect

_WORDS = inflect.engine()
_ONES = [str(_WORDS.number_to_words(str(n))) for n in range(20)]
_TENS = [str(_WORDS.number_to_words(str(n))) for n in range(20, 100, 10)]
_NUMERAL = "|".join((*_ONES, *_TENS, "hundred", "thousand"))
_OPERATORS = (
    (re.compile(r"(?<=[\w)])\s*\+\s*(?=[\w(])"), " plus "),
    (re.compile(r"(?<=\d)\s*[-−–]\s*(?=\d)"), " minus "),
    (re.compile(r"(?<=\s)[-−–]\s+(?=\d)"), " minus "),
    # Spelled out, a number on both sides tells a difference from a dash in a sentence.
    (re.compile(rf"(\d|\)|\b(?:{_NUMERAL}))\s+[-−–]\s+(?=(?:{_NUMERAL})\b)"), r"\1 minus "),
    (re.compile(r"(?<![^\s(])[-−](?=\d)"), " minus "),
    (re.compile(r"(?<=\d)\s*[×*]\s*(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\s*[÷/]\s*(?=\d)"), " divided by "),
    (re.compile(r"="), " equals "),
    (re.compile(r"%"), " percent "),
    (re.compile(r"&"), " and "),
)
# Letters and apostrophes that no decomposition turns into ours.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i",
     "’": "'", "ʼ": "'"}
)  # fmt: skip
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_NOT_A_WORD = re.compile(r"[^a-z' ]+")
_LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit, as a phone number would be
LONGEST_TEXT = 1000  # characters; far more than any prompt a model here can take


def number_words(number: str) -> str:
    """English words of a decimal number such as "1,204" or "3.5" (no sign, no hyphens)."""
    plain = number.replace(",", "")
    if len(plain.split(".")[0]) > _LONGEST_NUMBER:
        return " ".join(_ONES[int(digit)] for digit in plain if digit.isdigit())
    words = _WORDS.number_to_words(plain)
    return str(words).replace("-", " ").replace(",", "")


def _ordinal_words(digits: str) -> str:
    """English words of "21" in "21st"; too long a number keeps its digits and loses the ending."""
    if len(digits) > _LONGEST_NUMBER:
        return number_words(digits)
    return str(_WORDS.number_to_words(_WORDS.ordinal(str(int(digits)))))


def normalise(text: str, longest: int | None = LONGEST_TEXT) -> str:
    """Lower-case words separated by single spaces: letters a-z and inner apostrophes only.

    Numbers and arithmetic signs become words, accents are dropped, a few letters are spelt out
    ("ß" as "ss"), every other mark is a gap.

    Args:
        text: as typed, said or heard.
        longest: characters allowed; None where the text is no visitor's, but a reply or a
            transcript of any length.

    Raises:
        ValueError: the text is longer than that.
    """
    if longest is not None and len(text) > longest:
        raise ValueError(f"the text has {len(text)} characters: use at most {longest}")
    text = unicodedata.normalize("NFKD", text).lower().translate(_LETTERS)
    text = "".join(c for c in text if not unicodedata.combining(c))
    for pattern, words in _OPERATORS:
        text = pattern.sub(words, text)
    text = _ORDINAL.sub(lambda m: f" {_ordinal_words(m[1])} ", text)
    text = _NUMBER.sub(lambda m: f" {number_words(m[0])} ", text)
    parts = (part.strip("'") for part in _NOT_A_WORD.sub(" ", text).split())
    return " ".join(part for part in parts if part)
