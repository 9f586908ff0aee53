"""Recordings of the teacher on disk: shards of int16 samples with their texts.

`python -m spark.training.recordings --out DIR --first 0 --count 4000` speaks that stretch of one
fixed, shuffled list of sentences; shards that exist are kept, so it can be stopped and resumed.
Knows nothing of codecs or models.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spark.training import sentences, teacher

SHARD = 500
_SEED = 11


def script() -> list[str]:
    """The fixed order in which sentences are recorded: examples first and most, each once.

    Of every 10 sentences 7 are WordNet examples, 1 is a definition and 2 are word lists.
    """
    rng = random.Random(_SEED)
    examples, definitions = list(sentences.examples()), list(sentences.definitions())
    rng.shuffle(examples)
    rng.shuffle(definitions)
    lines: list[str] = []
    for tens in range(len(examples) // 7):
        group = [*examples[7 * tens : 7 * tens + 7], definitions[tens]]
        group += [sentences.word_list(rng) for _ in range(2)]
        rng.shuffle(group)
        lines += group
    return lines


def record(texts: list[str], path: Path) -> None:
    """Speaks `texts` into one shard; a text whose words flite counts otherwise is left out."""
    spoken = [(text, teacher.speak(text)) for text in texts]
    kept = [(text, said) for text, said in spoken if len(said.words) == len(text.split())]
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        asked=len(texts),
        texts=np.array([text for text, _ in kept]),
        samples=np.concatenate([said.samples for _, said in kept]),
        ends=np.cumsum([len(said.samples) for _, said in kept]),
        words=np.concatenate([said.words for _, said in kept]),
        phones=np.concatenate([said.phones for _, said in kept]),
        phone_ends=np.concatenate([said.phone_ends for _, said in kept]),
        phone_stops=np.cumsum([len(said.phones) for _, said in kept]),
    )
    partial.rename(path)


def _asked(path: Path) -> int:
    """How many sentences a shard was made of, left-out ones included; 0 where there is none."""
    if not path.exists():
        return 0
    with np.load(path) as shard:
        return int(shard["asked"]) if "asked" in shard else SHARD


def read(folder: Path) -> Iterator[tuple[str, teacher.Utterance]]:
    """(text, utterance) of every recording under `folder`, in order."""
    for path in sorted(folder.glob("shard-*.npz")):
        with np.load(path) as shard:
            if "phones" not in shard:
                raise ValueError(f"{path} has no phones: it is of an earlier version, record anew")
            samples, ends, words, texts = (shard[k] for k in ("samples", "ends", "words", "texts"))
            phones, phone_ends, phone_stops = (
                shard[k] for k in ("phones", "phone_ends", "phone_stops")
            )
        start = first = sound = 0
        for text, end, stop in zip(map(str, texts), ends, phone_stops, strict=True):
            last = first + len(text.split())
            yield (
                text,
                teacher.Utterance(
                    samples[start:end],
                    words[first:last],
                    phones[sound:stop],
                    phone_ends[sound:stop],
                ),
            )
            start, first, sound = int(end), last, int(stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = script()[arguments.first : arguments.first + arguments.count]
    for start in range(0, len(lines), SHARD):
        path = arguments.out / f"shard-{arguments.first + start:06d}.npz"
        if _asked(path) < len(lines[start : start + SHARD]):
            record(lines[start : start + SHARD], path)
            print(f"{path.name}: {len(lines[start : start + SHARD])} sentences", flush=True)


if __name__ == "__main__":
    main()
