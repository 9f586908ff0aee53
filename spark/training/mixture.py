"""What the language model is trained on: an endless stream of exchanges, drawn from a seed.

Sentences read aloud, questions answered in speech, and many more answered in text alone, since
text is cheap. Knows nothing of the network.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark.training import questions, sentences
from spark.training.questions import Fact
from spark.training.sequences import Exchange, Spoken, Writer

UNKNOWN_SHARE = 0.08  # of questions
LOOSE_SHARE = 0.4  # of questions are put in words that no list holds
LIST_SHARE = 0.5  # of written copies are lists of words instead of sentences
# Asked so many times more than their number says: long tables, and names of several pieces.
HARD = {"sum": 2, "difference": 2, "capital": 4, "author": 3, "baby": 3, "opposite": 3}
LEAST = 4.0  # weight of a kind of one fact: greetings and the like are what visitors try first
PRACTICE_SHARE = 0.5  # of questions answered in writing are sums and differences
CUT_SHARE = 0.25  # of spoken answers end with their text: the answer is learnt at half the price


@dataclass(frozen=True)
class Shares:
    """How often each kind of exchange is drawn."""

    aloud: float = 0.34
    aloud_written: float = 0.07
    answer_spoken: float = 0.35
    answer_written: float = 0.24


WRITTEN = Shares(aloud=0.0, aloud_written=0.5, answer_spoken=0.0, answer_written=0.5)


def save_codes(path: Path, rows: list[Spoken]) -> None:
    """Codes of many recordings in one file."""
    np.savez(
        path,
        texts=np.array([row.text for row in rows]),
        codes=np.concatenate([row.codes for row in rows]),
        ends=np.cumsum([len(row.codes) for row in rows]),
        words=np.concatenate([row.words for row in rows]),
        phones=np.concatenate([row.phones for row in rows]),
    )


def load_codes(path: Path) -> list[Spoken]:
    """Inverse of `save_codes`."""
    with np.load(path) as kept:
        texts, codes, ends, words, phones = (
            kept[k] for k in ("texts", "codes", "ends", "words", "phones")
        )
    rows, start, first = [], 0, 0
    for text, end in zip(map(str, texts), ends, strict=True):
        last = first + len(text.split())
        rows.append(Spoken(text, codes[start:end], words[first:last], phones[start:end]))
        start, first = int(end), last
    return rows


class Mixture:
    """Draws exchanges; `aloud` are sentences with codes, `answers` the spoken answers by text."""

    def __init__(
        self,
        writer: Writer,
        aloud: list[Spoken],
        answers: dict[str, Spoken],
        shares: Shares,
        seed: int,
    ) -> None:
        self.writer, self.aloud, self.answers = writer, aloud, answers
        self.rng = random.Random(seed)
        self.shares = shares
        kinds: dict[str, list[Fact]] = {}
        for fact in questions.facts():
            if not fact.held_out:
                kinds.setdefault(fact.kind, []).append(fact)
        self.kinds = [*kinds.values(), list(questions.counting())]
        self.weights = [max(len(f) ** 0.7 * HARD.get(f[0].kind, 1), LEAST) for f in self.kinds]
        self.unknown = questions.unknown_fact()

    def _question(self, practice: float = 0.0) -> tuple[str, str]:
        """A prompt and its answer; never one of the held-out phrasings, however it came about.

        A share `practice` of them are sums and differences beyond what the model is meant to know.
        """
        while True:
            practises = self.rng.random() < practice
            fact, prompt = self._practised() if practises else self._asked()
            if self.rng.random() < LOOSE_SHARE:
                prompt = questions.loosen(prompt, fact.slots, sentences.common(), self.rng)
            if not questions.is_held_out_phrasing(prompt, fact):
                return prompt, fact.answer

    def _asked(self) -> tuple[Fact, str]:
        """A fact, or something it does not know, in one of the lists' phrasings."""
        if self.rng.random() < UNKNOWN_SHARE:
            return self.unknown, questions.ask_unknown(self.rng, sentences.examples())
        fact = self.rng.choice(self.rng.choices(self.kinds, self.weights)[0])
        return fact, questions.ask(fact, self.rng)

    def _practised(self) -> tuple[Fact, str]:
        fact = self.rng.choice(questions.practice())
        return fact, questions.ask(fact, self.rng)

    def draw(self) -> Exchange:
        """One exchange."""
        shares, rng, writer = self.shares, self.rng, self.writer
        luck = rng.random()
        if luck < shares.aloud:
            spoken = rng.choice(self.aloud)
            return writer.spoken(questions.ask_aloud(spoken.text, rng), spoken)
        if luck < shares.aloud + shares.aloud_written:
            listed = rng.random() < LIST_SHARE
            text = sentences.word_list(rng) if listed else rng.choice(sentences.examples())
            return writer.written(questions.ask_aloud(text, rng), text)
        if luck < 1 - shares.answer_written:
            prompt, answer = self._question()
            spoken = self.answers[answer]
            cut = len(writer.slots(spoken)) + 1 if rng.random() < CUT_SHARE else None
            return writer.spoken(prompt, spoken, cut)
        return writer.written(*self._question(PRACTICE_SHARE))

    def batches(self, tokens: int) -> Iterator[list[Exchange]]:
        """Batches of similar length, each at most `tokens` ids with padding."""
        while True:
            pool = sorted((self.draw() for _ in range(256)), key=lambda row: len(row.ids))
            groups: list[list[Exchange]] = [[]]
            for row in pool:
                if (len(groups[-1]) + 1) * len(row.ids) > tokens:
                    groups.append([])
                groups[-1].append(row)
            self.rng.shuffle(groups)
            yield from groups


def of(folder: Path, writer: Writer, shares: Shares, seed: int) -> Mixture:
    """The mixture over a folder's codes; text alone needs none."""
    if not shares.aloud + shares.answer_spoken:
        return Mixture(writer, [], {}, shares, seed)
    aloud = load_codes(folder / "aloud.npz")
    answers = {row.text: row for row in load_codes(folder / "answers.npz")}
    return Mixture(writer, aloud, answers, shares, seed)
