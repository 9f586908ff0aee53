"""How long until a reply can be heard, and what acceptance and drift cost and save.

    python -m benchmarks.first_audio --model embedded

The policies with the lab's settings, under each acceptance, with a K that follows the drift, and
with the drift meter on. All take turns within each repetition; figures are medians over repetitions
with the lowest and the highest, ratios are of pairs of the same repetition. The heads cannot end a
reply, so that all have the same number of tokens. Times are wall-clock: to the first sound from the
prompt's begin, its prefill included, once without and once with the vocoder's own work; a token's
time around the whole loop, without prefill and vocoder. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks import conditions
from benchmarks.decode import PROMPTS, endless
from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.evaluation.speed import number
from spark.metrics.cost import traffic_bytes
from spark.models.base import SpokenLM
from spark.trace import Trace
from spark.voice import Voice

TOLERANCE = "0.5"  # nats, of the relaxed variants
# Name, policy, what is set apart from the lab's own settings, whether the meter is on.
VARIANTS: tuple[tuple[str, str, dict[str, Any], bool], ...] = (
    ("full", "full", {}, False),
    ("spark", "spark", {}, False),
    ("spark, drift meter", "spark", {}, True),
    ("spark, K by drift", "spark", {"schedule": "drift"}, False),
    (f"spark, relaxed by {TOLERANCE}", "spark", {"acceptance": TOLERANCE}, False),
    ("spark, exact", "spark", {"acceptance": "exact"}, False),
    ("confidence", "confidence", {}, False),
    (f"confidence, relaxed by {TOLERANCE}", "confidence", {"acceptance": TOLERANCE}, False),
    ("confidence, exact", "confidence", {"acceptance": "exact"}, False),
)
_SPREAD = ("tokens_ms", "audio_ms", "ms_per_token")


@dataclass(frozen=True)
class Heard:
    """One reply.

    Attributes:
        trace: of its tokens.
        tokens_ms: until the tokens stood that the first samples need; None without a vocoder.
        audio_ms: until those samples could be played.
        ms_per_token: of the whole reply.
    """

    trace: Trace
    tokens_ms: float | None
    audio_ms: float | None
    ms_per_token: float


def listen(
    engine: Engine, policy: str, settings: CompareSettings, ids: list[int], tokens: int
) -> Heard:
    """A reply of `tokens` tokens, its sound begun as soon as it can be."""
    lm = engine.lm
    chosen = next(p for p in settings.policies(lm) if p.name == policy)
    begun = time.perf_counter()
    start = engine.prefill(ids)
    prefill_ms = 1e3 * (time.perf_counter() - begun)
    made = engine.generate(
        start, chosen, settings.sampling(), tokens, acceptance=settings.accepted(lm)
    )
    voice, tokens_ms, outside_s = Voice(lm.vocoder), None, 0.0
    begun = time.perf_counter()
    for step in made:
        if voice.first_ms is None and lm.vocabulary.is_speech(step.token_id):
            since = time.perf_counter()
            decoded_ms = prefill_ms + 1e3 * (since - begun - outside_s)
            voice.say(lm.vocabulary.code(step.token_id), decoded_ms)
            outside_s += time.perf_counter() - since
            tokens_ms = decoded_ms if voice.first_ms is not None else None
    spent_s = time.perf_counter() - begun - outside_s
    return Heard(made.trace, tokens_ms, voice.first_ms, 1e3 * spent_s / len(made.trace.steps))


def measure(lm: SpokenLM, repeats: int, tokens: int) -> dict[str, list[Heard]]:
    """Every variant `repeats` times in turn, after one round that does not count."""
    engines = {
        meter: endless(Engine(lm, outside_mass=False, drift_meter=meter)) for meter in (False, True)
    }
    got: dict[str, list[Heard]] = {name: [] for name, *_ in VARIANTS}
    for turn in range(-1, repeats):
        ids = lm.encode_prompt(PROMPTS[turn % len(PROMPTS)])
        for name, policy, apart, meter in VARIANTS:
            settings = replace(CompareSettings.of(lm, seed=turn + 1), **apart)
            heard = listen(engines[meter], policy, settings, ids, tokens)
            if turn >= 0:
                got[name].append(heard)
    return got


def rows(got: dict[str, list[Heard]]) -> list[dict[str, Any]]:
    """One row a variant; a figure that has none is None."""
    base = got["full"]
    return [{"variant": name, **_row(heard, base)} for name, heard in got.items()]


def _row(heard: list[Heard], base: list[Heard]) -> dict[str, Any]:
    pairs = list(zip(heard, base, strict=True))
    figures: dict[str, Any] = {}
    for name in _SPREAD:
        times = [getattr(one, name) for one in heard]
        known = None not in times
        figures[name] = median(times) if known else None
        figures[f"{name}_range"] = [min(times), max(times)] if known else None
    read = [(traffic_bytes(a.trace), traffic_bytes(b.trace)) for a, b in pairs]
    summaries = [one.trace.summary() for one in heard]
    return {
        **figures,
        "time_ratio": median(a.ms_per_token / b.ms_per_token for a, b in pairs),
        "traffic_ratio": median(ours / full for ours, full in read),
        "mean_depth_speech": _mean([s["mean_depth_speech"] for s in summaries]),
        "acceptance_rate": _mean([s["acceptance_rate"] for s in summaries]),
        "drift": _mean([s["drift"] for s in summaries]),
        "kl": _mean([s["kl"] for s in summaries]),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    print(
        f"{result['model']}, {result['dtype']}, {result['threads']} thread(s), "
        f"medians of {result['repeats']} interleaved repetitions"
    )
    heads = ("variant", "first sound", "+ vocoder", "ms/token", "time", "traffic", "depth", "kept",
             "drift")  # fmt: skip
    print("{:<28}{:>12}{:>11}{:>10}{:>8}{:>9}{:>8}{:>7}{:>8}".format(*heads))
    for row in result["rows"]:
        shown = (
            number(row["tokens_ms"], ".0f"), number(row["audio_ms"], ".0f"),
            number(row["ms_per_token"], ".2f"), number(row["time_ratio"], ".3f"),
            number(row["traffic_ratio"], ".3f"), number(row["mean_depth_speech"], ".2f"),
            number(row["acceptance_rate"], ".2f"), number(row["drift"], ".3f"),
        )  # fmt: skip
        print("{:<28}{:>12}{:>11}{:>10}{:>8}{:>9}{:>8}{:>7}{:>8}".format(row["variant"], *shown))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, or 2 after a message about what cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="a model's name, or `random`")
    parser.add_argument("--tokens", type=int, default=80, help="of every reply")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="torch's own choice where not given")
    parser.add_argument("--out", type=Path, help="file for the JSON too, as DIR/first_audio.json")
    wanted = parser.parse_args(arguments)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    try:
        lm = conditions.loaded(wanted.model)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    table = rows(measure(lm, wanted.repeats, wanted.tokens))
    result = {**conditions.told(lm), "repeats": wanted.repeats, "rows": table}
    show(result)
    conditions.finish(result, wanted.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
