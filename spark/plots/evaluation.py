"""Figures of an evaluation: what accuracy costs, word errors, differences beside their margin.

Policies stand by name at their marks or at the axis, so that colour carries nothing alone. Knows
a summary and Plotly; knows no page and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spark.evaluation.tradeoff import MEASURES, SOUND, Summary, front, placed
from spark.plots.labels import sides

# Told apart from a light and a dark ground alike, at 3:1 or more.
_MARK, _INK, _GRID = "#2a7fd4", "#7c8593", "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX, _PANEL_PX = 46, 120, 230
_INSIDE_PX = 170  # of a panel's height, for marks and whiskers
_NARROW_PX = 420  # between a phone's panel and a desktop's: what names are kept apart for
# Kinds of policies by shape, beside their names; hollow where text exits too.
_SHAPES = {"full": "star", "spark": "circle", "schedule": "circle", "confidence": "square",
           "fixed": "diamond"}  # fmt: skip


def pareto_figure(summary: Summary, names: Sequence[str] = SOUND) -> go.Figure:
    """Weights read against each measure, a mark a policy, and a line along the front.

    Args:
        names: of `MEASURES`, a panel each from top to bottom.
    """
    titles = [MEASURES[name].title for name in names]
    figure = make_subplots(
        len(names), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.08
    )
    for row, name in enumerate(names, 1):
        scale, at = MEASURES[name].scale, placed(summary, name)
        line = [at[policy] for policy in front(summary, name)]
        figure.add_scatter(
            x=[100 * x for x, _ in line], y=[scale * y for _, y in line], mode="lines",
            line={"color": _INK, "width": 1, "dash": "dot"}, hoverinfo="skip", row=row, col=1,
        )  # fmt: skip
        figure.add_trace(_marks(summary, name), row, 1)
    figure.update_xaxes(title_text="weights read, % of full depth", row=len(names), col=1)
    figure = _dress(figure, _HEAD_PX + _PANEL_PX * len(names))
    return figure.update_layout(margin={"l": 60, "r": 60, "t": 40, "b": 56})


def _marks(summary: Summary, name: str) -> go.Scatter:
    """A mark a policy with its name, on the side where it lies on no other as far as that goes.

    Whiskers are 95 % intervals; a mean without them, as of predicted MOS, stands without.
    """
    at = placed(summary, name)
    order = sorted(at, key=lambda policy: at[policy][0])
    points = [(at[policy][0], at[policy][1]) for policy in order]
    values = [summary["policies"][policy][name] for policy in order]
    return go.Scatter(
        x=[100 * at[policy][0] for policy in order],
        y=[MEASURES[name].scale * at[policy][1] for policy in order],
        error_y=_spread(values) if all(isinstance(v, Mapping) for v in values) else None,
        text=order,
        textposition=sides(points, order, _NARROW_PX, _rise(values)),
        mode="markers+text",
        marker={"color": _MARK, "size": 10, "symbol": [_shape(policy) for policy in order],
                "line": {"color": _MARK, "width": 2}},
        cliponaxis=False,
        hovertemplate="%{text}<br>%{x:.1f} % of the weights, %{y:.2f}<extra></extra>",
    )  # fmt: skip


def _rise(values: Sequence[Any]) -> float:
    """Pixels from the least to the greatest of a panel's values, whose whiskers go farther."""
    if not values:
        return 0.0
    means = [v["value"] if isinstance(v, Mapping) else v for v in values]
    ends = [end for v in values if isinstance(v, Mapping) for end in v["ci95"]]
    whole = max((*means, *ends)) - min((*means, *ends))
    return _INSIDE_PX * (max(means) - min(means)) / whole if whole else 0.0


def _shape(name: str) -> str:
    shape = _SHAPES.get(name.split(":")[0], "circle")
    return f"{shape}-open" if name.endswith(":text") else shape


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
