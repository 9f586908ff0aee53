"""Builds the compiled step ahead of time: `python -m spark.compiled`. `make setup` does it."""

from __future__ import annotations

import sys

import torch  # noqa: F401  (its threads are the step's)

from spark.compiled.library import library, missing

if __name__ == "__main__":
    built = library() is not None
    print("The compiled step is built." if built else f"No compiled step: {missing()}.")
    sys.exit(0)  # everything works without
