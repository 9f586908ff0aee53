"""Writes what an evaluation's folder comes to: summary.json, tables to calculate with, a report.

Reads asked.json (what the last command asked for) and the lines; whoever adds lines, the runner or
a judge, calls `write`. Knows files, no model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark import jsonl
from spark.evaluation.figures import summarise
from spark.evaluation.page import page
from spark.evaluation.runner import ITEMS, TEACHER, read_lines

ASKED, JUDGED = "asked.json", "judged.jsonl"
SUMMARY, REPORT = "summary.json", "report.html"


def ask(folder: Path, told: Mapping[str, Any], items: Sequence[str]) -> None:
    """Keeps what a command asked for.

    Args:
        folder: of the evaluation.
        told: model, suite, settings, policies, margin and so on; they go into the summary.
        items: by id, in order.
    """
    jsonl.replace(folder / ASKED, json.dumps({**told, "asked": list(items)}, indent=1) + "\n")


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What the last command asked for with the number of its items, their lines, the teacher's.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    try:
        told = json.loads((folder / ASKED).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no evaluation: run python -m spark.evaluation") from error
    wanted = set(told.pop("asked"))
    lines, said = (
        [line for line in read_lines(folder / name) if line["item_id"] in wanted]
        for name in (ITEMS, TEACHER)
    )
    _with_judgements(lines, jsonl.read(folder / JUDGED))
    return {**told, "items": len(wanted)}, lines, said


def write(folder: Path) -> dict[str, Any]:
    """Writes the folder's summary and returns it.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    told, lines, said = read(folder)
    found = summarise(lines, said, told["policies"], told["margin"])
    found = {**found, **told, "policies": found["policies"]}
    jsonl.replace(folder / SUMMARY, json.dumps(found, indent=1) + "\n")
    jsonl.replace(folder / "items.csv", csv_text(lines))
    rows = [{"policy": name, **_flat(of)} for name, of in found["policies"].items()]
    jsonl.replace(folder / "summary.csv", csv_text(rows))
    jsonl.replace(folder / REPORT, page(found))
    return found


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with the columns of all of them; lists and records as JSON.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _flat(figures: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested figures as columns: wer.value, wer.low, wer.high, wer.n, ..."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        column = f"{above}{name}"
        if name == "ci95":
            found |= {f"{above}low": value[0], f"{above}high": value[1]}
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{column}.")
        else:
            found[column] = value
    return found


def judged_key(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """What makes a judgement another one: the words judged, the judge, the channel."""
    return line["asked"], line["judge"], line["channel"]


def _with_judgements(lines: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]]) -> None:
    """Adds to each line its judgements, by scale, judge and channel."""
    replies = {(line["item_id"], line["policy"]): line for line in lines}
    for one in judged:
        line = replies.get((one["item_id"], one["policy"]))
        if line is not None:
            name = f"{one['scale']}, {one['judge']}, {one['channel']}"
            line.setdefault("judged", {})[name] = {
                field: one[field] for field in ("score", "invalid")
            }
