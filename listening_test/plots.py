"""Figures of an analysis: means as dots with whiskers, differences beside their margin, raters.

Never bars from zero: a scale from 1 to 5 has no zero. Names stand at the axis, so that colour
carries nothing alone. Knows an analysis and Plotly; knows no page and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import plotly.graph_objects as go

from listening_test.profiles import RaterValues
from listening_test.statistics import Estimate
from listening_test.tables import means

Figure: TypeAlias = go.Figure
# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK = "#2a7fd4"
_QUIET = "#7c8593"
_GRID = "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 46, 110


def systems_figure(result: Mapping[str, Any]) -> Figure:
    """MOS of each system and anchor with its clustered interval; the naive one beside it, thin."""
    shown = means(result)
    figure = _whiskers(
        "mean score, 95 % interval", list(shown), [v["mos"] for v in shown.values()],
        {
            "naive, for comparison": [v["ci95_naive"] for v in shown.values()],
            "two-way clustered": [v["ci95"] for v in shown.values()],
        },
    )  # fmt: skip
    thin = {"color": _QUIET, "symbol": "line-ns-open"}
    figure.data[0].update(marker=thin, error_x={"color": _QUIET, "thickness": 1.2})
    return figure


def pairs_figure(result: Mapping[str, Any]) -> Figure:
    """Differences with their intervals, a line at nought, and the margin of non-inferiority."""
    pairs = result["pairs"]
    figure = _whiskers(
        "difference, 95 % interval", [f"{p['a']} − {p['b']}" for p in pairs],
        [p["difference"] for p in pairs], {"difference": [p["ci95"] for p in pairs]}, line=0,
    )  # fmt: skip
    if (margin := result["margin"]) is not None and pairs:
        figure.add_vline(
            x=-margin, line={"color": _QUIET, "width": 1.5, "dash": "dash"},
            annotation_text=f"margin −{margin:g}", annotation_position="top",
        )  # fmt: skip
    return figure


def preferences_figure(result: Mapping[str, Any]) -> Figure:
    """Share of the untied votes for the first of each pair, a line at one half."""
    pairs = result["preferences"]
    names = [f"{p['a']} over {p['b']}" for p in pairs]
    intervals = {"share": [p["share_ci95"] for p in pairs]}
    axis = "share of votes, 95 % interval"
    return _whiskers(axis, names, [p["share_a"] for p in pairs], intervals, line=0.5)


def order_bias_figure(result: Mapping[str, Any]) -> Figure:
    """How much better the clip heard second is rated, by pair, a line at nought."""
    pairs = [p for p in result["pairs"] if p["order_bias"]]
    return _whiskers(
        "second clip's advantage, 95 % interval", [f"{p['a']} and {p['b']}" for p in pairs],
        [p["order_bias"]["mean"] for p in pairs],
        {"bias": [p["order_bias"]["ci95"] for p in pairs]}, line=0,
    )  # fmt: skip


def first_shares_figure(result: Mapping[str, Any]) -> Figure:
    """How often the clip heard first is preferred, by pair, a line at one half."""
    pairs = result["preferences"]
    return _whiskers(
        "first clip's share, 95 % interval", [f"{p['a']} and {p['b']}" for p in pairs],
        [p["first_share"] for p in pairs], {"share": [p["first_share_ci95"] for p in pairs]},
        line=0.5,
    )  # fmt: skip


def session_figure(parts: Mapping[str, Estimate]) -> Figure:
    """How scores move over the session, from its first trials on top to its last.

    Args:
        parts: by the trials' numbers, how far scores lie above what is expected of them.
    """
    return _whiskers(
        "drift in points, 95 % interval",
        [f"trials {name}" for name in parts], [part.mean for part in parts.values()],
        {"drift": [part.listed() for part in parts.values()]}, line=0,
    )  # fmt: skip


def raters_figure(found: RaterValues) -> Figure:
    """One small mark a rater, systems or pairs one below the other."""
    figure = go.Figure()
    for name, own in found.values.items():
        figure.add_trace(
            go.Scatter(
                x=own, y=[name] * len(own), mode="markers", name=name,
                marker={"color": _MARK, "symbol": "line-ns-open", "size": 14, "opacity": 0.7},
                hovertemplate="one rater: %{x:.2f}<extra></extra>", showlegend=False,
            )
        )  # fmt: skip
    if found.centre is not None:
        figure.add_vline(x=found.centre, line={"color": _QUIET, "width": 1})
    return _dressed(figure, found.axis, len(found.values))


def _whiskers(
    axis: str,
    names: list[str],
    values: list[float | None],
    kinds: Mapping[str, list[list[float] | None]],
    line: float | None = None,
) -> Figure:
    """Dots with the whiskers of each kind of interval, and a line where nothing would be shown.

    What has no interval is a dot alone, and what has no value no dot.
    """
    figure = go.Figure()
    for title, intervals in kinds.items():
        rows = list(zip(values, intervals, strict=True))
        figure.add_trace(
            go.Scatter(
                x=values, y=names, mode="markers", name=title, text=[_told(*row) for row in rows],
                hovertemplate="%{y}: %{text}<extra></extra>",
                marker={"color": _MARK, "symbol": "circle", "size": 9},
                error_x={
                    "type": "data", "symmetric": False, "color": _MARK, "thickness": 2.5,
                    "width": 6,
                    "array": [i[1] - v if i and v is not None else 0 for v, i in rows],
                    "arrayminus": [v - i[0] if i and v is not None else 0 for v, i in rows],
                },
            )
        )  # fmt: skip
    if line is not None:
        figure.add_vline(x=line, line={"color": _QUIET, "width": 1})
    return _dressed(figure, axis, len(names))


def _told(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "not measured"
    span = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ", no interval"
    return f"{value:.2f}{span}"


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
    figure.update_xaxes(
        title={"text": axis, "font": {"size": 12}}, gridcolor=_GRID, zeroline=False, automargin=True
    )
    # The first system on top; room above and below it.
    figure.update_yaxes(autorange="reversed", automargin=True, gridcolor=_GRID, type="category")
    return figure
