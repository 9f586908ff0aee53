"""Figures of a comparison: depth at every token, the exits' drift, depths by modality.

Colour and mark by modality, the same in every plot, so that neither is needed alone. Knows traces
and Plotly; knows no page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spark.comparison import Reply
from spark.findings import POLICY_TITLES
from spark.modality import Modality
from spark.trace import Step, Trace

Axis = Literal["tokens", "seconds"]


@dataclass(frozen=True)
class Look:
    """How a modality is drawn: colour, mark, bar pattern."""

    colour: str
    symbol: str
    pattern: str


# A blue and an orange that all common kinds of colour vision tell apart, at 3:1 or more against
# the page's light and its dark ground: a figure does not know which of them it lies on.
LOOKS = {
    Modality.TEXT: Look("#2a7fd4", "square", "/"),
    Modality.SPEECH: Look("#d9660a", "circle", ""),
    Modality.CONTROL: Look("#7c8593", "x-thin", "x"),
}
_INK = "#7c8593"  # text; the page's style sheet gives it the page's own colour
_GRID = "rgba(127, 133, 147, 0.25)"
_ROW_PX, _HEAD_PX = 120, 110


def depth_figure(replies: Sequence[Reply], axis: Axis = "tokens", drift: bool = True) -> go.Figure:
    """Depth at every token, one row a policy on a shared x axis.

    Args:
        replies: those that exist, in order.
        axis: token number, or the audio's time where it is known.
        drift: whether a row below shows how far exits lay from full depth, where that is known.
    """
    titles = [POLICY_TITLES.get(reply.policy, reply.policy) for reply in replies] or [""]
    drifted = [reply for reply in replies if drift and reply.trace.drifted()]
    if drifted:
        titles.append("Drift: distance of exits from full depth")
    rows = len(titles)
    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.32 / rows,
                           subplot_titles=titles)  # fmt: skip
    for row, reply in enumerate(replies, 1):
        for modality in Modality:
            steps = [step for step in reply.trace.steps if step.modality is modality]
            if steps:
                figure.add_trace(_marks(steps, reply, modality, axis, row == 1), row, 1)
        if refreshed := [step for step in reply.trace.steps if step.refresh]:
            figure.add_trace(_refreshes(refreshed, axis, reply.policy == "spark"), row, 1)
        if reply.trace.rejected:
            figure.add_trace(_taken_back(reply.trace.rejected, axis, reply.policy), row, 1)
        layers = len(reply.trace.weights.layers)
        figure.update_yaxes(range=[0, layers * 1.16], tickvals=_ticks(reply), row=row, col=1)
    for reply in drifted:
        figure.add_trace(_drift_line(reply, axis), rows, 1)
    if drifted:
        figure.update_yaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1], row=rows, col=1)
    name = "audio position, s" if axis == "seconds" else "token"
    figure.update_xaxes(title_text=name, row=rows, col=1)
    _dress(figure, _HEAD_PX + rows * _ROW_PX)
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    return figure


def _marks(
    steps: Sequence[Step], reply: Reply, modality: Modality, axis: Axis, legend: bool
) -> go.Scatter:
    look, layers = LOOKS[modality], len(reply.trace.weights.layers)
    return go.Scatter(
        x=[_place(step, axis) for step in steps],
        y=[step.depth for step in steps],
        mode="markers",
        marker={
            "color": look.colour,
            # A row that waits for its upper layers is hollow.
            "symbol": [look.symbol + "-open" * (step.depth < layers) for step in steps],
            "size": 7,
            "line": {"width": 1.5, "color": look.colour},
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [0] * len(steps),
            "arrayminus": [step.depth for step in steps],
            "color": look.colour,
            "thickness": 1.2,
            "width": 0,
        },
        name=modality.value,
        legendgroup=modality.value,
        showlegend=legend,
        text=[hover(step, layers) for step in steps],
        hovertemplate="%{text}<extra></extra>",
        customdata=[[reply.policy, step.index, _seconds(step)] for step in steps],
    )


def _refreshes(steps: Sequence[Step], axis: Axis, legend: bool) -> go.Scatter:
    """Triangles on top; beside them K where a schedule moves it."""
    return go.Scatter(
        x=[_place(step, axis) for step in steps],
        y=[step.depth * 1.09 for step in steps],
        mode="markers+text",
        text=["" if step.k is None else str(step.k) for step in steps],
        textposition="middle right",
        textfont={"size": 10},
        marker={"symbol": "triangle-down-open", "size": 7, "color": _INK},
        name="refresh (catch-up)",
        legendgroup="refresh",
        showlegend=legend,
        hoverinfo="skip",
    )


def _taken_back(steps: Sequence[Step], axis: Axis, policy: str) -> go.Scatter:
    """Drafts that do not stand, under the marks of those that took their places."""
    return go.Scatter(
        x=[_place(step, axis) for step in steps],
        y=[step.depth * 0.85 for step in steps],
        mode="markers",
        marker={"symbol": "diamond-x-open", "size": 8, "color": _INK},
        name="taken back",
        legendgroup="taken back",
        showlegend=policy == "spark",
        text=[f"<b>token {step.index}</b>: a draft at depth {step.depth}, taken back"
              for step in steps],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _drift_line(reply: Reply, axis: Axis) -> go.Scatter:
    steps, name = reply.trace.drifted(), POLICY_TITLES.get(reply.policy, reply.policy)
    first = reply.policy == "spark"
    return go.Scatter(
        x=[_place(step, axis) for step in steps],
        y=[step.drift for step in steps],
        mode="lines+markers",
        line={"width": 1.5, "color": _INK, "dash": "solid" if first else "dot"},
        marker={"symbol": "circle" if first else "square-open", "size": 5},
        name=f"drift, {name}",
        text=[f"<b>token {s.index}</b>, {name}<br>{_drift(s)}" for s in steps],
        hovertemplate="%{text}<extra></extra>",
    )


def _drift(step: Step) -> str:
    return f"{100 * (1 - step.drift):.0f} % shared with full depth, KL {step.kl:.3f} nats"


def hover(step: Step, layers: int) -> str:
    """What a token says of itself under the pointer; the model's own text is escaped."""
    words = step.text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    said = f" “{words}”" if words else ""
    lines = [f"<b>token {step.index}</b>: {step.modality.value}{said}"]
    if not math.isnan(step.time_s):
        lines.append(f"at {step.time_s:.2f} s")
    lines.append(f"depth {step.depth} of {layers}, head {step.head}")
    if step.refresh:
        lines.append("refresh: earlier exits caught up")
    elif step.depth < layers:
        lines.append(f"exit: {step.pending} waiting for the next refresh")
    if not math.isnan(step.confidence):
        lines.append(f"confidence {step.confidence:.2f}")
    if not math.isnan(step.drift):
        lines.append(_drift(step))
    if step.refresh and step.k is not None:
        lines.append(f"K is {step.k} from here")
    return "<br>".join(lines)


def histogram_figure(replies: Sequence[Reply]) -> go.Figure:
    """How many tokens ran how deep, by modality, one panel a policy."""
    columns = max(1, len(replies))
    titles = [POLICY_TITLES.get(reply.policy, reply.policy) for reply in replies] or [""]
    figure = make_subplots(1, columns, shared_yaxes=True, subplot_titles=titles,
                           horizontal_spacing=0.05)  # fmt: skip
    depths = sorted({step.depth for reply in replies for step in reply.trace.steps})
    for column, reply in enumerate(replies, 1):
        for modality in Modality:
            counts = [_count(reply.trace, modality, depth) for depth in depths]
            figure.add_trace(_bars(depths, counts, modality, column == 1), 1, column)
        figure.update_xaxes(title_text="layers run", type="category", row=1, col=column)
    figure.update_yaxes(title_text="tokens", row=1, col=1)
    figure.update_layout(barmode="stack", bargap=0.35)
    _dress(figure, 300)
    return figure


def _bars(depths: Sequence[int], counts: Sequence[int], modality: Modality, legend: bool) -> go.Bar:
    return go.Bar(
        x=[str(depth) for depth in depths],
        y=list(counts),
        name=modality.value,
        legendgroup=modality.value,
        showlegend=legend,
        marker={
            "color": LOOKS[modality].colour,
            "pattern": {"shape": LOOKS[modality].pattern, "solidity": 0.25, "size": 6},
        },
        hovertemplate=f"%{{y}} {modality.value} tokens at depth %{{x}}<extra></extra>",
    )


def _count(trace: Trace, modality: Modality, depth: int) -> int:
    return sum(step.modality is modality and step.depth == depth for step in trace.steps)


def _ticks(reply: Reply) -> list[int]:
    """0, every depth in use, and the model's."""
    used = {step.depth for step in reply.trace.steps} | {len(reply.trace.weights.layers)}
    spread = [0]
    for depth in sorted(used, reverse=True):
        if all(abs(depth - other) >= 2 for other in spread):
            spread.append(depth)
    return sorted(spread)


def _place(step: Step, axis: Axis) -> float:
    return _seconds(step) or 0.0 if axis == "seconds" else step.index


def _seconds(step: Step) -> float | None:
    return None if math.isnan(step.time_s) else step.time_s


def _dress(figure: go.Figure, height: int) -> None:
    """What all figures share: no background of their own, one font, a legend on top."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 44, "r": 12, "t": 64, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
        },
        hoverlabel={"align": "left", "bgcolor": "#1f2937", "font": {"color": "#ffffff"}},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False)
