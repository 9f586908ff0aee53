"""The built-in suite: what the embedded model is asked when it is measured.

Phrasings, number pairs and sentences that training never saw, drawn once from a fixed seed. The
questions come from the lists that training uses (`spark.training.questions`), which mark what is
held out. Pure text: knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spark.text import normalise
from spark.training import questions
from spark.training.questions import Fact

_FOLDER = Path(__file__).parent
_SEED = 2026
_REASONING, _FACTUAL, _PAIRS = 100, 100, 40
# How a reply is judged: by the built-in suite's own rules, by the aliases of a right answer, or by
# a language model alone.
Rule = Literal["words", "alias", "judge"]


@dataclass(frozen=True)
class Item:
    """One prompt and what a right reply says.

    Attributes:
        item_id: unique, stable.
        family: reasoning, factual, dialogue, unknown or read_aloud; or the name of a public set.
        split: unseen_phrasing, unseen_pair, unseen_sentence or outside; or a public set's.
        prompt: as a visitor would type it.
        expected: the whole reply of a perfect model; the teacher says it for comparison.
        key: the words that make a reply right.
        slots: what the question named, so that repeating it earns nothing.
        rule: how a reply is judged.
        aliases: right answers, any of which will do.
        audio: file with the question as it is asked aloud; None where it is typed.
    """

    item_id: str
    family: str
    split: str
    prompt: str
    expected: str
    key: str
    slots: tuple[str, ...] = ()
    rule: Rule = "words"
    aliases: tuple[str, ...] = ()
    audio: str | None = None


def _asked(facts: Sequence[Fact], split: str, rng: random.Random, unseen: bool) -> list[Item]:
    items = []
    for number, fact in enumerate(facts):
        prompt = questions.ask(fact, rng, unseen)
        name = f"{fact.family}-{split}-{number:03d}-{fact.kind}"
        items.append(Item(name, fact.family, split, prompt, fact.answer, fact.key, fact.slots))
    return items


def builtin() -> list[Item]:
    """All items, grouped by family, in a fixed order."""
    rng = random.Random(_SEED)
    facts = questions.facts()
    reasoning = [f for f in facts if f.family == "reasoning" and not f.held_out]
    pairs = [f for f in facts if f.held_out]
    factual = [f for f in facts if f.family == "factual"]
    items = _asked(rng.sample(reasoning, _REASONING), "unseen_phrasing", rng, True)
    items += _asked(rng.sample(factual, _FACTUAL), "unseen_phrasing", rng, True)
    items += _asked(rng.sample(pairs, _PAIRS), "unseen_pair", rng, False)
    for fact in (f for f in facts if f.family == "dialogue"):
        for number, prompt in enumerate(questions.templates(fact, unseen=True)):
            name = f"dialogue-{fact.kind}-{number}"
            items.append(Item(name, "dialogue", "unseen_phrasing", prompt, fact.answer, fact.key))
    unknown = questions.unknown_fact()
    for number, line in enumerate(questions.outside()):
        name = f"unknown-{number:03d}"
        items.append(Item(name, "unknown", "outside", line, unknown.answer, unknown.key))
    lines = (_FOLDER / "read_aloud.txt").read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        text = normalise(line)
        name = f"read_aloud-{number:03d}"
        items.append(Item(name, "read_aloud", "unseen_sentence", f"say: {line}", text, text))
    return items


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, shared out over families in proportion, spread over each family."""
    if limit is None or limit >= len(items):
        return list(items)
    families = list(dict.fromkeys(item.family for item in items))
    chosen: set[str] = set()
    given, seen = 0, 0
    for family in families:
        members = [item for item in items if item.family == family]
        seen += len(members)
        share = round(limit * seen / len(items)) - given
        given += share
        chosen |= {members[i * len(members) // share].item_id for i in range(share)}
    return [item for item in items if item.item_id in chosen]
