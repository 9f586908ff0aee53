"""Figures of an evaluation: what accuracy costs, word errors, differences beside their margin.

Policies stand by name at their marks or at the axis, so that colour carries nothing alone. Knows
a summary and Plotly; knows no page and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

Summary = Mapping[str, Any]
# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK, _INK, _GRID = "#2a7fd4", "#7c8593", "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 46, 120


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
