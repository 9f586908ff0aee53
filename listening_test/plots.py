"""Figures of an analysis: means as dots with whiskers, differences beside their margin, raters.

Never bars from zero: a scale from 1 to 5 has no zero. Names stand at the axis, so that colour
carries nothing alone. Knows an analysis and Plotly; knows no page and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go

Figure: TypeAlias = go.Figure
# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK = "#2a7fd4"
_QUIET = "#7c8593"
_GRID = "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 46, 110


def systems_figure(result: Mapping[str, Any]) -> Figure:
    """MOS of each system with its clustered interval; the naive one beside it, thin."""
    rows = [(name, values) for name, values in result["systems"].items()]
    figure = go.Figure()
    _whiskers(
        figure, [name for name, _ in rows], [v["mos"] for _, v in rows],
        [v["ci95_naive"] for _, v in rows], "naive, for comparison", _QUIET, "line-ns-open", 1.2,
    )  # fmt: skip
    _whiskers(
        figure, [name for name, _ in rows], [v["mos"] for _, v in rows],
        [v["ci95"] for _, v in rows], "two-way clustered", _MARK, "circle", 2.5,
    )  # fmt: skip
    return _dressed(figure, "mean opinion score, 95 % interval", len(rows))


def pairs_figure(result: Mapping[str, Any]) -> Figure:
    """Differences with their intervals, a line at nought, and the margin of non-inferiority."""
    pairs = result["pairs"]
    figure = go.Figure()
    _whiskers(
        figure, [f"{p['a']} − {p['b']}" for p in pairs], [p["difference"] for p in pairs],
        [p["ci95"] for p in pairs], "difference", _MARK, "circle", 2.5,
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": _QUIET, "width": 1})
    if (margin := result["margin"]) is not None and pairs:
        figure.add_vline(
            x=-margin, line={"color": _QUIET, "width": 1.5, "dash": "dash"},
            annotation_text=f"margin −{margin:g}", annotation_position="top",
        )  # fmt: skip
    return _dressed(figure, "difference, 95 % interval", len(pairs))


def preferences_figure(result: Mapping[str, Any]) -> Figure:
    """Share of the untied votes for the first of each pair, a line at one half."""
    pairs = result["preferences"]
    figure = go.Figure()
    _whiskers(
        figure, [f"{p['a']} over {p['b']}" for p in pairs], [p["share_a"] for p in pairs],
        [p["share_ci95"] for p in pairs], "share", _MARK, "circle", 2.5,
    )  # fmt: skip
    figure.add_vline(x=0.5, line={"color": _QUIET, "width": 1})
    return _dressed(figure, "share of the untied votes, 95 % interval", len(pairs))


def raters_figure(frame: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Each rater's mean of each system: one small dot a rater, systems one below the other.

    Args:
        frame: rows that count: rater_id, system, score.
        order: of the systems.
    """
    means = frame.groupby(["system", "rater_id"])["score"].mean()
    figure = go.Figure()
    for name in order:
        if name not in means.index.get_level_values(0):
            continue
        own = means[name]
        figure.add_trace(
            go.Scatter(
                x=own.to_numpy(), y=[name] * len(own), mode="markers", name=name,
                marker={"color": _MARK, "symbol": "line-ns-open", "size": 14, "opacity": 0.7},
                hovertemplate="one rater: %{x:.2f}<extra></extra>", showlegend=False,
            )
        )  # fmt: skip
    return _dressed(figure, "each rater's mean", len(order))


def _whiskers(
    figure: go.Figure, names: list[str], values: list[float | None],
    intervals: list[list[float] | None], title: str, colour: str, symbol: str, width: float,
) -> None:  # fmt: skip
    """Dots with asymmetric whiskers; what has no interval is a dot alone, and no value no dot."""
    above = [i[1] - v if i and v is not None else 0 for v, i in zip(values, intervals, strict=True)]
    below = [v - i[0] if i and v is not None else 0 for v, i in zip(values, intervals, strict=True)]
    told = [
        f"{v:.2f}" + (f" ({i[0]:.2f} to {i[1]:.2f})" if i else ", no interval")
        if v is not None
        else "not measured"
        for v, i in zip(values, intervals, strict=True)
    ]
    figure.add_trace(
        go.Scatter(
            x=values, y=names, mode="markers", name=title, text=told,
            hovertemplate="%{y}: %{text}<extra></extra>",
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "array": above, "arrayminus": below,
                "color": colour, "thickness": width, "width": 6,
            },
        )
    )  # fmt: skip


def _dressed(figure: go.Figure, axis: str, rows: int) -> Figure:
    figure.update_layout(
        height=_HEAD_PX + max(rows, 1) * _ROW_PX,
        margin={"l": 10, "r": 10, "t": 40, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        template="none",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _QUIET},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        dragmode=False,
    )
    figure.update_xaxes(title_text=axis, gridcolor=_GRID, zeroline=False, automargin=True)
    # The first system on top; room above and below it.
    figure.update_yaxes(autorange="reversed", automargin=True, gridcolor=_GRID, type="category")
    return figure
