"""Figures as HTML for pages that open anywhere and need nothing from outside."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


def script() -> str:
    """Plotly itself, for the head of a page with figures."""
    return f"<script>{get_plotlyjs()}</script>"


def markup(figure: go.Figure, name: str) -> str:
    """A figure as a piece of a page whose head holds `script()`; `name` is its id, made by code."""
    options = {"displayModeBar": False, "responsive": True}
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options)
    return html
