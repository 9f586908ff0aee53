"""Files that survive a kill: JSON lines of which whole ones are kept, and files written whole.

Knows files, nothing of what is in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[Any]:
    """The records of a file; none where there is no file. A torn last line is cut off."""
    if not path.exists():
        return []
    held = path.read_bytes()
    lines = _whole(held)
    if len(whole := b"".join(lines)) < len(held):
        path.write_bytes(whole)
    return [json.loads(line) for line in lines]


def look(path: Path) -> list[Any]:
    """The whole records of a file that somebody else may be writing: nothing is cut off."""
    return [json.loads(line) for line in _whole(path.read_bytes())]


def _whole(held: bytes) -> list[bytes]:
    """Its lines, without a torn last one."""
    lines = held.splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def append(path: Path, records: Sequence[Any]) -> None:
    """Adds records, and waits until the disk has them."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Writes a text file whole: a kill leaves the old one or the new one, never half."""
    replace_by(path, lambda part: part.write_text(text, "utf-8"))


def replace_by(path: Path, write: Callable[[Path], Any]) -> None:
    """The same for a file that `write` makes at the path it is given."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
