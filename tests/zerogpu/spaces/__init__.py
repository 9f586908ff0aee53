"""A stand-in for the platform's `spaces` package, which does what it does to a generator function.

Arguments and values are pickled, the function runs in a forked process, an error there comes back
as its class's name alone, closing the generator asks the process to end. `ASKED` holds what each
call asked for; `REFUSE` makes the platform lend nothing.
"""

from __future__ import annotations

import multiprocessing
import pickle
from functools import wraps

import gradio

ASKED: list[float] = []
REFUSE: list[str] = []
_fork = multiprocessing.get_context("fork")


def GPU(*, duration):
    """The decorator, for generator functions."""

    def decorate(task):
        @wraps(task)
        def lent(*args, **kwargs):
            ASKED.append(duration(*args, **kwargs))
            if REFUSE:
                raise gradio.Error(REFUSE[0], title="ZeroGPU quota exceeded")
            told, (ours, theirs) = pickle.dumps((args, kwargs)), _fork.Pipe()
            closed = _fork.Event()
            process = _fork.Process(target=_serve, args=(task, told, theirs, closed), daemon=True)
            process.start()
            try:
                while True:
                    kind, raw = ours.recv()
                    if kind == "error":
                        raise gradio.Error(raw, title="ZeroGPU worker error")
                    if kind == "end":
                        return
                    yield pickle.loads(raw)
            except GeneratorExit:
                closed.set()
                raise
            finally:
                ours.close()
                process.join(60)
                assert process.exitcode == 0, "the process went on, or crashed"

        return lent

    return decorate


def _serve(task, told, pipe, closed):
    args, kwargs = pickle.loads(told)
    made = task(*args, **kwargs)
    try:
        for value in made:
            if closed.is_set():
                made.close()
                return
            pipe.send(("value", pickle.dumps(value)))
        pipe.send(("end", b""))
    except BrokenPipeError:
        made.close()
    except Exception as error:
        pipe.send(("error", type(error).__name__))
