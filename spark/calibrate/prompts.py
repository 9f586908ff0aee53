"""Prompts to calibrate with: three sets that share no answer, and none with the evaluation.

Questions are put in the phrasings that training uses. Sentences to read aloud are put together
from who, what, where and when, a list of each: twenty thousand, and natural enough for the ear
(single words in a row, as the matrix sentences of audiometry have them, it mistakes two times in
three even at full depth). What a reply has to say decides, by a checksum, which set it belongs to.
Pure text: knows no model.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Literal

from spark.evaluation.suite import Item, builtin
from spark.training import questions
from spark.training.questions import Fact

Part = Literal["sweep", "trial", "confirmation"]
PARTS: tuple[Part, ...] = ("sweep", "trial", "confirmation", "confirmation")  # the last is twice
ALOUD_SHARE, REASONING_SHARE = 0.3, 0.4  # about the evaluation's; the rest are facts

_PHRASES = (
    (
        "the old man", "my sister", "the teacher", "our neighbor", "the little girl", "his father",
        "the young doctor", "her best friend", "the farmer", "a tall woman", "the driver",
        "my grandmother",
    ),
    (
        "was waiting", "was working", "sat down", "fell asleep", "was reading a book",
        "met his brother", "lost the keys", "was singing a song", "stood alone",
        "drank a cup of tea", "found some money", "heard a loud noise",
    ),
    (
        "in the garden", "at the station", "by the river", "in the kitchen", "near the school",
        "at the market", "in the old house", "on the bridge", "at the hotel", "by the window",
        "in front of the church", "on the beach",
    ),
    (
        "in the morning", "last night", "after dinner", "every day", "before the storm",
        "for an hour", "all afternoon", "on sunday", "last summer", "until midnight",
        "at half past ten", "a week ago",
    ),
)  # fmt: skip


def part_of(answer: str) -> Part:
    """The set that prompts with this answer belong to."""
    return PARTS[zlib.crc32(answer.encode()) % len(PARTS)]


def draw(part: Part, count: int, seed: int) -> list[Item]:
    """The first `count` prompts of a set; more of them begin with the same ones.

    Args:
        part: the set.
        count: how many.
        seed: of the draw.
    """
    return list(islice(_stream(part, random.Random(f"{part}:{seed}")), count))


def _stream(part: Part, rng: random.Random) -> Iterator[Item]:
    """Prompts without end, each once."""
    seen = {item.prompt for item in builtin()}
    reasoning, factual = (_facts(part, family) for family in ("reasoning", "factual"))
    number = 0
    while True:
        luck = rng.random()
        if luck < ALOUD_SHARE:
            sentence = _sentence(part, rng)
            prompt = questions.ask_aloud(sentence, rng)
            family, expected, key, slots = "read_aloud", sentence, sentence, tuple[str, ...]()
        else:
            fact = rng.choice(reasoning if luck < ALOUD_SHARE + REASONING_SHARE else factual)
            prompt = questions.ask(fact, rng)
            family, expected, key, slots = fact.family, fact.answer, fact.key, fact.slots
        if prompt not in seen:
            seen.add(prompt)
            yield Item(f"{part}-{number:05d}", family, part, prompt, expected, key, slots)
            number += 1


@cache
def _facts(part: Part, family: str) -> tuple[Fact, ...]:
    asked = {item.expected for item in builtin()}
    return tuple(
        fact
        for fact in questions.facts()
        if fact.family == family
        and not fact.held_out
        and fact.answer not in asked
        and part_of(fact.answer) == part
    )


def _sentence(part: Part, rng: random.Random) -> str:
    """A sentence of the set."""
    while True:
        words = " ".join(rng.choice(phrases) for phrases in _PHRASES)
        if part_of(words) == part:
            return words
