"""Tasks in processes of this machine, each with a model of its own. Knows nothing of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def results(
    start: Callable[..., None],
    given: tuple[Any, ...],
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    count: int,
) -> Iterator[Result]:
    """What `work` makes of each task, as it ends.

    Args:
        start: called with `given` once in each process, before its first task.
        given: what it takes.
        work: of a module, so that a process finds it.
        tasks: all.
        count: processes.

    Raises:
        ValueError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, _begin, (start, given)) as pool:
            for future in as_completed([pool.submit(work, task) for task in tasks]):
                yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process died, perhaps for want of memory. What was written is kept: run the "
            "same command again, with fewer --workers"
        ) from error


def _begin(start: Callable[..., None], given: tuple[Any, ...]) -> None:
    """In a new process: end when the command ends, however that was killed, and make ready."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # tasks wait for nobody any more
