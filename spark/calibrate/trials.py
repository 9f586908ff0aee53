"""Free-running replies: every prompt under every schedule, heard by the offline ear.

One JSON line a reply, on disk before the next task is taken, so that a killed run goes on where it
stopped. All schedules of a prompt share its seed. Processes take tasks of some prompts and one
schedule. Knows no limits and no choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spark import jsonl, pool, positions
from spark.calibrate.stages import Line
from spark.compiled import prepare
from spark.engine import Engine, decode_batch
from spark.evaluation import answering
from spark.evaluation.executors import is_small
from spark.evaluation.suite import Item
from spark.heads import HeadKind
from spark.metrics.recognisers import POCKETSPHINX, recogniser
from spark.models import load
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings, seed_for
from spark.trace import Trace

FULL = "f"  # full depth, as a schedule
BATCH = 16
WORKERS = "processes; default: 2, or 1 on a GPU and for a large model"


@dataclass(frozen=True)
class Setting:
    """How replies are made.

    Attributes:
        model: for `spark.models.load`.
        head: which exit heads decide.
        sampling: of the model, its seed joined with each prompt's id.
        max_tokens: of a reply; None is the model's own.
        heads: file of the exit heads; None: those beside the model.
        device: of a large model; None for the best there is.
        bits: 8 for a large model's layers in 8 bits.
    """

    model: str
    head: HeadKind
    sampling: SamplingSettings
    max_tokens: int | None = None
    heads: str | None = None
    device: str | None = None
    bits: int | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in files."""
        return asdict(self)

    @property
    def options(self) -> dict[str, Any]:
        """Of `spark.models.load`, by name; the model has to speak."""
        heads = Path(self.heads) if self.heads else None
        asked = {"aloud": True, "heads": heads, "device": self.device, "bits": self.bits}
        return {name: value for name, value in asked.items() if value is not None}


def seed_of(setting: Setting, item: Item) -> int:
    """The seed of every reply to a prompt."""
    return seed_for(setting.sampling.seed, item.item_id)


def replies(
    lm: SpokenLM, setting: Setting, schedule: str, items: Sequence[Item], batch: int | None = None
) -> list[Trace]:
    """The replies to some prompts under one schedule (its notation), in the prompts' order.

    `batch` of them are decoded together; by default `BATCH`, or one by one where the model has a
    compiled step, which is for one sequence and takes about half of a batch's time for each.
    """
    policy = positions.parse(schedule)
    assert policy is not None
    engine = Engine(lm, head=setting.head, outside_mass=False)
    made = [
        engine.generate(
            engine.prefill(lm.encode_prompt(item.prompt)),
            policy,
            replace(setting.sampling, seed=seed_of(setting, item)),
            setting.max_tokens,
        )
        for item in items
    ]
    for _ in decode_batch(made, batch or (1 if lm.transformer.compiled else BATCH)):
        pass
    return [reply.trace for reply in made]


def judged(lm: SpokenLM, schedule: str, item: Item, trace: Trace) -> Line:
    """What is kept of a reply: its words, what was heard, predicted MOS, cost."""
    ears, text = recogniser(POCKETSPHINX), lm.decode_text(trace.text_ids())
    figures, sound = trace.summary(), answering.impression_of(lm, trace.codes(), ears)
    kept = ("mean_depth_speech", "traffic_ratio", "audio_s", "finish")
    line = answering.judged(ears, item, schedule, text, sound)
    return line | {name: figures[name] for name in kept}


_lm: SpokenLM | None = None  # of a worker process


def _start(setting: Setting) -> None:
    global _lm
    torch.set_num_threads(1)
    _lm = load(setting.model, **setting.options)
    prepare(_lm.transformer, wait=True)


def _work(setting: Setting, task: tuple[str, Sequence[Item]]) -> list[Line]:
    assert _lm is not None
    return _made(_lm, setting, *task)


def _made(lm: SpokenLM, setting: Setting, schedule: str, items: Sequence[Item]) -> list[Line]:
    traces = replies(lm, setting, schedule, items)
    return [judged(lm, schedule, *pair) for pair in zip(items, traces, strict=True)]


def workers_for(lm: SpokenLM) -> int:
    """Processes that help: one where a second model has no room; else up to two."""
    return min(2, os.cpu_count() or 1) if is_small(lm) else 1


def run(
    lm: SpokenLM,
    setting: Setting,
    schedules: Sequence[str],
    items: Sequence[Item],
    path: Path,
    workers: int,
) -> Iterator[tuple[int, int]]:
    """Make the lines that are missing; yields (lines made, lines that were missing).

    Args:
        lm: the model with its heads, for this process; others load their own.
        setting: how.
        schedules: by notation.
        items: prompts.
        path: of the lines.
        workers: processes; 1 makes them here.
    """
    there = {(line["item_id"], line["policy"]) for line in read_lines(path)}
    # Batches are the same whatever is there: replies depend on those beside them to rounding.
    batches = [items[at : at + BATCH] for at in range(0, len(items), BATCH)]
    tasks = [
        (schedule, batch)
        for batch in batches
        for schedule in schedules
        if any((item.item_id, schedule) not in there for item in batch)
    ]
    total, made = sum(len(part) for _, part in tasks), 0
    for lines in _results(lm, setting, tasks, min(workers, len(tasks))):
        jsonl.append(path, lines)
        made += len(lines)
        yield made, total


def _results(
    lm: SpokenLM, setting: Setting, tasks: Sequence[tuple[str, Sequence[Item]]], workers: int
) -> Iterator[list[Line]]:
    if workers <= 1:
        yield from (_made(lm, setting, *task) for task in tasks)
        return
    yield from pool.results(_start, (setting,), partial(_work, setting), tasks, workers)


def read_lines(path: Path) -> list[Line]:
    """Lines by prompt and schedule, sorted."""
    found = {(line["item_id"], line["policy"]): line for line in jsonl.read(path)}
    return [found[name] for name in sorted(found)]
