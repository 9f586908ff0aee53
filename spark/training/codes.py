"""Prepares the language model's data: tokenizer, pronunciations, codes of recordings and answers.

`python -m spark.training.codes --said DIR --codebook FILE --out DIR`. Answers are spoken by the
teacher here, since there are few. Knows nothing of the network.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from spark.speech.codec import Codec
from spark.training import mixture, questions, recordings, sentences, teacher
from spark.training.pitch import pitch
from spark.training.sequences import Spoken, phones_of, train_tokenizer, with_preface
from spark.training.teacher import Utterance


def tokenizer_texts() -> Iterator[str]:
    """What the BPE is fitted on: natural sentences, and each question and answer twice."""
    rng = random.Random(5)
    yield from sentences.examples()
    yield from sentences.definitions()[:10_000]
    for fact in questions.facts():
        for _ in range(2):
            yield questions.ask(fact, rng)
            yield fact.answer


def encoded(codec: Codec, said: Iterable[tuple[str, Utterance]]) -> list[Spoken]:
    """The recordings as codes, each with its preface of silence."""
    rows = []
    for text, utterance in said:
        longer = with_preface(utterance)
        codes = np.array(codec.encode(longer.samples, pitch(longer.samples)), np.int16)
        phones = phones_of(longer, len(codes))
        rows.append(Spoken(text, codes, longer.words, phones))
    return rows


def pronunciations() -> dict[str, list[int]]:
    """The phones of every word that training meets in writing."""
    asked = (word for fact in questions.facts() for slot in fact.slots for word in slot.split())
    said = (word for fact in questions.facts() for word in fact.answer.split())
    words = dict.fromkeys([*sentences.lexicon(), *asked, *said])
    return {word: teacher.pronounce(word) for word in words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--codebook", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(tokenizer_texts()).save(str(arguments.out / "tokenizer.json"))
    codec = Codec.load(arguments.codebook)
    codec.save(arguments.out / "codebook.safetensors")
    (arguments.out / "pronunciations.json").write_text(json.dumps(pronunciations()))
    answers = questions.answers(held_out=True)
    rows = encoded(codec, ((text, teacher.speak(text)) for text in answers))
    mixture.save_codes(arguments.out / "answers.npz", rows)
    rows = encoded(codec, recordings.read(arguments.said))
    mixture.save_codes(arguments.out / "aloud.npz", rows)
    seconds = sum(len(row.codes) for row in rows) / codec.frame_rate
    print(f"{len(answers)} answers, {len(rows)} sentences, {seconds / 3600:.2f} hours")


if __name__ == "__main__":
    main()
