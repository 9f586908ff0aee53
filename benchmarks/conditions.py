"""The model that a benchmark runs, ready to decode, and what its figures were measured under."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import random_model
from spark import models
from spark.compiled import prepare
from spark.models.base import SpokenLM


def loaded(name: str, device: str | None = None) -> SpokenLM:
    """The model of that name, or `random`, with its compiled step where it can have one.

    Raises:
        ValueError: there is no such model, or it cannot run here.
    """
    if name == "random":
        lm = random_model.load()
    else:
        lm = models.load(name, device=device) if device else models.load(name)
    prepare(lm.transformer, wait=True)
    return lm


def told(lm: SpokenLM) -> dict[str, Any]:
    """Model, device, types and threads, for a benchmark's JSON object."""
    body, step = lm.transformer, lm.transformer.compiled
    dtype = str(body.dtype).removeprefix("torch.")
    return {
        "model": lm.name,
        "device": str(body.device),
        "dtype": dtype,
        "weights": step.weights if step else dtype,
        "compiled_step": step is not None,
        "threads": torch.get_num_threads(),
    }
