"""A comparison as files, in a folder or in one zip: the same names and bytes either way.

    <policy>.wav  <policy>.trace.csv  <policy>.drift.csv  summary.json  details.json

summary.json holds the contract's figures; details.json what else is known: what was heard, how
tokens were drawn, the replays' times. A drift.csv is there where a policy's exits were held
against full depth: one row for each, to be joined with the trace by `index`. Knows the comparison's
results, runs nothing.
"""

from __future__ import annotations

import io
import json
import math
import platform
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spark.comparison import Comparison, Reply
from spark.metrics.outside import outside_mass
from spark.speech.audio import wav_bytes


def summary(comparison: Comparison) -> dict[str, Any]:
    """summary.json's object; figures that were not computed are None."""
    return {
        "model": comparison.model,
        "prompt": comparison.prompt,
        "seed": comparison.settings.seed,
        "settings": asdict(comparison.settings),
        "policies": [reply.summary() for reply in comparison.replies],
    }


def details(comparison: Comparison) -> dict[str, Any]:
    """details.json's object: conditions, and per policy what the summary has no place for."""
    return {
        "stopped": comparison.stopped,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "conversation": [
            {"asked": past.asked, "answered": past.words, "ids": list(past.reply)}
            for past in comparison.earlier
        ],
        "policies": [_details(reply) for reply in comparison.replies],
    }


def _details(reply: Reply) -> dict[str, Any]:
    figures = reply.trace.summary()
    keys = ("kv_policy", "n_tokens", "n_control", "prompt_tokens", "prefill_ms", "decode_ms",
            "finish", "acceptance", "acceptance_rate", "n_rejected", "drift", "kl")  # fmt: skip
    return {
        "name": reply.policy,
        "heard": reply.heard,
        "vocoder_ms": reply.vocoder_ms,
        "sample_rate": reply.sample_rate,
        "compiled_step": reply.trace.compiled,
        "outside_mass": asdict(outside_mass(reply.trace)),
        "replayed_ms_per_token": reply.replayed_ms,
        "timing_against_full": asdict(reply.timing) if reply.timing else None,
        **{key: figures[key] for key in keys},
    }


def files(comparison: Comparison) -> dict[str, bytes]:
    """File name -> bytes; a policy without sound has no WAV."""
    named: dict[str, bytes] = {}
    for reply in comparison.replies:
        if reply.pcm is not None and reply.sample_rate is not None:
            named[f"{reply.policy}.wav"] = wav_bytes(reply.pcm, reply.sample_rate)
        named[f"{reply.policy}.trace.csv"] = reply.trace.frame().to_csv(index=False).encode()
        if reply.trace.drifted():
            named[f"{reply.policy}.drift.csv"] = (
                reply.trace.drift_frame().to_csv(index=False).encode()
            )
    named["summary.json"] = _json(summary(comparison))
    named["details.json"] = _json(details(comparison))
    return named


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all files into a folder, made where missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in files(comparison).items():
        path = folder / name
        path.write_bytes(content)
        paths.append(path)
    return paths


def zip_bytes(comparison: Comparison) -> bytes:
    """All files in one zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files(comparison).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    """The same value with None for every number that is none: JSON has no nan."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
