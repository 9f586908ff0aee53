"""Figures of an evaluation: what accuracy costs, word errors, differences beside their margin.

Policies stand by name at their marks or at the axis, so that colour carries nothing alone. Knows
a summary and Plotly; knows no page and no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

Summary = Mapping[str, Any]
# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK, _INK, _GRID = "#2a7fd4", "#7c8593", "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 46, 120
# Kinds of policies by shape, beside their names; hollow where text exits too.
_SHAPES = {"full": "star", "spark": "circle", "schedule": "circle", "confidence": "square",
           "fixed": "diamond"}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A figure of a policy that stands over the weights it read.

    Attributes:
        name: in the summary.
        title: for people.
        scale: from the summary's unit to the axis's.
        up: whether more is better.
    """

    name: str
    title: str
    scale: float
    up: bool


MEASURES = (
    Measure("correct_heard", "Right as heard, %", 100, True),
    Measure("wer", "WER of speech against own text, %", 100, False),
    Measure("mos_predicted", "Predicted MOS", 1, True),
)


def front(summary: Summary, measure: Measure) -> list[str]:
    """Policies that none beats which reads no more weights, from fewest weights to most."""
    kept: list[str] = []
    best, sign = -math.inf, 1 if measure.up else -1
    placed = _placed(summary, measure)
    for name in sorted(placed, key=lambda one: (placed[one][0], -sign * placed[one][1])):
        if sign * placed[name][1] > best:
            kept.append(name)
            best = sign * placed[name][1]
    return kept


def pareto_figure(summary: Summary) -> go.Figure:
    """Weights read against accuracy, word errors and predicted MOS; a mark a policy."""
    titles = [measure.title for measure in MEASURES]
    figure = make_subplots(3, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.08)
    for row, measure in enumerate(MEASURES, 1):
        placed = _placed(summary, measure)
        line = [placed[name] for name in front(summary, measure)]
        figure.add_scatter(
            x=[100 * at[0] for at in line], y=[measure.scale * at[1] for at in line], mode="lines",
            line={"color": _INK, "width": 1, "dash": "dot"}, hoverinfo="skip", row=row, col=1,
        )  # fmt: skip
        figure.add_trace(_marks(placed, measure), row, 1)
    figure.update_xaxes(title_text="weights read, % of full depth", row=3, col=1)
    figure = _dress(figure, 780)
    return figure.update_layout(margin={"l": 60, "r": 60, "t": 40, "b": 56})


def _placed(
    summary: Summary, measure: Measure
) -> dict[str, tuple[float, float, Mapping[str, Any] | None]]:
    """Traffic, value and, where it has an interval, the whole figure of each measured policy."""
    found = {}
    for name, of in summary["policies"].items():
        figure, traffic = of.get(measure.name), of["traffic_ratio"]
        if figure is not None and traffic is not None:
            whole = figure if isinstance(figure, Mapping) else None
            found[name] = (traffic, whole["value"] if whole else figure, whole)
    return found


def _marks(
    placed: Mapping[str, tuple[float, float, Mapping[str, Any] | None]], measure: Measure
) -> go.Scatter:
    """A mark a policy with its name, by turns above and below, so that neighbours do not meet."""
    order = sorted(placed, key=lambda name: placed[name][0])
    wholes = [placed[name][2] for name in order]
    known = [whole for whole in wholes if whole is not None]
    return go.Scatter(
        x=[100 * placed[name][0] for name in order],
        y=[measure.scale * placed[name][1] for name in order],
        error_y=_spread(known) if len(known) == len(order) else None,
        text=order,
        textposition=["top center" if i % 2 else "bottom center" for i in range(len(order))],
        mode="markers+text",
        marker={"color": _MARK, "size": 10, "symbol": [_shape(name) for name in order],
                "line": {"color": _MARK, "width": 2}},
        cliponaxis=False,
        hovertemplate="%{text}<br>%{x:.1f} % of the weights, %{y:.2f}<extra></extra>",
    )  # fmt: skip


def _shape(name: str) -> str:
    shape = _SHAPES.get(name.split(":")[0], "circle")
    return f"{shape}-open" if name.endswith(":text") else shape


def tradeoff_figure(summary: Summary) -> go.Figure:
    """Share of the weights read against points, a mark a policy with its 95 % interval."""
    placed = [
        (name, of["traffic_ratio"], of["sets"])
        for name, of in summary["policies"].items()
        if of["traffic_ratio"] is not None and of["sets"]
    ]
    figure = go.Figure(
        go.Scatter(
            x=[100 * traffic for _, traffic, _ in placed],
            y=[100 * sets["value"] for _, _, sets in placed],
            error_y=_spread([sets for _, _, sets in placed]),
            text=[name for name, _, _ in placed],
            textposition="top right",
            mode="markers+text",
            marker={"color": _MARK, "size": 9},
            hovertemplate="%{text}<br>%{x:.1f} % of the weights, %{y:.1f} points<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="weights read, % of full depth")
    figure.update_yaxes(title_text="mean of sets, %")
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
