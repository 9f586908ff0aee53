"""Figures of a calibration: the sweep's maps, speech against text by layer, cost against loss.

Reads what calibration.json holds; knows Plotly, no model and no page.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

_BLUE, _ORANGE, _INK, _GRID = "#2a6fc4", "#c4560a", "#7c8593", "rgba(127, 133, 147, 0.25)"
_GAP = 0.1  # between maps, for their colour bars
_MAPS = (
    ("overlap", "overlap with full depth", "Blues"),
    ("kl", "KL(full depth || exit), nats", "Oranges"),
    ("entropy", "entropy at the exit, nats", "Purples"),
)
_LOSSES = (
    ("accuracy", "answers heard right: loss, points", 100.0),
    ("wer", "word error rate: gain, points", 100.0),
    ("mos", "predicted MOS: loss", 1.0),
)


def sweep_maps(held: dict[str, Any]) -> go.Figure:
    """Overlap, divergence and entropy by exit layer and position, one map each."""
    places = list(held["sweep"])
    layers = list(held["sweep"][places[0]]["exits"])
    figure = make_subplots(1, len(_MAPS), subplot_titles=[title for _, title, _ in _MAPS],
                           shared_yaxes=True, horizontal_spacing=_GAP)  # fmt: skip
    width = (1 + _GAP) / len(_MAPS)  # of a map and the gap after it
    for column, (name, _, colours) in enumerate(_MAPS, 1):
        values = [[held["sweep"][p]["exits"][layer][name] for p in places] for layer in layers]
        figure.add_trace(
            go.Heatmap(
                x=places, y=[f"layer {layer}" for layer in layers], z=values, colorscale=colours,
                colorbar={"len": 0.9, "thickness": 10, "x": column * width - _GAP},
                texttemplate="%{z:.2f}" if len(places) < 9 else None,
                hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
            ),
            1, column,
        )  # fmt: skip
    return _dressed(figure, 360)


def mass_lines(held: dict[str, Any]) -> go.Figure:
    """Probability of speech and of text after each layer, a panel for each modality's slots."""
    figure = make_subplots(1, 2, subplot_titles=("in speech slots", "in text slots"),
                           shared_yaxes=True)  # fmt: skip
    for column, slot in enumerate(("speech", "text"), 1):
        places = [place for place in held["sweep"] if place.startswith(slot)]
        for name, colour, dash in (("speech", _ORANGE, None), ("text", _BLUE, "dash")):
            for number, place in enumerate(places):
                masses = held["sweep"][place][f"{name}_mass"]
                figure.add_trace(
                    go.Scatter(
                        x=list(range(1, len(masses) + 1)), y=masses, mode="lines+markers",
                        line={"color": colour, "dash": dash, "width": 1.5},
                        name=f"{name} tokens", legendgroup=name,
                        showlegend=column == 1 and number == 0,
                        hovertemplate=f"{place}, layer %{{x}}: {name} %{{y:.3f}}<extra></extra>",
                    ),
                    1, column,
                )  # fmt: skip
        figure.update_xaxes(title_text="layer", row=1, col=column)
    figure.update_yaxes(title_text="probability, logit lens", range=[0, 1.02], row=1, col=1)
    return _dressed(figure, 340)


def pareto(held: dict[str, Any]) -> go.Figure:
    """Each loss against weights read, with 95 % intervals, limits, and what nothing undercuts."""
    names = [entry for entry in _LOSSES if entry[0] in held["schedules"][0]["losses"]]
    figure = make_subplots(1, len(names), subplot_titles=[title for _, title, _ in names],
                           horizontal_spacing=0.08)  # fmt: skip
    for column, (name, _, scale) in enumerate(names, 1):
        for kind, symbol, wanted in (
            ("on the Pareto front", "circle", True),
            ("undercut by another", "circle-open", False),
        ):
            rows = [row for row in held["schedules"] if row["front"] is wanted]
            figure.add_trace(_points(rows, name, scale, kind, symbol, column == 1), 1, column)
        limit = scale * held["schedules"][0]["losses"][name]["limit"]
        figure.add_hline(limit, line={"color": _ORANGE, "dash": "dash"}, row=1, col=column,
                         annotation_text="limit")  # fmt: skip
        figure.add_hline(0.0, line={"color": _INK, "width": 1}, row=1, col=column)
        figure.update_xaxes(title_text="weights read, % of full depth's", row=1, col=column)
    return _dressed(figure, 400)


def _points(
    rows: list[dict[str, Any]], name: str, scale: float, kind: str, symbol: str, legend: bool
) -> go.Scatter:
    losses = [row["losses"][name] for row in rows]
    return go.Scatter(
        x=[100 * row["traffic_ratio"] for row in rows],
        y=[scale * loss["value"] for loss in losses],
        error_y={"array": [1.96 * scale * loss["error"] for loss in losses], "color": _GRID},
        mode="markers+text",
        text=[row["notation"] if len(row["notation"]) < 16 else "" for row in rows],
        textposition="top center",
        textfont={"size": 10},
        marker={"symbol": symbol, "size": 9, "color": _BLUE, "line": {"width": 2, "color": _BLUE}},
        name=kind,
        legendgroup=kind,
        showlegend=legend,
        customdata=[[row["notation"], row["n"], 100 * row["saving"]] for row in rows],
        hovertemplate="%{customdata[0]}<br>%{y:.2f} at %{x:.1f} % of the weights<br>"
        "%{customdata[1]} prompts, %{customdata[2]:.1f} % of speech depth saved<extra></extra>",
    )


def _dressed(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 60, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        legend={"orientation": "h", "y": 1.2, "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False)
    return figure
