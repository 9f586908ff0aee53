"""Runs every item under every policy and writes each line as it is done.

Lines that exist are not made again, so a killed run goes on where it stopped; `fingerprint` sees
to it that they were made under the same conditions. A task is a whole item, so that all policies
of an item share one prefill, or a batch of items. The teacher's lines go into teacher.jsonl.
Knows files and tasks; what a line says is `answering`'s, where tasks run is `executors`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spark import jsonl
from spark.evaluation import executors
from spark.evaluation.answering import Job, Line, Task, policies_of, taught
from spark.evaluation.fingerprint import claim
from spark.evaluation.suite import Item
from spark.models.base import SpokenLM

ITEMS, TEACHER = "items.jsonl", "teacher.jsonl"


@dataclass(frozen=True)
class Progress:
    """Items that are done, the teacher's counted too, and those of them that were before."""

    done: int
    total: int
    before: int


def run(
    job: Job,
    items: Sequence[Item],
    workers: int | None = None,
    executor: str = "processes",
    lm: SpokenLM | None = None,
) -> Iterator[Progress]:
    """Runs what is not done yet, and tells after each task how far it is.

    Args:
        job: what is asked for.
        items: to be answered.
        workers: how many tasks run at a time; None leaves it to the executor.
        executor: where they run, by its name in `executors`.
        lm: the job's model where it is loaded already.

    Raises:
        ValueError: the folder holds another run, the model cannot take the settings, or a worker
            died; what is written stays good.
    """
    if job.batch < 1:
        raise ValueError("a batch holds at least one reply: use --batch 1 or more")
    job.out.mkdir(parents=True, exist_ok=True)
    paths = {False: job.out / ITEMS, True: job.out / TEACHER}
    lm = lm or job.load()  # first, since it may fetch the files that the claim is about
    claim(job, items, list(paths.values()), voice=lm.vocoder is not None)
    policies_of(job, lm)  # here, where a refusal has a reader
    said = tuple(sorted(taught(job)))
    sayable = [item for item in items if said and item.rule == "words"]  # whole replies
    tasks = [
        *_missing(items, job.policies, _done(paths[False]), False, job.batch),
        *_missing(sayable, said, _done(paths[True]), True, job.batch),
    ]
    total = len(items) + len(sayable)
    before = done = total - sum(len(task.items) for task in tasks)
    yield Progress(done, total, before)
    running = executors.run(executor, lm, job, tasks, workers)
    del lm  # so that an executor can free it
    for task, lines in running:
        jsonl.append(paths[task.teaching], lines)
        done += len(task.items)
        yield Progress(done, total, before)


def _missing(
    items: Sequence[Item],
    names: Sequence[str],
    done: dict[str, set[str]],
    teaching: bool,
    batch: int,
) -> list[Task]:
    """What is left, in tasks of items that lack the same policies."""
    lacking: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        left = tuple(name for name in names if name not in done.get(item.item_id, set()))
        if left:
            lacking.setdefault(left, []).append(item)
    return [
        Task(tuple(alike[start : start + batch]), left, teaching)
        for left, alike in lacking.items()
        for start in range(0, len(alike), batch)
    ]


def _done(path: Path) -> dict[str, set[str]]:
    """Policies already written, by item."""
    found: dict[str, set[str]] = {}
    for row in jsonl.read(path):
        found.setdefault(row["item_id"], set()).add(row["policy"])
    return found


def read_lines(path: Path) -> list[Line]:
    """The lines of a file by item and policy, the last of each, in a fixed order."""
    latest = {(row["item_id"], row["policy"]): row for row in jsonl.read(path)}
    return [latest[name] for name in sorted(latest)]
