"""A segment: rows of a study's tables as JSON lines, complete in itself or told to be damaged.

The first line says what it is, with a hash of the rest; then comes one line a row, or one a row
that was deleted. It names no system. Which rows go in, and what is made of them, is
`changes.py`'s; where segments lie is `targets.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1


class Damaged(ValueError):
    """The bytes are no whole segment: cut off, or changed since."""


@dataclass(frozen=True)
class Segment:
    """Rows as they stood at one moment.

    Attributes:
        order: larger than that of every segment this server knew of.
        rows: (table, row as column to value).
        gone: (table, key) of rows that were deleted.
    """

    order: int
    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)

    def encoded(self) -> bytes:
        """As it is kept off the machine."""
        lines: list[dict[str, Any]] = [{"gone": table, "key": key} for table, key in self.gone]
        lines += [{"table": table, "row": row} for table, row in self.rows]
        body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        head = {
            "listening_test": FORMAT,
            "order": self.order,
            "lines": len(lines),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return json.dumps(head).encode() + b"\n" + body


def decoded(data: bytes) -> Segment:
    """The segment that these bytes are.

    Raises:
        Damaged: they are none, or of a later version of this software.
    """
    head_line, _, body = data.partition(b"\n")
    try:
        head = json.loads(head_line)
        if head["listening_test"] != FORMAT:
            raise Damaged(f"of format {head['listening_test']}; this version reads {FORMAT}")
        if hashlib.sha256(body).hexdigest() != head["sha256"]:
            raise Damaged("cut off or changed: its hash is not that of its first line")
        lines = [json.loads(line) for line in body.splitlines()]
        return Segment(
            order=int(head["order"]),
            rows=[(line["table"], line["row"]) for line in lines if "row" in line],
            gone=[(line["gone"], line["key"]) for line in lines if "gone" in line],
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"not a segment ({error})") from error
