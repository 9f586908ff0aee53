"""How the cost of a token grows with the context, and how it falls with the batch.

    python -m benchmarks.growth --model embedded

Every size and policy takes its turn within each repetition; figures are medians over repetitions,
ratios are of pairs of the same repetition, and the spread is that of the repetitions. The heads
cannot end a reply, so that all have the same number of tokens. A context is made of the model's own
text ids in random order, and may be longer than the model was trained for: the time is real, the
words are not. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import conditions
from benchmarks.decode import PROMPTS, endless
from spark import graphs
from spark.comparison import CompareSettings
from spark.compiled import prepare
from spark.engine import Engine, Prefill, decode_batch
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import Policy
from spark.transformer import Transformer

CONTEXTS = (64, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def roomy(lm: SpokenLM, positions: int) -> SpokenLM:
    """The same weights with room for so many positions."""
    body = lm.transformer
    if body.config.max_position_embeddings >= positions:
        return lm
    config = replace(body.config, max_position_embeddings=positions)
    parts = (body.embedding, body.layers, body.final_gain, body.unembedding)
    longer = Transformer(config, *parts)
    prepare(longer, wait=True)
    graphs.prepare(longer)
    return replace(lm, transformer=longer)


def prompt_of(lm: SpokenLM, length: int) -> list[int]:
    """A prompt of so many ids: text in random order, then the model's own prompt's end."""
    own = lm.encode_prompt(PROMPTS[0])[-length:]
    text = [i for i in range(lm.vocabulary.speech_start) if i not in lm.vocabulary.control_ids]
    return random.Random(length).choices(text, k=length - len(own)) + own


def timed(
    engine: Engine, starts: Sequence[Prefill], policy: Policy, turn: int, tokens: int
) -> float:
    """Milliseconds a token of replies decoded together, one a prefill, prefill apart."""
    replies = [
        engine.generate(start, policy, SamplingSettings(seed=100 * turn + number), tokens)
        for number, start in enumerate(starts)
    ]
    begun = time.perf_counter()
    made = sum(len(reply.trace.steps) for reply in decode_batch(replies, len(replies)))
    return 1e3 * (time.perf_counter() - begun) / made


def curve(
    sizes: Sequence[int],
    policies: Sequence[Policy],
    clock: Callable[[Policy, int, int], float],
    repeats: int,
) -> list[dict[str, Any]]:
    """One row a size: each policy's milliseconds a token, and its ratio to the first policy's.

    Args:
        sizes: of what grows.
        policies: full depth first.
        clock: of (policy, size, repetition) -> milliseconds a token.
        repeats: how often, after one round that does not count.
    """
    took: dict[tuple[str, int], list[float]] = {}
    for turn in range(-1, repeats):
        for size in sizes:
            for policy in policies:
                ms = clock(policy, size, turn + 1)
                if turn >= 0:
                    took.setdefault((policy.name, size), []).append(ms)
    rows = []
    for size in sizes:
        base = took[policies[0].name, size]
        for policy in policies:
            own = took[policy.name, size]
            rows.append(
                {
                    "size": size,
                    "policy": policy.name,
                    "ms_per_token": median(own),
                    "lowest": min(own),
                    "highest": max(own),
                    "time_ratio": median(a / b for a, b in zip(own, base, strict=True)),
                }
            )
    return rows


def measure(
    lm: SpokenLM,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = BATCHES,
    repeats: int = 3,
    tokens: int = 60,
) -> dict[str, Any]:
    """Both curves, for full depth and SPAR-K as the lab sets it."""
    full, spark, *_ = CompareSettings().policies(lm)
    policies = (full, spark)
    engine = endless(Engine(roomy(lm, max(contexts) + tokens), outside_mass=False))
    long = {size: engine.prefill(prompt_of(lm, size)) for size in contexts}
    short = [
        engine.prefill(lm.encode_prompt(PROMPTS[n % len(PROMPTS)])) for n in range(max(batches))
    ]

    def in_context(policy: Policy, size: int, turn: int) -> float:
        return timed(engine, [long[size]], policy, turn, tokens)

    def in_batch(policy: Policy, size: int, turn: int) -> float:
        return timed(engine, short[:size], policy, turn, tokens)

    curves = {
        "context": curve(contexts, policies, in_context, repeats),
        "batch": curve(batches, policies, in_batch, repeats),
    }
    return {**conditions.told(engine.lm), "repeats": repeats, "tokens": tokens, **curves}


def show(result: dict[str, Any]) -> None:
    """The tables for people."""
    for title in ("context", "batch"):
        print(f"\n{title:>8}{'policy':>10}{'ms/token':>10}{'lowest':>9}{'highest':>9}{'time':>8}")
        for row in result[title]:
            print(
                f"{row['size']:>8}{row['policy']:>10}{row['ms_per_token']:>10.3f}"
                f"{row['lowest']:>9.3f}{row['highest']:>9.3f}{row['time_ratio']:>8.3f}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, or 2 after a message about what cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="a model's name, or `random`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60, help="of every reply")
    parser.add_argument("--threads", type=int, help="torch's own choice where not given")
    parser.add_argument("--out", type=Path, help="file for the JSON too, as DIR/growth.json")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        lm = conditions.loaded(given.model)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    result = measure(lm, repeats=given.repeats, tokens=given.tokens)
    show(result)
    conditions.finish(result, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
