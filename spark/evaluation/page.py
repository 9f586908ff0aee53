"""An evaluation as one HTML page that opens anywhere and needs nothing from outside.

Everything that comes from models, data or the command line is escaped. Knows a summary, no lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from spark.evaluation import paper, report, tables
from spark.evaluation.tables import Table
from spark.plots import evaluation as plots
from spark.plots.standalone import markup, script

_STYLE = """
:root { color-scheme: light dark; --line: #7c8593; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
figure { margin: 1.5rem 0; }
code { overflow-wrap: anywhere; }
"""


def page(summary: Mapping[str, Any]) -> str:
    """The whole page, tables first, then figures."""
    title = f"Evaluation: {summary['title']}, {summary['suite']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p><code>{escape(summary['command'])}</code></p>",
        f"<p>{escape(_made(summary))}</p>",
        _list("Against full depth", tables.verdicts(summary)),
        _table("Policies", tables.main_table(summary)),
        _table("Differences from full depth", tables.gap_table(summary)),
        _table("Cost by modality", tables.cost_table(summary)),
        _judges(summary),
        _beside_the_paper(summary),
        _goals(summary),
        _list("Left out, cut off", tables.left_out(summary)),
        _figures(summary),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{script()}\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _made(summary: Mapping[str, Any]) -> str:
    asked = "asked aloud" if summary["spoken"] else "typed"
    return (
        f"{summary['items']} items, {asked}, the same for all policies and with the same seeds "
        f"(seed {summary['settings']['seed']}). Heard by {summary['recogniser']}, torch "
        f"{summary['torch']}. Intervals are of 95 %, drawn over items or by Wilson and Newcombe "
        "for shares; p-values are of the paired bootstrap over items, corrected by Holm over the "
        "policies. WER is of the speech against the model's own text."
    )


def _judges(summary: Mapping[str, Any]) -> str:
    table = tables.judge_table(summary)
    return _table("Judged by a language model", table) if len(table.header) > 1 else ""


def _beside_the_paper(summary: Mapping[str, Any]) -> str:
    table = tables.paper_table(summary)
    if table is None:
        return ""
    return _table(f"The paper's own figures ({paper.SOURCE}) and ours", table)


def _goals(summary: Mapping[str, Any]) -> str:
    if summary["suite"] != "builtin":
        return ""
    rows = tuple(report.goals(summary))
    return _table("Goals of the embedded model", Table(("what", "measured", "bar"), rows))


def _figures(summary: Mapping[str, Any]) -> str:
    drawn = (
        ("tradeoff", plots.pareto_figure(summary, ("sets",)),
         "What accuracy costs: mean of sets over the share of full depth's weights that was read."),
        ("errors", plots.errors_figure(summary),
         "Word errors of the speech against the model's own text."),
        ("gaps", plots.gaps_figure(summary),
         "Differences from full depth; the dashed lines are the margin of non-inferiority."),
    )  # fmt: skip
    shown = "".join(
        f"<figure>\n{markup(figure, name)}\n<figcaption>{escape(told)}</figcaption>\n</figure>\n"
        for name, figure, told in drawn
    )
    return f"<h2>Figures</h2>\n{shown}"


def _list(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    told = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    return f"<h2>{escape(title)}</h2>\n<ul>\n{told}</ul>\n"


def _table(title: str, table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    # A region that scrolls must be reachable by keyboard, and so needs a name.
    return (
        f"<h2>{escape(title)}</h2>\n"
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(title)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
