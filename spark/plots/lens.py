"""A reply's layers against its last: agreement as a map, layer by token.

Knows a lens map and Plotly; no model and no page.
"""

from __future__ import annotations

import plotly.graph_objects as go

from spark.lens import LensMap
from spark.modality import Slot

_INK = "#7c8593"
_LAYER_PX, _HEAD_PX, _TOKEN_PX, _LEFT_PX = 20, 130, 11, 80


def lens_figure(found: LensMap) -> go.Figure:
    """The overlap at each layer and token; a dot where both find another token likeliest."""
    layers = [str(layer) for layer in range(1, len(found.heads) + 1)]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(len(found.tokens))),
            y=layers,
            z=found.overlap.tolist(),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            customdata=_told(found),
            hovertemplate="%{customdata}<br>overlap %{z:.2f}<extra></extra>",
            colorbar={"title": {"text": "overlap"}, "thickness": 10, "tickvals": [0, 0.5, 1]},
        )
    )
    other = (~found.same).nonzero().tolist()
    figure.add_trace(
        go.Scatter(
            x=[token for _, token in other],
            y=[layers[layer] for layer, _ in other],
            mode="markers",
            # A ring of white keeps the dot apart from the darkest cell.
            marker={"size": 5, "color": "#c4560a", "line": {"width": 1, "color": "white"}},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title_text="token", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text="exit after layer", type="category", showgrid=False)
    figure.update_layout(
        template="none",
        height=_HEAD_PX + _LAYER_PX * len(layers),
        width=max(620, _LEFT_PX + _TOKEN_PX * len(found.tokens)),
        showlegend=False,
        margin={"l": _LEFT_PX, "r": 20, "t": 30, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
    )
    return figure


def _told(found: LensMap) -> list[list[str]]:
    """What hovering says of each cell; markup in a token's text is made harmless."""
    tokens = [token.replace("<", "&lt;") for token in found.tokens]
    return [
        [
            f"layer {layer}, token {at}: {token}, {_slot(found.slots[at])} slot, "
            + ("same token likeliest" if found.same[layer - 1, at] else "another token likeliest")
            for at, token in enumerate(tokens)
        ]
        for layer in range(1, len(found.heads) + 1)
    ]


def _slot(slot: Slot | None) -> str:
    return "no" if slot is None else slot.value


def lens_sentence(found: LensMap) -> str:
    """What the map shows, in words: for each kind of slot, from which layer on it agrees."""
    parts = []
    for slot in (Slot.SPEECH, Slot.TEXT):
        at = [index for index, kind in enumerate(found.slots) if kind is slot]
        if not at:
            continue
        shares = [float(row) for row in found.same[:, at].float().mean(1)]
        good = [
            layer
            for layer in range(1, len(shares) + 1)
            if all(share >= 0.9 for share in shares[layer - 1 :])
        ]
        parts.append(
            f"in {len(at)} {slot.value} slots, from layer {good[0]} of {len(shares)} on, 9 of 10 "
            "tokens or more are the last layer's likeliest too"
        )
    if not parts:
        return "No token of this reply stands where the layout says."
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."
