"""A GPU that a platform lends for the time of one run (ZeroGPU), where there is such a platform.

A loan runs its function in a process forked for it: models come along as they were when the app
started, arguments and results are pickled, and nothing that the function changes comes back.
Importing this module imports `spaces`, where that is installed, which has to happen before anything
touches CUDA. Knows no model and no page.

How many minutes a visitor has left cannot be asked: `spaces` offers no call for it, and the token
that a request carries says who asks, not what is left. The platform compares when it is asked for a
GPU, and tells the number in its refusal. So a page says beforehand what a run will ask for, and
shows a refusal as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_SWITCH = "SPACES_ZERO_GPU"  # the platform's own
_spaces = import_module("spaces") if find_spec("spaces") else None


def lends() -> bool:
    """Whether this platform lends a GPU for each run, and has none otherwise."""
    return _spaces is not None and os.environ.get(_SWITCH, "").lower() in ("1", "t", "true")


def gpu(
    duration: Callable[P, float | None],
) -> Callable[[Callable[P, Iterator[T]]], Callable[P, Iterator[T]]]:
    """Lend a GPU to a generator function of a module; elsewhere leave the function as it is.

    Args:
        duration: seconds that a call will take at most, None for the platform's own guess; called
            with the same arguments.
    """
    if _spaces is None:
        return lambda function: function
    lent: Callable[[Callable[P, Iterator[T]]], Callable[P, Iterator[T]]]
    lent = _spaces.GPU(duration=duration)
    return lent


@dataclass(frozen=True)
class Permit:
    """Leave to go on, for a run that may be in another process: a file that is there until taken.

    Attributes:
        path: of the file, in the system's folder for such.
    """

    path: str

    @classmethod
    def given(cls) -> Permit:
        """A new one; whoever asked for it has to withdraw it in the end."""
        handle, path = tempfile.mkstemp(prefix="spar-k-run-")
        os.close(handle)
        return cls(path)

    def withdraw(self) -> None:
        """The run is to stop, or is over."""
        Path(self.path).unlink(missing_ok=True)

    def withdrawn(self) -> bool:
        """Whether the run is to stop; asked between tokens."""
        return not os.path.exists(self.path)  # a third of the time of Path's, at every token
