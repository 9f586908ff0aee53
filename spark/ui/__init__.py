"""The Compare, Evidence, Experiments and About pages: the one part of spark/ that imports gradio.

    page        what stands where on the Compare page, and which event runs what
    form        what a visitor asks for: prompt, recording, model, settings
    board       what comes of it: status, cards, plots, tables
    runs        a run: begun, followed as it streams, stopped
    live        a run's sound while it is made
    blind       a run that is judged before anyone is told which is which
    share       links that restore a form, and the zip
    evidence    the paper's claims and what became of them
    experiments an evaluation's items, costs and one item's layers

Wires only: runs come from `spark.compare`, HTML from `spark.cards`, figures from `spark.plots`.
Handlers are plain methods that take values and give updates by component, so that tests call
them without a server.
"""

from spark.ui.about import about_page
from spark.ui.evidence import evidence_page
from spark.ui.experiments import ExperimentsPage
from spark.ui.form import EXAMPLES
from spark.ui.page import ComparePage

__all__ = ["EXAMPLES", "ComparePage", "ExperimentsPage", "about_page", "evidence_page"]
