"""The Evidence page's words: a card for each of the paper's claims, and what the plot shows.

Reads claims.json and summary.json of a finished evaluation; where they are not there the page says
so and how to make them. HTML and figures in, no components; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from spark.cards import scrolling_table
from spark.evaluation import claims_text, report
from spark.evaluation.claims import CLAIMS, CONTRADICTED, NOT_DECIDED, NOT_SUPPORTED, SUPPORTED
from spark.evaluation.summary import SUMMARY
from spark.evaluation.tradeoff import MEASURES, SOUND, front

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "evidence"
MAKE = "make results"
_SIGNS = {SUPPORTED: "✓", CONTRADICTED: "✗", NOT_SUPPORTED: "–", NOT_DECIDED: "?"}


@dataclass(frozen=True)
class Evidence:
    """What a folder holds; None is what is not there."""

    claims: dict[str, Any] | None
    summary: dict[str, Any] | None


def read(folder: Path = FOLDER) -> Evidence:
    """A folder's claims and summary; a file that is missing or cut off counts as not there."""
    return Evidence(_held(folder / CLAIMS), _held(folder / SUMMARY))


def introduction(found: Evidence) -> str:
    """What was measured, or that nothing was and which command does it."""
    if found.claims is None:
        return (
            "<p>Not measured yet with these weights. From the repository's folder, this command "
            f"measures everything on this page: <code>{MAKE}</code></p>"
        )
    told = found.claims
    return (
        f"<p>The claims of the paper, tested on {escape(told['title'])}: {told['items']} items, "
        "the same for all policies and with the same seeds, heard by "
        f"{escape(told['recogniser'])}. Intervals are of 95 %, paired over items. Better or worse "
        "counts where p, corrected by Holm over all comparisons of a claim, is below 0.05. The "
        "paper's own models are much larger: what holds here need not hold there, and the other "
        "way round.</p>"
    )


def cards(found: Evidence) -> str:
    """One card a claim, in the paper's order."""
    if found.claims is None:
        return "".join(_unmeasured(title) for title in claims_text.CLAIMS.values())
    return "".join(_card(one) for one in found.claims["claims"])


def told(summary: Mapping[str, Any]) -> str:
    """What the plot shows, in sentences."""
    parts = []
    for measure in SOUND:
        names = front(summary, measure)
        if names:
            listed = ", ".join(map(escape, names))
            parts.append(f"{MEASURES[measure].title}: {listed}.")
    if not parts:
        return "<p>Not measured yet.</p>"
    return (
        "<p class='sk-note'>Each mark is a policy, by name; left reads fewer weights. The dotted "
        "line joins the policies that none beats which reads no more. From fewest weights to most: "
        + " ".join(parts)
        + "</p>"
    )


def table(summary: Mapping[str, Any]) -> str:
    """The plot's figures as a table that scrolls inside itself."""
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in report.policy_rows(summary)
    )
    return scrolling_table("All policies", report.POLICY_HEADER, f"<tbody>{body}</tbody>")


def _card(claim: Mapping[str, Any]) -> str:
    verdict = claim["verdict"]
    found = "".join(f"<li>{escape(sentence)}</li>" for sentence in claim["findings"])
    return (
        f"<article class='sk-claim'><h2>{escape(claim['title'])}</h2>"
        f"<p class='sk-verdict'><span aria-hidden='true'>{_SIGNS[verdict]}</span> "
        f"{escape(verdict)}</p>"
        f"<h3>Our test</h3><p>{escape(_sentence(claim['test']))}</p>"
        f"<h3>Found</h3><ul>{found}</ul>"
        f"<h3>Command</h3><p><code>{escape(claim['command'])}</code></p></article>"
    )


def _unmeasured(title: str) -> str:
    return (
        f"<article class='sk-claim'><h2>{escape(title)}</h2>"
        "<p class='sk-verdict'>not measured yet</p>"
        f"<h3>Command</h3><p><code>{escape(claims_text.COMMAND)}</code></p></article>"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _held(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found
