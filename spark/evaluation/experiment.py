"""An evaluation's folder as typed rows to look through: items, policies, filters.

Only reads, so that a run may go on in the folder meanwhile. Folders are found below one root and
asked for by name: no path comes from a visitor. Knows files and lines, no model and no page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spark import jsonl
from spark.evaluation.runner import ITEMS
from spark.evaluation.summary import ASKED, SUMMARY

COMMAND = "python -m spark.evaluation --suite builtin --limit 60 --out {out}"
_DEEPEST = 3  # folders below the root
Order = Literal["asked", "wer"]


@dataclass(frozen=True)
class Reply:
    """One policy's reply to an item; None is what was not measured.

    Attributes:
        policy: its word.
        text, heard: the model's words, and the recogniser's; None where nobody could hear it.
        right_text, right_heard: whether each is right; None too where only a judge can say.
        edits, words: word errors of what was heard, over so many words of the text.
        mos: predicted, DNSMOS.
        depth: mean of speech tokens.
        traffic: weights read, as a share of full depth's.
        seconds: of sound.
        refused: why the model did not take the prompt; empty where it did.
    """

    policy: str
    text: str = ""
    heard: str | None = ""
    right_text: bool | None = None
    right_heard: bool | None = None
    edits: int | None = None
    words: int | None = None
    mos: float | None = None
    depth: float | None = None
    traffic: float | None = None
    seconds: float | None = None
    refused: str = ""

    @property
    def wer(self) -> float | None:
        """Word errors over words of the text, may pass 1; None without words."""
        return self.edits / self.words if self.words and self.edits is not None else None


@dataclass(frozen=True)
class Row:
    """An item and its replies, full depth's first, in the order of the policies."""

    item_id: str
    family: str
    split: str
    prompt: str
    expected: str
    replies: tuple[Reply, ...]

    @property
    def disagreed(self) -> bool:
        """Whether policies differ in what is heard right, of those that were judged."""
        found = {reply.right_heard for reply in self.replies}
        return {True, False} <= found

    def worst(self, policy: str | None = None) -> float:
        """The largest WER of its replies, or that of one policy; -1 where none was measured."""
        asked = [r.wer for r in self.replies if policy in (None, r.policy)]
        return max((wer for wer in asked if wer is not None), default=-1.0)


@dataclass(frozen=True)
class Experiment:
    """A folder that was read.

    Attributes:
        name: of the folder, below the root.
        told: what was asked for: command, model, settings and so on, as in asked.json.
        summary: summary.json.
        rows: items in the order asked.
    """

    name: str
    told: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def policies(self) -> tuple[str, ...]:
        """Their words, full depth first."""
        return tuple(self.told["policies"])

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the built-in suite or public sets, in the order asked."""
        return tuple(dict.fromkeys(row.family for row in self.rows))

    def row(self, item_id: str) -> Row:
        """The item; raises ValueError where the folder has none of that name."""
        for row in self.rows:
            if row.item_id == item_id:
                return row
        raise ValueError(f"{self.name} holds no item {item_id}: choose one from the menu")


def folders(root: Path) -> list[str]:
    """Names of the evaluations below a root, finished or not; links are not followed."""
    found = []
    for place, below, files in os.walk(root):
        name = Path(place).relative_to(root)
        if len(name.parts) >= _DEEPEST:
            below.clear()
        below.sort()
        if {ITEMS, ASKED} & set(files):
            found.append(name.as_posix())
    return sorted(found)


def read(root: Path, name: str) -> Experiment:
    """An evaluation by its name among `folders`.

    Raises:
        ValueError: there is none, it is not finished, or it is damaged; with a remedy.
    """
    if name not in folders(root):
        raise ValueError(f"There is no evaluation {name!r} here any more: choose another.")
    folder = root / name
    if not (folder / ASKED).exists() or not (folder / SUMMARY).exists():
        raise ValueError(
            f"{name} is not finished: run its command again, with the same --out, and it goes on "
            "where it stopped."
        )
    try:
        return _read(folder, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name} is damaged ({type(error).__name__} in its files): delete the folder and run "
            "its command again."
        ) from error


def _read(folder: Path, name: str) -> Experiment:
    told, summary = (json.loads((folder / file).read_text("utf-8")) for file in (ASKED, SUMMARY))
    lines = {(x["item_id"], x["policy"]): x for x in jsonl.look(folder / ITEMS)}
    for key in ("model", "settings", "title", "suite", "command"):
        told[key]  # a folder that lacks one is damaged, and says so here
    summary["policies"].items()
    order, rows = tuple(told["policies"]), []
    for item_id in told["asked"]:
        own = [lines[item_id, policy] for policy in order if (item_id, policy) in lines]
        if own:
            first = own[0]
            rows.append(Row(item_id, first["family"], first["split"], first["prompt"],
                            first["expected"], tuple(map(_reply, own))))  # fmt: skip
    if not rows:
        raise ValueError("no lines")
    return Experiment(name, told, summary, tuple(rows))


def _reply(line: Mapping[str, Any]) -> Reply:
    if "refused" in line:
        return Reply(line["policy"], refused=line["refused"])
    return Reply(
        line["policy"], line["text"], line["heard"], line["correct_text"], line["correct_heard"],
        line["edits"], line["words"], line["mos_predicted"], line["mean_depth_speech"],
        line["traffic_ratio"], line["audio_s"],
    )  # fmt: skip


def chosen(
    rows: Sequence[Row],
    family: str | None = None,
    policy: str | None = None,
    disagreed: bool = False,
    order: Order = "asked",
) -> list[Row]:
    """The rows that pass the filters.

    Args:
        rows: of an experiment.
        family: only this one; None for all.
        policy: only items with a reply of it, and word errors by it; None for all.
        disagreed: only items where policies differ in what is heard right.
        order: as asked, or the largest WER first; items without one are last.
    """
    kept = [
        row
        for row in rows
        if family in (None, row.family)
        and (policy is None or any(reply.policy == policy for reply in row.replies))
        and (row.disagreed or not disagreed)
    ]
    return kept if order == "asked" else sorted(kept, key=lambda row: -row.worst(policy))
