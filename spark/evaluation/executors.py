"""Where the tasks of an evaluation run: this process, others of this machine, or a Ray cluster.

All give back each task with its lines as it ends, in any order. Knows how work is spread, nothing
of what a line says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch

from spark import hardware, pool
from spark.evaluation.answering import Job, Line, Task, work
from spark.models.base import SpokenLM

NAMES = ("processes", "ray")
_SMALL = 1e9  # bytes of a body that every core may have a copy of


def run(
    name: str, lm: SpokenLM, job: Job, tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[Task, list[Line]]]:
    """Runs tasks; yields each with its lines as it ends.

    Args:
        name: of the executor.
        lm: the job's model, loaded here; let go where other processes load their own.
        job: what is asked for.
        tasks: all that are left.
        workers: tasks at a time; None: one a core for a small model on the CPU, else one; on Ray
            as many as the cluster has GPUs, or CPUs where it has none.

    Raises:
        ValueError: no executor of that name, or a worker died.
    """
    if name not in NAMES:
        raise ValueError(f"there is no executor {name!r}: use {' or '.join(NAMES)}")
    if not tasks:
        return
    count = min(workers or _usual(lm), len(tasks))
    if name == "processes" and count == 1:
        yield from _here(lm, job, tasks)
        return
    del lm  # the workers load their own, and may need its memory
    hardware.give_back()
    if name == "ray":
        yield from _on_ray(job, tasks, workers)
    else:
        yield from pool.results(_start, (job,), _work, tasks, count)


def _usual(lm: SpokenLM) -> int:
    return (os.cpu_count() or 1) if is_small(lm) else 1


def is_small(lm: SpokenLM) -> bool:
    """Whether several processes of this machine may have a copy of the model each."""
    body = lm.transformer
    nbytes = sum(body.layer_bytes(layer) for layer in range(body.num_layers))
    return body.device.type == "cpu" and nbytes < _SMALL


def _here(lm: SpokenLM, job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, list[Line]]]:
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        for task in tasks:
            yield task, work(lm, job, task)
    finally:
        torch.set_num_threads(before)


_worker: tuple[SpokenLM, Job] | None = None  # of a worker process


def _start(job: Job) -> None:
    global _worker
    torch.set_num_threads(job.threads)
    _worker = (job.load(), job)


def _work(task: Task) -> tuple[Task, list[Line]]:
    assert _worker is not None
    return task, work(*_worker, task)


def _on_ray(
    job: Job, tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[Task, list[Line]]]:
    if find_spec("ray") is None:
        raise ValueError(
            "--executor ray needs the package ray: pip install -r requirements-evaluation.txt"
        )
    from spark.evaluation import on_ray  # Ray is an extra

    return on_ray.run(job, tasks, workers)
