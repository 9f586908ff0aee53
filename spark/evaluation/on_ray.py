"""Tasks of an evaluation on a Ray cluster: many GPUs or machines, one worker a GPU or a core.

A worker that dies is started again and its task with it. Every machine needs this package, the
model's files and, for spoken prompts, the same folders. Knows Ray; nothing of what a line says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from spark.evaluation.answering import Job, Line, Task, work

_LIVES = 4  # of a worker after its first; one that dies again and again has another reason


class _Worker:
    """A process with the model in it."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._lm, self._job = job.load(), job

    def work(self, task: Task) -> tuple[Task, list[Line]]:
        return task, work(self._lm, self._job, task)


def run(job: Job, tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[Task, list[Line]]]:
    """Runs tasks on the cluster of RAY_ADDRESS, or on one of this machine's own.

    Args:
        job: what is asked for.
        tasks: all that are left.
        workers: at most; None is as many as there are GPUs, or cores where there are none.

    Raises:
        ValueError: a worker could not start, or died too often.
    """
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    actors = _actors(job, min(workers or len(tasks), len(tasks)))
    waiting, running, idle = list(reversed(tasks)), dict[Any, Any](), list(actors)
    try:
        while waiting or running:
            while idle and waiting:
                actor = idle.pop()
                running[actor.work.remote(waiting.pop())] = actor
            ready = ray.wait(list(running), num_returns=1)[0][0]
            idle.append(running.pop(ready))
            yield ray.get(ready)
    except RayError as error:
        raise ValueError(
            f"a worker on Ray failed ({type(error).__name__}: {error}). What was written is kept: "
            "see that every machine has the model's files, and run the same command again"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _actors(job: Job, most: int) -> list[Any]:
    """As many workers as the cluster can run at a time, at most `most`."""
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1)) // job.threads
    made = ray.remote(
        num_cpus=job.threads, num_gpus=min(gpus, 1), max_restarts=_LIVES, max_task_retries=_LIVES
    )(_Worker)
    return [made.remote(job) for _ in range(max(1, min(most, gpus or cores)))]
