"""The figures of an analysis, each with the sentence that stands beside it.

Used by the Results page and the report alike. What is drawn is in `plots.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from listening_test import plots
from listening_test.profiles import rater_values, session_parts
from listening_test.tables import is_shown, means, order_note, span


@dataclass(frozen=True)
class Shown:
    """A figure: its id and heading, what it says in words, and the drawing."""

    name: str
    title: str
    sentence: str
    figure: plots.Figure


def figures(used: pd.DataFrame, result: Mapping[str, Any]) -> list[Shown]:
    """All figures of an analysis of one question, in the order of reading.

    Args:
        used: the rows that count, of that question.
        result: their analysis.
    """
    return [*_outcomes(result), *_orders(used, result), *_raters(used, result)]


def _outcomes(result: Mapping[str, Any]) -> Iterator[Shown]:
    if result["systems"]:
        yield Shown("means", "Means", _means_told(result), plots.systems_figure(result))
    if result["pairs"]:
        yield Shown("differences", "Differences", _pairs_told(result), plots.pairs_figure(result))
    if result.get("preferences"):
        sentence = (
            "A dot is the share of the untied votes for the first of a pair, the whisker its 95 % "
            "interval with raters and texts both random; on the line at one half neither is "
            f"preferred. {_preferred(result)}"
        )
        yield Shown("shares", "Preferences", sentence, plots.preferences_figure(result))


def _means_told(result: Mapping[str, Any]) -> str:
    drawn = (
        "A dot is a mean, the thick whisker its 95 % interval with raters and texts both random, "
        "the thin one the naive interval, for comparison only."
    )
    ranked = sorted(means(result).items(), key=lambda entry: entry[1]["mos"])
    (low, lowest), (high, highest) = ranked[0], ranked[-1]
    if len(ranked) == 1:
        return f"{drawn} {high} has a mean of {highest['mos']:.2f} ({_interval(highest)})."
    return (
        f"{drawn} {high} has the highest mean, {highest['mos']:.2f} ({_interval(highest)}), {low} "
        f"the lowest, {lowest['mos']:.2f} ({_interval(lowest)}). Whether two differ is told by "
        "their difference, not by whether their whiskers overlap."
    )


def _interval(part: Mapping[str, Any]) -> str:
    return f"95 % interval {span(part)}"


def _pairs_told(result: Mapping[str, Any]) -> str:
    pairs = result["pairs"]
    shown = sum(is_shown(pair) for pair in pairs)
    told = (
        "A dot right of nought means that the first of a pair is rated higher; whiskers are 95 % "
        f"intervals. Of {len(pairs)} {'difference' if len(pairs) == 1 else 'differences'} "
        f"{shown or 'none'} {'is' if shown < 2 else 'are'} shown by interval and corrected test "
        "together."
    )
    if result["margin"] is None:
        return told
    fine = sum(bool(pair["non_inferior"]) for pair in pairs)
    if not fine:
        return f"{told} No interval lies wholly right of the dashed line, the margin."
    return (
        f"{told} The dashed line is the margin of non-inferiority: {fine} of the intervals "
        f"{'lies' if fine == 1 else 'lie'} wholly right of it, so that the first is not worse than "
        "the second by that much."
    )


def _preferred(result: Mapping[str, Any]) -> str:
    clear = [
        p["a"] if p["share_ci95"][0] > 0.5 else p["b"]
        for p in result["preferences"]
        if p["share_ci95"] and not p["share_ci95"][0] <= 0.5 <= p["share_ci95"][1]
    ]
    if not clear:
        return "No interval leaves one half out: no preference is shown."
    return (
        f"{len(clear)} of {len(result['preferences'])} intervals leave one half out, in favour of "
        f"{', '.join(dict.fromkeys(clear))}."
    )


def _orders(used: pd.DataFrame, result: Mapping[str, Any]) -> Iterator[Shown]:
    title = "Order"
    if result["systems"]:
        if parts := session_parts(used):
            sentence = (
                "How far scores lie above the mean of their stimulus and of their rater, from the "
                f"first trials of the session to the last. {order_note(result)}"
            )
            yield Shown("order", title, sentence, plots.session_figure(parts))
    elif any(pair.get("order_bias") for pair in result["pairs"]):
        sentence = (
            "How much better the clip heard second is rated, whichever it is; right of nought the "
            "second has an advantage. The differences above are free of it, since both orders "
            "count alike."
        )
        yield Shown("order", title, sentence, plots.order_bias_figure(result))
    elif any(pair["first_share"] is not None for pair in result.get("preferences", [])):
        sentence = (
            "How often the clip heard first is preferred, whichever it is; on the line at one "
            "half the order does nothing."
        )
        yield Shown("order", title, sentence, plots.first_shares_figure(result))


def _raters(used: pd.DataFrame, result: Mapping[str, Any]) -> Iterator[Shown]:
    found = rater_values(used, result)
    if found is None:
        return
    sentence = "A mark is one rater: who stands apart uses the scale, or hears, differently."
    widest = max(found.values, key=lambda name: max(found.values[name]) - min(found.values[name]))
    own = found.values[widest]
    if len(own) > 1:
        sentence += (
            f" They differ most on {widest}, from {min(own):.2f} to {max(own):.2f} over "
            f"{len(own)} raters."
        )
    r = (result.get("agreement") or {}).get("mean_rater_correlation")
    if r is not None:
        sentence += f" With the mean of the others a rater correlates at {r:.2f} on average."
    yield Shown("raters", "Raters", sentence, plots.raters_figure(found))
