"""Components of the Evidence page; its words are `spark.evaluation.evidence`'s."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from spark.evaluation import evidence
from spark.plots.evaluation import pareto_figure


def evidence_page(folder: Path = evidence.FOLDER) -> None:
    """Components of the Evidence page, from what a folder holds when the app starts."""
    found = evidence.read(folder)
    gr.Markdown("# Evidence")
    gr.HTML(evidence.introduction(found))
    gr.HTML(evidence.cards(found), elem_id="claims")
    if found.summary is None:
        return
    gr.Markdown("## What fewer weights cost", elem_classes="sk-section")
    gr.Plot(pareto_figure(found.summary), show_label=False, elem_id="pareto-plot",
            elem_classes="sk-plot")  # fmt: skip
    gr.HTML(evidence.told(found.summary), elem_id="pareto-told")
    with gr.Accordion("All figures", open=False):
        gr.HTML(evidence.table(found.summary))
