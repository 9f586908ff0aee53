"""An evaluation's tables in the paper's form, with intervals, and its verdicts in sentences.

Cells are texts; what was not measured is a dash. Knows a summary only, no lines and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark.evaluation import paper
from spark.evaluation.datasets import SETS
from spark.evaluation.figures import FEWEST, LEAST_RIGHT

Figures = Mapping[str, Any]
_NONE, _ERRORS = "–", "word errors"


@dataclass(frozen=True)
class Table:
    """A heading row and rows of the same length."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def without_empty(self) -> Table:
        """The same without columns in which no row has a figure."""
        kept = [
            at
            for at, name in enumerate(self.header)
            if at == 0 or any(row[at] != _NONE for row in self.rows)
        ]
        return Table(
            tuple(self.header[at] for at in kept),
            tuple(tuple(row[at] for at in kept) for row in self.rows),
        )


def main_table(summary: Figures) -> Table:
    """A row a policy: points of each set, their mean, word errors, predicted MOS, depth, cost."""
    policies = summary["policies"]
    sets = dict.fromkeys(
        name for of in policies.values() for name in of["families"] if name != "read_aloud"
    )
    header = ("policy", *map(set_title, sets), "mean of sets", "numbers as words too", "WER",
              "items above 50 % WER", "DNSMOS", "UTMOSv2", "speech depth", "text depth",
              "weights read")  # fmt: skip
    rows = []
    for name, of in policies.items():
        points = [_percent(of["families"].get(one, {}).get("points")) for one in sets]
        rows.append((
            name, *points, _percent(of["sets"]), _percent(of["correct_heard_numbers"]),
            _percent(of["wer"]), _share(of["wer"] and of["wer"]["above_half"]),
            _number(of["mos_predicted"]), _number(of["mos_utmosv2"]),
            _number(of["mean_depth_speech"]), _number(of["mean_depth_text"]),
            _share(of["traffic_ratio"]),
        ))  # fmt: skip
    return Table(header, tuple(rows)).without_empty()


def cost_table(summary: Figures) -> Table:
    """A row a policy: weights read and time, of text, of speech and of both."""
    header = ("policy", "weights read, text", "weights read, speech", "weights read, all",
              "ms a text token", "ms a speech token", "ms a token")  # fmt: skip
    rows = tuple(
        (name, *(_share(of[f"traffic_ratio{part}"]) for part in ("_text", "_speech", "")),
         *(_number(of[f"ms_per{part}_token"]) for part in ("_text", "_speech", "")))
        for name, of in summary["policies"].items()
    )  # fmt: skip
    return Table(header, rows).without_empty()


def gap_table(summary: Figures) -> Table:
    """A row a policy: differences from full depth with 95 % intervals and corrected p-values."""
    measures = (("sets", "mean of sets, points", 100), ("correct_heard", "right, points", 100),
                ("wer", "WER, points", 100), ("mos_predicted", "DNSMOS", 1),
                ("mos_utmosv2", "UTMOSv2", 1))  # fmt: skip
    rows = tuple(
        (name, *(_gap(of["against_full"][measure], scale) for measure, _, scale in measures))
        for name, of in summary["policies"].items()
        if "against_full" in of
    )
    return Table(("policy", *(title for _, title, _ in measures)), rows).without_empty()


def judge_table(summary: Figures) -> Table:
    """A row a policy: mean score of each judge and how often it could not be read."""
    policies = summary["policies"]
    names = list(dict.fromkeys(name for of in policies.values() for name in of["judged"]))
    rows = tuple(
        (name, *(_judged(of["judged"].get(judge)) for judge in names))
        for name, of in policies.items()
    )
    return Table(("policy", *names), rows)


def paper_table(summary: Figures) -> Table | None:
    """The paper's rows and ours under its headings; None for a model that it did not use."""
    theirs = paper.published(summary["title"], summary["layers"])
    if not theirs:
        return None
    header = ("policy", "from", "mean of sets", "UTMOSv2", "WER", "speech depth")
    rows = [
        (row.policy, "the paper", f"{row.mean:.2f}", _number(row.mos), _number(row.wer, " %"),
         _number(row.depth))
        for row in theirs
    ]  # fmt: skip
    rows += [
        (name, "here", _percent(of["sets"]), _number(of["mos_utmosv2"]), _percent(of["wer"]),
         _number(of["mean_depth_speech"]))
        for name, of in summary["policies"].items()
    ]  # fmt: skip
    return Table(header, tuple(rows))


def verdicts(summary: Figures) -> list[str]:
    """What is shown of each policy against full depth and what is not, a sentence a measure."""
    found = []
    margin = f"{100 * summary['margin']:g} points"
    for name, of in summary["policies"].items():
        if "against_full" not in of:
            continue
        gaps = of["against_full"]
        right, errors = gaps["correct_heard"] or gaps["sets"], gaps["wer"]
        if right:
            found.append(
                _sentence(name, "answers right as heard", right, of["non_inferior"], margin)
            )
        if errors:
            found.append(_sentence(name, _ERRORS, errors, of["non_inferior_wer"], margin))
    return found


def _sentence(name: str, what: str, gap: Figures, kept: bool | None, margin: str) -> str:
    low, high = (100 * end for end in gap["ci95"])
    measured = (
        f"{100 * gap['value']:+.2f} points, 95 % {low:+.2f} to {high:+.2f}, p {_p(gap)}, n = "
        f"{gap['n']}"
    )
    if kept is None:
        right = "" if what == _ERRORS else f", and {100 * LEAST_RIGHT:.0f} % right at full depth"
        return f"{name}, {what}: {measured}. Not decided: that takes {FEWEST} items{right}."
    if kept:
        return f"{name} is not inferior to full depth in {what}, margin {margin}: {measured}."
    return (
        f"{name}, {what}: {measured}. That it is not inferior to full depth, margin {margin}, is "
        "not shown."
    )


def left_out(summary: Figures) -> list[str]:
    """What the figures do not hold: prompts refused, replies cut off."""
    found = []
    voice = summary.get("voice", True)
    if not voice:
        found.append("The model had no voice here, so nothing was heard: right as heard, word "
                     "errors and predicted MOS are not measured.")  # fmt: skip
    for name, of in summary["policies"].items():
        if of["refused"]:
            found.append(f"{name}: {of['refused']} prompts were not taken by the model and count "
                         "nowhere.")  # fmt: skip
        if of["wordless"] and voice:
            found.append(f"{name}: {of['wordless']} replies have no word of English in their text; "
                         "what was heard of them counts as word errors.")  # fmt: skip
        stopped = of["stopped"]
        if stopped and stopped["value"] < 1:
            cut = round((1 - stopped["value"]) * stopped["n"])
            found.append(f"{name}: {cut} of {stopped['n']} replies were cut off at their limit; "
                         "they are in the figures.")  # fmt: skip
    return found


def set_title(name: str) -> str:
    """A set for people; families of the built-in suite by their names."""
    return SETS[name].title if name in SETS else name.replace("_", " ")


def _percent(figure: Figures | None) -> str:
    if not figure or figure["value"] is None:
        return _NONE
    low, high = (100 * end for end in figure["ci95"])
    return f"{100 * figure['value']:.1f} % ({low:.1f} to {high:.1f})"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, unit: str = "") -> str:
    return _NONE if value is None else f"{value:.2f}{unit}"


def _judged(figure: Figures | None) -> str:
    if figure is None:
        return _NONE
    return f"{_percent(figure)}, {figure['invalid']} not readable"


def _gap(gap: Figures | None, scale: float) -> str:
    if not gap:
        return _NONE
    low, high = (scale * end for end in gap["ci95"])
    return f"{scale * gap['value']:+.2f} ({low:+.2f} to {high:+.2f}, p {_p(gap)})"


def _p(gap: Figures) -> str:
    """Corrected; with 2,000 draws nothing below 0.001 can be told."""
    return f"{gap['p_holm']:.3f}" if gap["p_holm"] >= 0.001 else "below 0.001"
