"""A calibration as one HTML page that needs nothing from outside. Reads what its JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from spark.calibrate import report
from spark.plots import calibration as plots
from spark.plots.standalone import markup, script

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
caption { text-align: left; }
th, td { border-bottom: 1px solid #7c8593; padding: .3rem .8rem .3rem 0; text-align: left; }
figure { margin: 2rem 0; } figcaption { max-width: 48rem; }
code { overflow-wrap: anywhere; }
"""


def html(held: dict[str, Any]) -> str:
    """The page of a calibration.json."""
    setting = held["setting"]
    title = f"Calibration of {setting['model']}"
    drawn = [
        (markup(plots.pareto(held), "pareto"), "Cost and loss", _PARETO),
        (markup(plots.sweep_maps(held), "maps"), "How far each exit is from full depth", _MAPS),
        (markup(plots.mass_lines(held), "masses"), "Where speech overtakes text",
         _overtaking(held)),
    ]  # fmt: skip
    figures = "".join(_figure(*one) for one in drawn)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}"
        f"</title><meta name='viewport' content='width=device-width'><style>{_STYLE}</style>"
        f"{script()}</head><body><main><h1>{escape(title)}</h1><p>{escape(report.verdict(held))}</p>"
        f"{_table(held)}{figures}<h2>Again</h2><p><code>{escape(held['command'])}</code></p>"
        f"<p>torch {escape(held['torch'])}, temperature {setting['sampling']['temperature']}, "
        f"top-p {setting['sampling']['top_p']}. Heard by pocketsphinx; predicted MOS is DNSMOS "
        "P.808. No prompt and no answer of the evaluation is among the prompts.</p>"
        "</main></body></html>\n"
    )


_PARETO = (
    "Every schedule that was tried, against full depth on the same prompts; bars are 95 % "
    "intervals. Lower and further left is better."
)
_MAPS = (
    "Full depth's own replies, run through the model once. Overlap is the chance that exit and "
    "full depth draw the same token at best; divergences of a schedule's positions add up."
)


def _overtaking(held: dict[str, Any]) -> str:
    """Which layer speech outweighs text from, by position, in words."""
    parts = [
        f"{place}: " + ("never" if found is None else f"layer {found}")
        for place, values in held["sweep"].items()
        for found in [values["speech_overtakes_text"]]
    ]
    return (
        "What the model's own output head reads after each layer. Speech outweighs text for good "
        f"from: {'; '.join(parts)}."
    )


def _figure(figure: str, title: str, told: str) -> str:
    return (
        f"<h2>{escape(title)}</h2><figure>{figure}<figcaption>{escape(told)}</figcaption></figure>"
    )


def _table(held: dict[str, Any]) -> str:
    heads = "".join(f"<th scope='col'>{escape(name)}</th>" for name in report.HEADER)
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in report.lines(held))
    return (
        "<table><caption>Schedules, each position's exit layer (f: full depth); * is the one "
        "chosen. Differences from full depth with 95 % intervals.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)
