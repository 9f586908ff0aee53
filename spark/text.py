"""Text as the embedded model and the word error rate see it: lower-case words, nothing else.

One place decides what "the same words" means, so that case, punctuation and digits can neither
change what the model is asked nor be counted as recognition errors. Knows English only.
"""

from __future__ import annotations

import re
import unicodedata

from num2words import num2words

_OPERATORS = (
    (re.compile(r"(?<=[\w)])\s*\+\s*(?=[\w(])"), " plus "),
    (re.compile(r"(?<=\d)\s*[-−–]\s*(?=\d)"), " minus "),
    (re.compile(r"(?<=\s)[-−–]\s+(?=\d)"), " minus "),
    (re.compile(r"(?<=\s)[-−](?=\d)"), " minus "),
    (re.compile(r"(?<=\d)\s*[×*]\s*(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\s*[÷/]\s*(?=\d)"), " divided by "),
    (re.compile(r"="), " equals "),
    (re.compile(r"%"), " percent "),
    (re.compile(r"&"), " and "),
)
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_NOT_A_WORD = re.compile(r"[^a-z' ]+")
_LONGEST_NUMBER = 15  # digits; longer ones are read digit by digit, as a phone number would be


def number_words(number: str) -> str:
    """English words of a decimal number such as "1,204" or "3.5" (no sign, no hyphens)."""
    plain = number.replace(",", "")
    if len(plain.split(".")[0]) > _LONGEST_NUMBER:
        return " ".join(num2words(int(digit)) for digit in plain if digit.isdigit())
    words = num2words(float(plain) if "." in plain else int(plain))
    return str(words).replace("-", " ").replace(",", "")


def normalise(text: str) -> str:
    """Lower-case words separated by single spaces: letters a-z and inner apostrophes only.

    Numbers and arithmetic signs become words, accents are dropped, every other mark is a gap.
    """
    text = unicodedata.normalize("NFKD", text.replace("’", "'").replace("ʼ", "'")).lower()
    text = "".join(c for c in text if not unicodedata.combining(c))
    for pattern, words in _OPERATORS:
        text = pattern.sub(words, text)
    text = _ORDINAL.sub(lambda m: f" {num2words(int(m[1]), to='ordinal')} ", text)
    text = _NUMBER.sub(lambda m: f" {number_words(m[0])} ", text)
    parts = (part.strip("'") for part in _NOT_A_WORD.sub(" ", text).split())
    return " ".join(part for part in parts if part)
