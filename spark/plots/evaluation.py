"""Figures of an evaluation: what accuracy costs, word errors, differences beside their margin.

Policies stand by name at their marks or at the axis, so that colour carries nothing alone. Knows
a summary and Plotly; knows no page and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

Summary = Mapping[str, Any]
# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK, _INK, _GRID = "#2a7fd4", "#7c8593", "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 46, 120


@dataclass(frozen=True)
class Measure:
    """A measure of quality beside its cost.

    Attributes:
        title: of the axis.
        scale: of its values as they are shown.
        better: 1 where more is better, -1 where less is.
    """

    title: str
    scale: float
    better: int


MEASURES = {
    "sets": Measure("mean of sets, %", 100.0, 1),
    "correct_heard": Measure("right as heard, %", 100.0, 1),
    "wer": Measure("WER of speech against own text, %", 100.0, -1),
    "mos_predicted": Measure("predicted MOS (DNSMOS)", 1.0, 1),
}


def placed(summary: Summary, measure: str = "sets") -> dict[str, tuple[float, float]]:
    """(share of the weights read, the measure's value) of each policy that has both."""
    found = {}
    for name, of in summary["policies"].items():
        value, traffic = of.get(measure), of.get("traffic_ratio")
        if traffic is not None and value is not None:
            found[name] = (traffic, value["value"] if isinstance(value, Mapping) else value)
    return found


def tradeoff_figure(summary: Summary, measure: str = "sets") -> go.Figure:
    """Share of the weights read against a measure, a mark a policy with its 95 % interval.

    A mean without an interval, as of predicted MOS, stands without.
    """
    shown, at = MEASURES[measure], placed(summary, measure)
    values = [summary["policies"][name][measure] for name in at]
    spread = all(isinstance(value, Mapping) for value in values)
    figure = go.Figure(
        go.Scatter(
            x=[100 * traffic for traffic, _ in at.values()],
            y=[shown.scale * value for _, value in at.values()],
            error_y=_spread(values) if spread else None,
            text=list(at),
            textposition="top center",
            cliponaxis=False,
            mode="markers+text",
            marker={"color": _MARK, "size": 9},
            hovertemplate="%{text}<br>%{x:.1f} % of the weights, %{y:.2f}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="weights read, % of full depth")
    figure.update_yaxes(title_text=shown.title)
    return _dress(figure, 380)


def errors_figure(summary: Summary) -> go.Figure:
    """Word error rate of each policy with its 95 % interval."""
    measured = [(name, of["wer"]) for name, of in summary["policies"].items() if of["wer"]]
    figure = go.Figure(_whiskers(measured))
    figure.update_xaxes(title_text="WER of speech against own text, %", rangemode="tozero")
    return _dress(figure, _HEAD_PX + _ROW_PX * len(measured))


def gaps_figure(summary: Summary) -> go.Figure:
    """Differences from full depth with 95 % intervals, nought and the margin marked."""
    titles = ("right as heard, points", "WER, points")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.08)
    others = {
        n: of["against_full"] for n, of in summary["policies"].items() if "against_full" in of
    }
    margin = 100 * summary["margin"]
    for column, (measure, limit) in enumerate((("correct_heard", -margin), ("wer", margin)), 1):
        measured = [(name, gaps[measure]) for name, gaps in others.items() if gaps[measure]]
        figure.add_trace(_whiskers(measured), 1, column)
        figure.add_vline(x=0, line={"color": _INK, "width": 1}, row=1, col=column)
        figure.add_vline(x=limit, line={"color": _INK, "width": 1.5, "dash": "dash"}, row=1,
                         col=column)  # fmt: skip
    return _dress(figure, _HEAD_PX + _ROW_PX * len(others))


def _whiskers(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> go.Scatter:
    return go.Scatter(
        x=[100 * of["value"] for _, of in measured],
        y=[name for name, _ in measured],
        error_x=_spread([of for _, of in measured]),
        mode="markers",
        marker={"color": _MARK, "size": 8},
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )


def _spread(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Error bars from values to the ends of their intervals, in per cent."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * max(of["ci95"][1] - of["value"], 0) for of in figures],
        "arrayminus": [100 * max(of["value"] - of["ci95"][0], 0) for of in figures],
        "color": _MARK,
        "thickness": 1.5,
    }


def _dress(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        showlegend=False,
        margin={"l": 130, "r": 24, "t": 40, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False)
    return figure
