"""What a folder of results was made with, so that two runs never mix in it.

`run.json` holds the settings, hashes of the model's files and of each item's texts. A run may
resume, or take in more items; under other conditions it is refused. Knows files, runs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import spark
from spark import jsonl, models
from spark.compiled import library
from spark.evaluation.answering import Job
from spark.evaluation.suite import Item

RUN = "run.json"
_PIECES, _PIECE = 64, 1 << 20  # of a file's hash
# Folders and modules of the code that decides what a line says; not the pages.
_DECIDING = (
    "acceptance.py", "cache.py", "comparison.py", "confidence.py", "decoding.py", "drift.py",
    "engine.py", "foresight.py", "graphs.py", "hardware.py", "heads.py", "late.py", "modality.py",
    "named.py", "norm.py", "policies.py", "positions.py", "quantised.py", "remembered.py",
    "sampling.py", "schedule.py", "schedule_file.py", "stretch.py", "text.py", "trace.py",
    "transformer.py", "verification.py", "watch.py", "weights.py", "work.py", "worker.py",
    "compiled/*.[ch]", "compiled/*.py", "metrics/*.py", "models/*.py", "speech/*.py",
    "evaluation/alias.py", "evaluation/answering.py", "evaluation/scoring.py",
    "training/pitch.py", "training/teacher.py",
)  # fmt: skip


def claim(job: Job, items: Sequence[Item], results: Sequence[Path], voice: bool = True) -> None:
    """Make the job's folder its own, or find that it is already.

    Args:
        job: what is asked for.
        items: to be answered; those of an earlier run stay on record.
        results: files with lines; without any the folder is free.
        voice: whether the model has one here; replies without sound are another measurement.

    Raises:
        ValueError: the folder holds lines made under other conditions.
    """
    path, wanted = job.out / RUN, conditions(job, items, voice)
    if any(file.exists() and file.stat().st_size for file in results):
        remedy = f"name another folder with --out, or delete {job.out} to start anew"
        if not path.exists():
            raise ValueError(f"{job.out} holds results but no {RUN} that says of what: {remedy}")
        held = json.loads(path.read_text("utf-8"))
        if found := differences(held, wanted):
            what = "; ".join(found)
            raise ValueError(f"{job.out} holds results made otherwise ({what}): {remedy}")
        wanted["items"] = held["items"] | wanted["items"]
    jsonl.replace(path, json.dumps(wanted, indent=1) + "\n")


def conditions(job: Job, items: Sequence[Item], voice: bool = True) -> dict[str, Any]:
    """Everything that lines of one folder must share."""
    settings = json.loads(json.dumps(asdict(job.settings)))  # as it will be read back
    return {
        "model": job.model,
        "settings": {
            **settings,
            "fixed_exit": job.fixed_exit,
            "batch": job.batch,
            "threads": job.threads,
            "recogniser": job.recogniser,
            "utmos": job.utmos,
            "voice": voice,
            **{name: str(value) for name, value in job.options},
        },
        "weights": _weights(job.model),
        "software": {
            "torch": torch.__version__, "code": _code(), "the compiled step": library.version(),
        },
        "items": {item.item_id: _asked(item) for item in items},
    }


def _asked(item: Item) -> str:
    """Hash of an item's texts and of its recording's bytes, wherever the file lies."""
    sound = Path(item.audio).read_bytes() if item.audio else b""
    texts = json.dumps(asdict(item) | {"audio": None}).encode()
    return _digest(texts + _digest(sound).encode() if sound else texts)


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What keeps two runs apart, in words; items that only one of them has do not."""
    found = []
    if held["model"] != wanted["model"]:
        found.append(f"model {held['model']}, now {wanted['model']}")
    found += [
        f"{name.replace('_', ' ')} {held['settings'].get(name)}, now {value}"
        for name, value in (dict.fromkeys(held["settings"]) | wanted["settings"]).items()
        if held["settings"].get(name) != value
    ]
    software = held.get("software", {})
    found += [
        f"another version of {name}"
        for name, value in wanted["software"].items()
        if software.get(name) != value
    ]
    files = {*held["weights"], *wanted["weights"]}
    changed = [f for f in sorted(files) if held["weights"].get(f) != wanted["weights"].get(f)]
    if changed:
        found.append(f"other contents of {', '.join(changed)}")
    texts = sum(held["items"].get(i, text) != text for i, text in wanted["items"].items())
    if texts:
        found.append(f"other texts of {texts} items")
    return found


def _weights(model: str) -> dict[str, str]:
    """Hashes of the files a model is loaded from, by name; empty where it has no folder."""
    return {path.name: _sampled_digest(path) for path in models.files(model)}


def _sampled_digest(path: Path) -> str:
    """Hash of a file; of a large one, of its size and of pieces all through it.

    Other weights differ everywhere, so pieces tell them apart without reading 18 GB at each start.
    """
    size = path.stat().st_size
    if size <= _PIECES * _PIECE:
        return _digest(path.read_bytes())
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_PIECES):
            file.seek(number * (size - _PIECE) // (_PIECES - 1))
            found.update(file.read(_PIECE))
    return found.hexdigest()


def _code() -> str:
    """Hash of the code that decides what a line says."""
    root = Path(spark.__file__).parent
    files = (path for part in _DECIDING for path in sorted(root.glob(part)))
    return _digest(b"".join(path.read_bytes() for path in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
