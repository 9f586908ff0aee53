"""Files of a run that may be killed at any time, and a line that says how long it will take.

Knows files, nothing of what is in them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spark import jsonl

Line = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Write a value whole or not at all."""
    jsonl.replace(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """A value, None where there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it, and its stage is made again") from error


def claim(path: Path, wanted: Line) -> None:
    """Make a folder this run's by the file `path` in it, or find that it is already.

    Raises:
        ValueError: it holds another run, or no folder can be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"no folder can be made at {path.parent}: name another place") from error
    wanted, held = json.loads(json.dumps(wanted)), read_json(path)  # as it will be read back
    if held is not None and held != wanted:
        other = [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]
        raise ValueError(
            f"{path.parent} holds a run begun otherwise ({', '.join(other)}): name another folder "
            "with --out, or delete it to start anew"
        )
    write_json(path, wanted)


def teller(stage: str) -> Callable[[int, int], None]:
    """A line of progress with the time left, on stderr."""
    begun = time.monotonic()

    def tell(done: int, total: int) -> None:
        left = (time.monotonic() - begun) / done * (total - done) / 60
        end = "\n" if done >= total else ""
        line = f"\r{stage}: {done} of {total}, {left:.1f} min left "
        print(line, end=end, file=sys.stderr, flush=True)

    return tell
