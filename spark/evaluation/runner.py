"""Runs every item under every policy and writes each line as it is done.

Lines that exist are not made again, so a killed run goes on where it stopped; `fingerprint` sees
to it that they were made under the same conditions. Worker processes take whole items, so that all
policies of an item share one prefill; where a batch is asked for, several items, whose replies
under one policy are decoded together. With the teacher installed it says the same answers,
straight and through the codec, into teacher.jsonl.
Knows nothing of tables (`report` does).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from spark.compare import CompareSettings
from spark.engine import Engine, decode_batch
from spark.evaluation.fingerprint import claim
from spark.evaluation.scoring import is_right, word_errors
from spark.evaluation.suite import Item
from spark.metrics import mos, wer
from spark.metrics.outside import outside_mass
from spark.models import load
from spark.models.base import Pcm, SpokenLM
from spark.schedule import FixedExit, Policy
from spark.speech.codec import Codec
from spark.trace import Trace
from spark.training import pitch, teacher

ITEMS, TEACHER = "items.jsonl", "teacher.jsonl"
_POLICIES = {"full", "spark", "confidence", "fixed"}


@dataclass(frozen=True)
class Job:
    """What a run is asked for."""

    model: str
    settings: CompareSettings
    fixed_exit: int | None  # layer of the policy `fixed`; None is half the model
    out: Path
    batch: int = 1  # replies decoded together; with more than one, none has a time of its own


def policies_of(job: Job, lm: SpokenLM) -> tuple[Policy, ...]:
    """Full depth, SPAR-K, confidence exit, and a fixed exit without refresh."""
    half = lm.transformer.num_layers // 2
    layer = half if job.fixed_exit is None else job.fixed_exit
    return (*job.settings.policies(lm), FixedExit(layer))


def heard_line(item: Item, policy: str, text: str, pcm: Pcm | None, rate: int) -> dict[str, Any]:
    """The judged part of a line: words, ears, predicted MOS."""
    spoken = pcm is not None and len(pcm) > 0
    heard = wer.transcribe(pcm, rate) if spoken and pcm is not None else ""
    errors, own = word_errors(text, heard), word_errors(item.expected, text)
    return {
        "item_id": item.item_id,
        "family": item.family,
        "split": item.split,
        "policy": policy,
        "prompt": item.prompt,
        "expected": item.expected,
        "text": text,
        "heard": heard,
        "correct_text": is_right(item, text),
        "correct_heard": is_right(item, heard),
        "wer": errors.edits / errors.words if errors.words else None,
        "edits": errors.edits,
        "words": errors.words,
        "text_edits": own.edits,
        "text_words": own.words,
        "mos_predicted": mos.predict(pcm, rate) if spoken and pcm is not None else None,
    }


def seed_of(job: Job, item: Item) -> int:
    """The seed that all policies of an item sample with."""
    return zlib.crc32(f"{job.settings.seed}:{item.item_id}".encode())


def answer(lm: SpokenLM, job: Job, items: Sequence[Item]) -> list[dict[str, Any]]:
    """One line for each item and policy, the items' order first.

    The seed is the item's own: items do not share their luck, policies do.
    """
    engine = Engine(lm, head=job.settings.head)
    prefills = [engine.prefill(lm.encode_prompt(item.prompt)) for item in items]
    samplings = [replace(job.settings, seed=seed_of(job, item)).sampling() for item in items]
    lines: list[list[dict[str, Any]]] = [[] for _ in items]
    for policy in policies_of(job, lm):
        replies = [engine.generate(*asked) for asked in zip(prefills, repeat(policy), samplings)]
        for _ in decode_batch(replies, job.batch):
            pass
        for own, item, reply in zip(lines, items, replies, strict=True):
            own.append(_line(lm, item, reply.trace))
    return [line for own in lines for line in own]


def _line(lm: SpokenLM, item: Item, trace: Trace) -> dict[str, Any]:
    """What is kept of a reply."""
    codes, figures, outside = trace.codes(), trace.summary(), outside_mass(trace)
    pcm = lm.vocoder.decode(codes) if lm.vocoder and codes else None
    rate = lm.vocoder.sample_rate if lm.vocoder else 0
    if trace.batch > 1:
        figures["ms_per_token"] = None  # the clock was shared
    line = heard_line(item, trace.policy, lm.decode_text(trace.text_ids()), pcm, rate)
    kept = ("mean_depth_text", "mean_depth_speech", "traffic_ratio", "ms_per_token", "audio_s")
    return line | {name: figures[name] for name in kept} | {
        "outside_mass_n": outside.n,
        "outside_mass_mean": outside.mean,
        "outside_mass_max": outside.largest,
        "seed": trace.sampling.seed,
        "finish": trace.finish,
    }  # fmt: skip


def taught(job: Job) -> set[str]:
    """The teacher's rows that can be measured here."""
    if not teacher.available():
        return set()
    return {"teacher", "codec"} if job.model == "embedded" and pitch.available() else {"teacher"}


def teach(lm: SpokenLM, job: Job, item: Item) -> list[dict[str, Any]]:
    """The teacher says the expected reply, straight and through the embedded codec."""
    said = teacher.speak(item.expected).samples
    lines = [heard_line(item, "teacher", item.expected, said, teacher.SAMPLE_RATE)]
    if "codec" in taught(job):
        assert isinstance(lm.vocoder, Codec)
        again = lm.vocoder.decode(lm.vocoder.encode(said, pitch.pitch(said)))[: len(said)]
        lines.append(heard_line(item, "codec", item.expected, again, teacher.SAMPLE_RATE))
    return lines


def _done(path: Path) -> dict[str, set[str]]:
    """Policies already written, by item; a torn last line is cut off."""
    found: dict[str, set[str]] = {}
    if not path.exists():
        return found
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        path.write_bytes(b"".join(lines[:-1]))
        lines = lines[:-1]
    for line in lines:
        row = json.loads(line)
        found.setdefault(row["item_id"], set()).add(row["policy"])
    return found


Task = tuple[Sequence[Item], bool]  # and whether the teacher is to say them

_worker: tuple[SpokenLM, Job] | None = None


def _start_worker(job: Job) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = (load(job.model), job)


def _work(task: Task) -> tuple[Task, list[dict[str, Any]]]:
    assert _worker is not None
    (lm, job), (items, teaching) = _worker, task
    if not teaching:
        return task, answer(lm, job, items)
    return task, [line for item in items for line in teach(lm, job, item)]


def run(job: Job, items: Sequence[Item], workers: int | None = None) -> Iterator[tuple[int, int]]:
    """Runs what is not done yet; yields (items done, items in all), the teacher's counted too.

    Raises:
        ValueError: the folder holds another run, or the model cannot take the settings.
    """
    if job.batch < 1:
        raise ValueError("a batch holds at least one reply: use --batch 1 or more")
    job.out.mkdir(parents=True, exist_ok=True)
    paths = {False: job.out / ITEMS, True: job.out / TEACHER}
    claim(job, items, list(paths.values()))
    policies_of(job, load(job.model))  # here, where a refusal has a reader
    done = {teaching: _done(path) for teaching, path in paths.items()}
    wanted = {False: _POLICIES, True: taught(job)}
    missing = {
        teaching: [item for item in items if not names <= done[teaching].get(item.item_id, set())]
        for teaching, names in wanted.items()
    }
    tasks: list[Task] = [
        (left[start : start + job.batch], teaching)
        for teaching, left in missing.items()
        for start in range(0, len(left), job.batch)
    ]
    if not tasks:
        return
    context, ended = multiprocessing.get_context("spawn"), 0
    count = min(workers or os.cpu_count() or 1, len(tasks))
    with ProcessPoolExecutor(count, context, _start_worker, (job,)) as pool:
        for future in as_completed([pool.submit(_work, task) for task in tasks]):
            (said, teaching), lines = future.result()
            with paths[teaching].open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            ended += len(said)
            yield ended, sum(map(len, missing.values()))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a jsonl file by item and policy, the last of each, in a fixed order."""
    if not path.exists():
        return []
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    latest = {(row["item_id"], row["policy"]): row for row in rows}
    return [latest[name] for name in sorted(latest)]
