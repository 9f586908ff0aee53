"""What the embedded model is asked: facts, their phrasings, and which of them training never sees.

Two things are held out: some phrasings of every kind, and some number pairs altogether. The same
lists make the training prompts and the built-in evaluation, so the two cannot drift apart.
Pure text: knows nothing of tokens or speech.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from spark.text import normalise, number_words

LARGEST = 20  # operands run from nought to twenty
PRACTISED = 40  # and up to here in writing: too many pairs to learn one by one, so a rule is found
HELD_OUT_SHARE = 0.08  # of the number pairs of each kind
_NUMBERS = ("sum", "difference", "larger", "smaller")
_ADDED, _DROPPED = 0.08, 0.12  # chance, for each word, that one comes before it or that it goes
# fmt: off
_SMALL = frozenset({
    "what", "which", "is", "are", "the", "of", "a", "an", "does", "do", "to", "in", "on", "it",
    "you", "me", "that", "there", "who",
})
# fmt: on
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """One thing the model knows: `slots` are named in the question, `key` must be in the answer."""

    kind: str
    family: str  # reasoning, factual, dialogue or unknown
    slots: tuple[str, ...]
    answer: str
    key: str
    held_out: bool = False  # a number pair training never sees


@cache
def _read(name: str) -> Any:
    return YAML(typ="safe").load(_FOLDER / name)


def _phrasings() -> Any:
    return _read("phrasings.yaml")


def _number_facts(largest: int = LARGEST) -> list[tuple[str, tuple[str, ...], str]]:
    """(kind, slots, key) of every number pair up to `largest`."""
    words = [number_words(str(n)) for n in range(2 * largest + 1)]
    rows: list[tuple[str, tuple[str, ...], str]] = []
    for a in range(largest + 1):
        for b in range(largest + 1):
            below = "minus " + words[b - a] if b > a else words[a - b]
            rows.append(("sum", (words[a], words[b]), words[a + b]))
            rows.append(("difference", (words[a], words[b]), below))
            if a != b:
                rows.append(("larger", (words[a], words[b]), words[max(a, b)]))
                rows.append(("smaller", (words[a], words[b]), words[min(a, b)]))
    return rows


def _word_facts() -> list[tuple[str, tuple[str, ...], str]]:
    facts = _read("facts.yaml")
    rows: list[tuple[str, tuple[str, ...], str]] = []
    for country, values in facts["countries"].items():
        for kind, key in zip(("capital", "continent", "language"), values, strict=True):
            rows.append((kind, (country,), key))
    kinds = {"opposite": "opposites", "baby": "babies", "sound": "sounds", "colour": "colours",
             "sides": "sides", "legs": "legs", "author": "authors"}  # fmt: skip
    for kind, group in kinds.items():
        rows += [(kind, (subject,), key) for subject, key in facts[group].items()]
    rows += [("opposite", (key,), subject) for subject, key in facts["opposites"].items()]
    for ring in (facts["days"], facts["months"]):
        for here, there in zip(ring, ring[1:] + ring[:1], strict=True):
            rows += [("next", (here,), there), ("previous", (there,), here)]
    return rows


def _is_held_out(kind: str, slots: tuple[str, ...]) -> bool:
    """Decided by a checksum, so that it never depends on order; a pair is out both ways round."""
    name = f"{kind}:{':'.join(sorted(slots))}"
    return kind in _NUMBERS and zlib.crc32(name.encode()) % 1000 < 1000 * HELD_OUT_SHARE


def _of_kind(kind: str, slots: tuple[str, ...], key: str, held_out: bool) -> Fact:
    entry = _phrasings()["kinds"][kind]
    values = dict(zip(("x", "y"), slots, strict=False))
    answer = entry["answer"].format(**{"y": key, "z": key, **values})
    return Fact(kind, entry["family"], slots, answer, key, held_out)


@cache
def facts() -> tuple[Fact, ...]:
    """Everything the model is meant to know, held-out number pairs included."""
    found = [
        _of_kind(kind, slots, key, _is_held_out(kind, slots))
        for kind, slots, key in _number_facts() + _word_facts()
    ]
    for kind, entry in _phrasings()["dialogue"].items():
        found.append(Fact(kind, "dialogue", (), entry["answer"], entry["answer"]))
    return tuple(found)


@cache
def practice() -> tuple[Fact, ...]:
    """Sums and differences of operands up to PRACTISED, without the pairs that are held out.

    For training in writing only. Not among `facts()`: the model is not meant to know them all.
    """
    within = {number_words(str(n)) for n in range(LARGEST + 1)}
    return tuple(
        _of_kind(kind, slots, key, held_out=False)
        for kind, slots, key in _number_facts(PRACTISED)
        if kind in ("sum", "difference")
        and not (within.issuperset(slots) and _is_held_out(kind, slots))
    )


def unknown_fact() -> Fact:
    """What it says to anything else."""
    answer = _phrasings()["unknown"]["answer"]
    return Fact("unknown", "unknown", (), answer, answer)


@cache
def counting() -> tuple[Fact, ...]:
    """What comes after and before each number: trained on, so that numbers have an order.

    Sums of pairs held out lean on it. Not among `facts()`, from which the evaluation draws: its
    items stay the same from one version of the weights to the next.
    """
    words = [number_words(str(n)) for n in range(2 * LARGEST + 1)]
    pairs = list(itertools.pairwise(words))
    rows = [("next", a, b) for a, b in pairs] + [("previous", b, a) for a, b in pairs]
    return tuple(_of_kind(kind, (here,), there, held_out=False) for kind, here, there in rows)


def answers(held_out: bool) -> list[str]:
    """Every answer once, that to what is not known too; `held_out`: with those never trained on."""
    known = [*facts(), *counting(), unknown_fact()]
    return list(dict.fromkeys(fact.answer for fact in known if held_out or not fact.held_out))


def templates(fact: Fact, unseen: bool) -> list[str]:
    """The phrasings of the fact's kind: those trained on, or those held out."""
    group = "dialogue" if fact.family == "dialogue" else "kinds"
    return list(_phrasings()[group][fact.kind]["unseen" if unseen else "asked"])


def _filled(template: str, fact: Fact) -> str:
    return template.format(**dict(zip(("x", "y"), fact.slots, strict=False)))


def is_held_out_phrasing(prompt: str, fact: Fact) -> bool:
    """Whether a held-out phrasing of the fact stands in the prompt, alone or among other words."""
    if fact.family == "unknown":
        return False
    cores = (normalise(_filled(core, fact)) for core in templates(fact, unseen=True))
    return any(f" {core} " in f" {prompt} " for core in cores)


def ask(fact: Fact, rng: random.Random, unseen: bool = False) -> str:
    """A prompt for the fact, with a carrier such as "please tell me" now and then."""
    core = _filled(rng.choice(templates(fact, unseen)), fact)
    if fact.family == "dialogue":
        return normalise(core)
    carriers = _phrasings()["carriers"]
    before, after = rng.choice(carriers["before"]), rng.choice(carriers["after"])
    return normalise(f"{before} {core} {after}")


def loosen(prompt: str, slots: tuple[str, ...], fillers: Sequence[str], rng: random.Random) -> str:
    """The prompt as somebody else might put it: small words gone, or any of `fillers` put in.

    Words of `slots` stay as they are, and stay together. For training only: a phrasing that is
    not in the lists is then nothing new.
    """
    kept = {word for slot in slots for word in slot.split()}
    words = prompt.split()
    long, out = len(words) > 4, list[str]()
    for i, word in enumerate(words):
        inside = word in kept and i > 0 and words[i - 1] in kept
        if not inside and rng.random() < _ADDED:
            out.append(rng.choice(fillers))
        if not (long and word in _SMALL and word not in kept and rng.random() < _DROPPED):
            out.append(word)
    return " ".join(out)


@cache
def outside() -> tuple[str, ...]:
    """Prompts outside the model's domain that the evaluation asks and training never sees."""
    return tuple((_FOLDER / "outside.txt").read_text("utf-8").splitlines())


@cache
def _outside_words() -> frozenset[str]:
    return frozenset(map(normalise, outside()))


def ask_aloud(sentence: str, rng: random.Random) -> str:
    """A prompt that asks for the sentence to be read aloud."""
    return normalise(rng.choice(_phrasings()["aloud"]).format(x=sentence))


def ask_unknown(rng: random.Random, sentences: tuple[str, ...]) -> str:
    """A prompt outside the model's domain: a stray sentence, or a question it has no answer to."""
    words = rng.choice(sentences).split()
    thing = " ".join(words[-rng.randint(1, 3) :])
    country = rng.choice(list(_read("facts.yaml")["countries"]))
    n, m = (number_words(str(rng.randint(0, 99))) for _ in range(2))
    big = number_words(str(rng.randint(2 * LARGEST + 1, 999)))
    options = [
        " ".join(words), " ".join(words), " ".join(words),
        f"what is the population of {country}", f"who is the {words[-1]} of {country}",
        f"how big is {country}", f"how far away is {country}", f"what is {n} times {m}",
        f"what is {n} divided by {m}", f"what is {big} plus {n}", f"what is {big} minus {n}",
        f"what is the {words[0]} of {thing}", f"what is the capital of the {words[-1]}",
        f"who invented the {words[-1]}", f"why is {thing}", f"when was {thing}",
        f"how do you {thing}", f"what do you think about {thing}", f"where can i find {thing}",
        f"who is {thing}", f"what is {thing}", f"how many {thing}", f"can you {thing}",
        f"why do people {thing}", f"what happened to {thing}", f"tell me about {thing}",
        "what time is it", "what is the weather today", "what day is it today",
        f"what is the best {words[-1]}", f"how much does {thing} cost", f"sing {thing}",
    ]  # fmt: skip
    prompt = normalise(rng.choice(options))
    return ask_unknown(rng, sentences) if prompt in _outside_words() else prompt
