"""How fast each policy decodes, beside transformers' `generate` and the floor of reading weights.

    python -m benchmarks.decode --model embedded
    python -m benchmarks.decode --model step-audio-2-mini --random    its true shape, no download

Policies, `generate` and the floor take turns within each repetition, so that a machine that gets
slower meets all of them; figures are medians over repetitions, ratios are of pairs of the same
repetition. Every reply has the same number of tokens, since nothing ends one early; times are
wall-clock around the whole loop, per token, prefill apart. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import conditions, printed, true_shape
from benchmarks.baseline import (
    copying_ms,
    floor_ms,
    generate_ms,
    matrices,
    reading_ms,
    reference_model,
)
from benchmarks.rows import Measured, Run, ratio, rows
from spark import schedule_file
from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import FixedExit, FullDepth, Policy

Engines = tuple[Engine, Engine, Engine]
Timer = Callable[[list[int]], float]  # of a prompt: milliseconds
READING, COPYING, FLOOR = "reading weights", "copying weights", "floor"
PROMPTS = ("What is nineteen minus eight?", "Hello, who are you?", "Say: the tide turns at noon.")
STATIC, COMPILED = "generate, static cache", "generate, compiled"
WHOLE_HEAD = "full, whole head"  # what `generate` computes: every row at every step
PLAIN = "full, plain step"  # the speech-row head, without the compiled step or graphs


def endless(engine: Engine) -> Engine:
    """The same engine with heads that cannot end the speech or the reply.

    Policies would stop at different tokens and so be timed over different replies.
    """
    words = engine.lm.vocabulary
    ends = {*words.stop_ids, words.tts_end}
    kept = torch.tensor([i for i in range(words.size) if i not in ends])
    heads = engine.bank.heads
    heads.update({name: head.restricted(kept) for name, head in heads.items()})
    return engine


@dataclass(frozen=True)
class Contender:
    """A policy on the engine it runs on."""

    name: str
    engine: Engine
    policy: Policy


def engines(lm: SpokenLM) -> Engines:
    """One that computes speech rows only in slots of speech, one that computes all, one plain.

    The last is as the first without compiled step and graphs.
    """
    sliced = endless(Engine(lm, outside_mass=False))
    whole = endless(Engine(lm, speech_row_head=False, outside_mass=False))
    return sliced, whole, endless(Engine(lm, outside_mass=False, compiled=False))


def contenders(
    lm: SpokenLM, sliced: Engine, whole: Engine, plain: Engine, schedule: str = "triple"
) -> list[Contender]:
    """Full depth with and without the speech-row head, and three exits, as the lab sets them.

    Where the model has a compiled step or graphs, full depth without them comes last.

    Args:
        lm: the model.
        sliced: its engine with the speech-row head.
        whole: without it.
        plain: as `sliced`, without compiled step and graphs.
        schedule: SPAR-K's, by name or by position.
    """
    policies = CompareSettings(schedule=schedule).policies(lm)
    exits = [*policies, FixedExit(lm.default_exit)]
    runs = [Contender(policy.name, sliced, policy) for policy in exits]
    if lm.transformer.compiled is not None or lm.transformer.graphs is not None:
        runs.append(Contender(PLAIN, plain, FullDepth()))
    return [Contender(WHOLE_HEAD, whole, FullDepth()), *runs]


def reply(run: Contender, ids: list[int], seed: int, tokens: int) -> Run:
    """A reply of `tokens` tokens."""
    start = run.engine.prefill(ids)
    made = run.engine.generate(start, run.policy, SamplingSettings(seed=seed), tokens)
    begun = time.perf_counter()
    for _ in made:
        pass
    return Run(made.trace, 1e3 * (time.perf_counter() - begun))


def peak_of(lm: SpokenLM, runs: Sequence[Contender], tokens: int) -> float:
    """The most memory that was in use while each contender made a reply, GB.

    Of a GPU from here on; of a process since it began.
    """
    where = lm.transformer.device
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    for run in runs:
        reply(run, lm.encode_prompt(PROMPTS[0]), seed=0, tokens=tokens)
    return conditions.peak_gb(where)


def measure(
    lm: SpokenLM,
    runs: Sequence[Contender],
    extra: dict[str, Timer],
    repeats: int,
    tokens: int,
) -> Measured:
    """Run everything `repeats` times in turn, after one round that does not count.

    Each time another contender is first: what one leaves in the caches is the next one's luck.
    """
    got = Measured({run.name: [] for run in runs}, {run.name: [] for run in runs})
    for turn in range(-1, repeats):
        ids, first = lm.encode_prompt(PROMPTS[turn % len(PROMPTS)]), turn % len(runs)
        for run in (*runs[first:], *runs[:first]):
            made = reply(run, ids, seed=turn, tokens=tokens)
            if turn >= 0:
                got.ms[run.name].append(made.ms / len(made.trace.steps))
                got.runs[run.name].append(made)
        for name, clock in extra.items():
            spent = clock(ids)
            if turn >= 0:
                got.ms.setdefault(name, []).append(spent)
    return got


def beside(lm: SpokenLM, read: int, tokens: int, compile_too: bool) -> dict[str, Timer]:
    """What the policies are timed beside: a name, and milliseconds of it given a prompt.

    Args:
        lm: the model; with layers in 8 bits there is no `generate` and no floor, for which all of
            them would have to lie there widened.
        read: bytes that are read, and copied.
        tokens: of a reply.
        compile_too: whether compiled `generate` is wanted, which takes minutes.
    """
    body = lm.transformer
    found: dict[str, Timer] = {
        READING: lambda ids: reading_ms(read, body.device),
        COPYING: lambda ids: copying_ms(read, body.device),
    }
    if conditions.in_eighths(body):
        return found
    model, weights = reference_model(lm), matrices(lm)
    found["generate"] = lambda ids: generate_ms(model, ids, tokens)
    found[STATIC] = lambda ids: generate_ms(model, ids, tokens, "static")
    found[FLOOR] = lambda ids: floor_ms(weights)
    if compile_too and shutil.which("c++"):
        compiled, prompt = reference_model(lm), lm.encode_prompt(PROMPTS[0])
        # Always the same prompt: another length would be compiled anew.
        found[COMPILED] = lambda ids: generate_ms(compiled, prompt, tokens, "compiled")
    return found


def report(lm: SpokenLM, got: Measured, read: int) -> dict[str, Any]:
    """The JSON object; None for what was not measured.

    Args:
        lm: the model.
        got: of all contenders, and of what they stand beside.
        read: bytes that `READING` reads and `COPYING` copies.
    """
    table = rows(got, lm.transformer.num_layers)
    spark = next(row for row in table if row["policy"] == "spark")
    multiplied = sum(matrix.nbytes for matrix in matrices(lm)) if FLOOR in got.ms else 0
    return {
        **conditions.told(lm),
        "repeats": len(got.ms["full"]),
        "rows": table,
        "generate_ms_per_token": got.middle("generate"),
        "generate_static_ms_per_token": got.middle(STATIC),
        "generate_compiled_ms_per_token": got.middle(COMPILED),
        "speedup_over_generate": ratio(got, "generate", WHOLE_HEAD),
        "speedup_over_static_generate": ratio(got, STATIC, WHOLE_HEAD),
        "speedup_over_compiled_generate": ratio(got, COMPILED, WHOLE_HEAD),
        "floor_ms_per_token": got.middle(FLOOR),
        "floor_gb_per_s": got.speed(FLOOR, multiplied),
        "floor_ratio": ratio(got, FLOOR, WHOLE_HEAD),
        "reading_ms_per_token": got.middle(READING),
        "reading_gb_per_s": got.speed(READING, read),
        "copy_gb_per_s": got.speed(COPYING, read),
        "reading_ratio": ratio(got, READING, WHOLE_HEAD),
        "depth_cut_realised": spark["cut_realised"],
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--model", default="embedded", help="a model's name, or `random`")
    parser.add_argument(
        "--schedule",
        default="triple",
        metavar="NAME|FILE",
        help="SPAR-K's, by name, by position, or a file that spark.calibrate wrote",
    )
    parser.add_argument("--tokens", type=int, default=120, help="of every reply")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, help="torch's own choice where not given")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the compiled generate (minutes)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file for the JSON too; spark.evaluation.readme takes DIR/decode.json",
    )
    large = parser.add_argument_group("a large model's true shape, with random weights in bf16")
    large.add_argument("--random", action="store_true", help="of step-audio-2-mini, glm-4-voice-9b")
    large.add_argument("--layers", type=int, help="fewer, for a trial")
    large.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    large.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    large.add_argument("--folder", type=Path, help="for the weights; default: a temporary one")
    return parser


def _loaded(wanted: argparse.Namespace) -> tuple[SpokenLM, Engines, dict[str, Any]]:
    """The model, its engines, and what else is to be reported of it; raises ValueError."""
    if wanted.random:
        shape = true_shape.TrueShape(wanted.model, wanted.layers, wanted.device, wanted.bits or 16)
        lm, told = true_shape.load(shape, wanted.folder)
        return lm, true_shape.engines(lm, wanted.tokens), told
    own = ("layers", "bits", "folder", *(("device",) if wanted.model == "random" else ()))
    other = [f"--{name}" for name in own if getattr(wanted, name) is not None]
    if other:
        raise ValueError(f"{' and '.join(other)}: for --random only")
    lm = conditions.loaded(wanted.model, wanted.device)
    return lm, engines(lm), {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, or 2 after a message about what cannot be run."""
    wanted = _arguments().parse_args(arguments)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    try:
        lm, three, told = _loaded(wanted)
        schedule = schedule_file.named(wanted.schedule, lm)
        runs = contenders(lm, *three, schedule)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    policies_gb = peak_of(lm, runs, wanted.tokens)
    held = runs[0].engine.weight_bytes()
    read = sum(held.layers) + held.heads["full"]
    extra = beside(lm, read, wanted.tokens, compile_too=not wanted.no_compile)
    got = measure(lm, runs, extra, wanted.repeats, wanted.tokens)
    result = report(lm, got, read) | {"schedule": schedule, "policies_gb": policies_gb}
    if wanted.random:
        prefills = [run.trace.prefill_ms for run in got.runs["full"]]
        peak = max(told["load_gb"], policies_gb, conditions.peak_gb(lm.transformer.device))
        result |= told | {"prefill_ms": median(prefills), "peak_gb": peak}
    printed.show(result)
    conditions.finish(result, wanted.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
