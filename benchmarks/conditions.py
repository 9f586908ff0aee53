"""The model that a benchmark runs, ready to decode, and what its figures were measured under."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import random_model
from spark import models
from spark.compiled import prepare
from spark.models.base import SpokenLM
from spark.models.loading import say
from spark.quantised import Int8Layer
from spark.transformer import Transformer


def loaded(name: str, device: str | None = None) -> SpokenLM:
    """The model of that name, or `random`, with its compiled step where it can have one.

    Raises:
        ValueError: there is no such model, or it cannot run here.
    """
    if name == "random":
        lm = random_model.load()
    else:
        options: dict[str, Any] = {"device": device} if device else {}
        lm = models.load(name, told=say, **options)
    prepare(lm.transformer, wait=True)
    return lm


def told(lm: SpokenLM) -> dict[str, Any]:
    """Model, device, types, threads and machine, for a benchmark's JSON object."""
    body, step = lm.transformer, lm.transformer.compiled
    dtype = str(body.dtype).removeprefix("torch.")
    return {
        "model": lm.name,
        "device": str(body.device),
        "dtype": dtype,
        "weights": step.weights if step else "int8" if in_eighths(body) else dtype,
        "compiled_step": step is not None,
        "graphs": len(body.graphs.kinds) if body.graphs else 0,
        "graphs_trouble": body.graphs.trouble if body.graphs else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def in_eighths(body: Transformer) -> bool:
    """Whether the blocks' matrices are kept as 8-bit integers."""
    return all(isinstance(layer, Int8Layer) for layer in body.layers)


def finish(result: Mapping[str, Any], out: Path | None) -> None:
    """Print a benchmark's last line, and write it to a file where one is wanted."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def peak_gb(where: torch.device) -> float:
    """The most memory that was in use so far, GB: of the GPU, or of the process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 1e9
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
