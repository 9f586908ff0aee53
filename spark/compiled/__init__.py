"""The decoding step of a small model on a CPU, compiled from C: the same numbers in less time.

    step.c, draw.c    the arithmetic
    library           building and loading it
    step              a transformer's and its heads' weights, laid out for it, and the calls
    draw              the sampler's call

Where there is no compiler, and for models it is not made for, everything runs as it does without.
"""

from __future__ import annotations

from spark.compiled.step import prepare

__all__ = ["prepare"]
