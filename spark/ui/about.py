"""Components of the About page; its words are `spark.about`'s."""

from __future__ import annotations

import gradio as gr

from spark import about
from spark.shelf import Shelf


def about_page(shelf: Shelf) -> None:
    """Components of the About page."""
    with gr.Column(elem_classes="sk-about"):
        gr.Markdown("# About\n" + about.METHOD)
        gr.HTML(about.picture())
        gr.Markdown(about.MODEL + about.models_table(list(shelf.infos.values())) + about.CITE)
