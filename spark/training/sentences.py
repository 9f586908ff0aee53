"""English sentences to read aloud: WordNet's usage examples and definitions, and word lists.

Reads Debian's `wordnet-base` and `scowl` packages (both under permissive licences). Everything is
lower-case words without marks (`spark.text.normalise`). Knows nothing of speech.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

from spark.text import normalise, number_words

WORDNET = Path("/usr/share/wordnet")
SCOWL = Path("/usr/share/dict/scowl")
REMEDY = (
    "Debian packages are missing: `apt-get install wordnet-base scowl` (needed for training only)"
)
MAX_WORDS = 15
_QUOTED = re.compile(r'"([^"]{8,120})"')
_LIST_SIZES = ("10", "20", "35", "40", "50")


@cache
def lexicon() -> dict[str, int]:
    """Word -> SCOWL size class (10 is the commonest): the spellings that training knows."""
    words: dict[str, int] = {}
    kinds = ("english-words", "american-words", "english-contractions", "english-upper")
    for size in _LIST_SIZES:
        for kind in kinds:
            path = SCOWL / f"{kind}.{size}"
            if path.is_file():
                for line in path.read_text("latin-1").splitlines():
                    word = normalise(line)
                    if word and " " not in word:
                        words.setdefault(word, int(size))
    if not words:
        raise RuntimeError(REMEDY)
    return words


def _known(text: str, shortest: int) -> bool:
    words = text.split()
    return shortest <= len(words) <= MAX_WORDS and all(word in lexicon() for word in words)


def _glosses() -> list[str]:
    files = sorted(WORDNET.glob("data.*"))
    if not files:
        raise RuntimeError(REMEDY)
    lines = (line for path in files for line in path.read_text("latin-1").splitlines())
    return [line.split(" | ", 1)[1] for line in lines if " | " in line]


@cache
def examples() -> tuple[str, ...]:
    """WordNet's usage examples of 3 to 15 known words, in file order, each once."""
    found = (normalise(text) for gloss in _glosses() for text in _QUOTED.findall(gloss))
    return tuple(dict.fromkeys(text for text in found if _known(text, 3)))


@cache
def definitions() -> tuple[str, ...]:
    """WordNet's definitions (the part before the first example or semicolon), 4 to 15 words."""
    found = (normalise(re.split(r'[;"(]', gloss)[0]) for gloss in _glosses())
    return tuple(dict.fromkeys(text for text in found if _known(text, 4)))


def word_list(rng: random.Random) -> str:
    """One to ten words drawn evenly over the lexicon's classes, so that rare ones are met."""
    by_class = _by_class()
    sizes = rng.choices(
        list(by_class), weights=(3, 3, 6, 2, 2)[: len(by_class)], k=rng.randint(1, 10)
    )
    return " ".join(rng.choice(by_class[size]) for size in sizes)


@cache
def common() -> tuple[str, ...]:
    """The commonest words, in the lexicon's order, without those for numbers."""
    numbers = {word for n in range(101) for word in number_words(str(n)).split()} | {"minus"}
    return tuple(word for word in _by_class()[10] if word not in numbers)


@cache
def _by_class() -> dict[int, list[str]]:
    classes: dict[int, list[str]] = {}
    for word, size in lexicon().items():
        if len(word) > 1 or word in ("a", "i"):
            classes.setdefault(size, []).append(word)
    return dict(sorted(classes.items()))
