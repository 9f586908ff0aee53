"""Files of JSON lines that survive a kill: whole lines are kept, a torn last one is made again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where there is no file. A torn last line is cut off."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
        path.write_bytes(b"".join(lines))
    return [json.loads(line) for line in lines]


def append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Adds records, and waits until the disk has them."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Writes a file whole: a kill leaves the old one or the new one, never half."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
