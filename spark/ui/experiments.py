"""The Experiments page: an evaluation's items, costs, and the layers of one reply.

Wires only: rows come from `spark.evaluation.experiment`, figures from `spark.plots`, what is heard
from `spark.evaluation.replay`. The one page that reads folders, by name below a root.
"""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from spark import cards
from spark.evaluation import experiment as folder
from spark.evaluation import tradeoff
from spark.evaluation.experiment import Experiment, Row
from spark.evaluation.listing import item_table, items_table
from spark.evaluation.replay import replay
from spark.models.base import SpokenLM
from spark.plots import evaluation as plots
from spark.plots.lens import lens_figure, lens_sentence
from spark.shelf import Shelf

_ALL = "all"
_ORDERS = (("as asked", "asked"), ("worst word errors first", "wer"))
_SHOWN = 25  # items at a time
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
Updates = dict[Any, Any]
log = logging.getLogger(__name__)


class ExperimentsPage:
    """Components and handlers of the page; call inside a `gr.Blocks` context.

    Args:
        shelf: the models.
        root: folder below which evaluations are found.
        demo: the app, whose page loads.
        concurrency_id: shared by everything that runs a model, so that one runs at a time.
    """

    def __init__(
        self, shelf: Shelf, root: Path, demo: gr.Blocks, concurrency_id: str = "model"
    ) -> None:
        self.shelf, self.root = shelf, root
        gr.Markdown("# Experiments\nEvaluations, item by item.", elem_classes="sk-top")
        self.folder = gr.Dropdown([], label="Evaluation", visible=False, elem_id="experiment")
        self.note = gr.HTML(padding=False, elem_id="experiment-note")
        with gr.Column(visible=False) as self.shown:
            self._items()
            self._front()
            self._one()
        self.filters = [self.folder, self.family, self.policy, self.disagreed, self.order]
        self.cleared = [self.told, self.players, self.map, self.map_note]
        self._connect(demo, concurrency_id)

    # Components

    def _items(self) -> None:
        with gr.Row():
            self.family = gr.Dropdown([_ALL], value=_ALL, label="Family or set")
            self.policy = gr.Dropdown([_ALL], value=_ALL, label="Policy")
            self.order = gr.Dropdown(list(_ORDERS), value="asked", label="Order")
        self.disagreed = gr.Checkbox(
            False, label="Only where policies disagree in what is heard right"
        )
        self.count = gr.HTML(padding=False, elem_id="experiment-count")
        self.part = gr.Dropdown([1], value=1, label="Items shown", visible=False)
        self.table = gr.HTML(padding=False, elem_id="experiment-items")

    def _front(self) -> None:
        gr.Markdown("## What quality costs", elem_classes="sk-section")
        self.measure = gr.Dropdown([], label="Quality by", elem_id="experiment-measure")
        self.plot = gr.Plot(show_label=False, elem_id="experiment-front", elem_classes="sk-plot")
        self.front = gr.HTML(padding=False)

    def _one(self) -> None:
        gr.Markdown("## One item: its sound and its layers", elem_classes="sk-section")
        with gr.Row():
            self.item = gr.Dropdown([], label="Item, of those that pass the filters", scale=3)
            self.go = gr.Button("Hear it and look through its layers", variant="primary", scale=1)
        gr.HTML(
            "<p class='sk-note'>An evaluation keeps no sound. The model answers anew with the "
            "item's seed and the run's settings; the table says whether the words are the same."
            "</p>"
        )
        self.told = gr.HTML(padding=False, elem_id="experiment-told")
        self.players = gr.HTML(padding=False, elem_id="experiment-players")
        self.map = gr.Plot(show_label=False, visible=False, elem_id="experiment-map",
                           elem_classes="sk-plot")  # fmt: skip
        self.map_note = gr.HTML(padding=False, elem_id="experiment-map-note")

    def _connect(self, demo: gr.Blocks, concurrency_id: str) -> None:
        everything = [self.folder, self.note, self.shown, self.family, self.policy, self.disagreed,
                      self.order, self.count, self.part, self.table, self.measure, self.plot,
                      self.front, self.item, *self.cleared]  # fmt: skip
        listed = [self.note, self.count, self.part, self.table, self.item]
        demo.load(self.opened, None, everything, **_PRIVATE)
        self.folder.input(self.choose, self.folder, everything, **_PRIVATE)
        moved = [self.family.input, self.policy.input, self.disagreed.input, self.order.input]
        gr.on(moved, self.filter, self.filters, listed, **_PRIVATE)
        self.part.input(self.turn, [*self.filters, self.part], [self.note, self.table], **_PRIVATE)
        self.measure.input(self.measured, [self.folder, self.measure],
                           [self.note, self.plot, self.front], **_PRIVATE)  # fmt: skip
        self.go.click(lambda: cards.message("Answering anew ..."), None, self.told, queue=False,
                      **_PRIVATE).then(
            self.hear, [self.folder, self.item], self.cleared, concurrency_id=concurrency_id,
            concurrency_limit=1, api_visibility="private", show_progress="minimal",
            show_progress_on=self.told,
        )  # fmt: skip

    # Handlers

    def opened(self) -> Updates:
        """A visitor opens the page: the first evaluation, or how to make one."""
        names = folder.folders(self.root)
        if not names:
            out = self.root / "evaluation"
            made = escape(folder.COMMAND.format(out=out))
            return {
                self.folder: gr.update(visible=False),
                self.note: "<p>There is no evaluation here yet. This command makes one, in some "
                f"minutes on two cores; then load this page again:</p><pre tabindex='0' "
                f"aria-label='Command'><code>{made}</code></pre>",
                self.shown: gr.update(visible=False),
            }
        menu = gr.update(choices=names, value=names[0], visible=True)
        return {**self.choose(names[0]), self.folder: menu}

    def choose(self, name: str) -> Updates:
        """An evaluation was chosen."""
        try:
            found = folder.read(self.root, name)
        except ValueError as error:
            return {self.note: cards.message(str(error), "alert"),
                    self.shown: gr.update(visible=False)}  # fmt: skip
        titles = [(cards.title(word), word) for word in found.policies]
        measures = [
            (shown.title, key)
            for key, shown in tradeoff.MEASURES.items()
            if tradeoff.placed(found.summary, key)
        ]
        first = measures[0][1] if measures else None
        return {
            self.note: _about(found),
            self.shown: gr.update(visible=True),
            self.family: gr.update(choices=[_ALL, *found.families], value=_ALL),
            self.policy: gr.update(choices=[(_ALL, _ALL), *titles], value=_ALL),
            self.disagreed: False,
            self.order: "asked",
            self.measure: gr.update(choices=measures, value=first),
            **self._front_of(found, first),
            **self._listed(list(found.rows), None),
            **self._nothing(""),
        }

    def filter(
        self, name: str, family: str, policy: str, disagreed: bool, order: folder.Order
    ) -> Updates:
        """The filters were moved."""
        try:
            found = folder.read(self.root, name)
        except ValueError as error:
            return {self.note: cards.message(str(error), "alert")}
        return self._listed(_chosen(found, family, policy, disagreed, order), _one_of(policy))

    def turn(
        self, name: str, family: str, policy: str, disagreed: bool, order: folder.Order, part: int
    ) -> Updates:
        """Other items of those that pass the filters."""
        try:
            found = folder.read(self.root, name)
        except ValueError as error:
            return {self.note: cards.message(str(error), "alert")}
        rows = _chosen(found, family, policy, disagreed, order)
        begin = (part - 1) * _SHOWN
        return {self.table: items_table(rows[begin : begin + _SHOWN], _one_of(policy))}

    def measured(self, name: str, measure: str) -> Updates:
        """The plot of another measure."""
        try:
            return self._front_of(folder.read(self.root, name), measure)
        except ValueError as error:
            return {self.note: cards.message(str(error), "alert")}

    def hear(self, name: str, item_id: str | None) -> Updates:
        """An item's sound and map, or a sentence on what stands in the way."""
        if not item_id:
            return self._nothing("Choose an item first.")
        try:
            found = folder.read(self.root, name)
            row = found.row(item_id)
            again = replay(self._model(found), found, row)
        except ValueError as error:
            return self._nothing(str(error))
        except Exception:
            log.exception("an item could not be answered anew")
            return self._nothing("This failed through an error of the lab, which is in its log.")
        updates = self._nothing("") | {self.told: cards.message("Done.")}
        updates[self.players] = item_table(row, again.replies)
        if again.lens:
            updates[self.map] = gr.update(value=lens_figure(again.lens), visible=True)
            updates[self.map_note] = (
                f"<p>{escape(lens_sentence(again.lens))}</p><p class='sk-note'>Full depth's reply, "
                "run once through every layer. Darker: the exit after that layer and the last "
                "layer would draw the same token more often (overlap of what they draw from). A "
                "ringed dot: another token is likeliest. Exit heads: "
                f"{escape(_heads(again.lens.heads))}.</p>"
            )
        return updates

    # Parts of updates

    def _listed(self, rows: list[Row], policy: str | None) -> Updates:
        parts = [
            (f"{begin + 1} to {min(begin + _SHOWN, len(rows))}", begin // _SHOWN + 1)
            for begin in range(0, len(rows), _SHOWN)
        ]
        differ = sum(row.disagreed for row in rows)
        told = f"{len(rows)} items; policies disagree in {differ}."
        items = [(f"{row.prompt} ({row.item_id})", row.item_id) for row in rows]
        return {
            self.count: cards.message(told),
            self.part: gr.update(choices=parts or [1], value=1, visible=len(parts) > 1),
            self.table: items_table(rows[:_SHOWN], policy),
            self.item: gr.update(choices=items, value=items[0][1] if items else None),
        }

    def _front_of(self, found: Experiment, measure: str | None) -> Updates:
        if measure is None or measure not in tradeoff.MEASURES:
            return {self.plot: None, self.front: "<p class='sk-note'>Cost: not measured.</p>"}
        best = tradeoff.front(found.summary, measure)
        names = escape(", ".join(map(cards.title, best)))
        return {
            self.plot: plots.pareto_figure(found.summary, (measure,)),
            self.front: f"<p>Undercut by no other policy, by the estimates alone: {names}.</p>"
            "<p class='sk-note'>Whiskers are 95 % intervals, where the evaluation has them.</p>",
        }

    def _nothing(self, why: str) -> Updates:
        """No item is looked into, with the reason where there is one."""
        return {
            self.told: cards.message(why, "alert"),
            self.players: "",
            self.map: gr.update(value=None, visible=False),
            self.map_note: "",
        }

    def _model(self, found: Experiment) -> SpokenLM:
        """The evaluation's model; raises ValueError with the reason where it cannot run here."""
        asked, title = found.told["model"], found.told["title"]
        for name, info in self.shelf.infos.items():
            if asked == name or title == info.title:
                if self.shelf.lent(name):
                    raise ValueError("Items are not answered anew on a lent GPU: run the lab on "
                                     "a machine of your own.")  # fmt: skip
                if reason := self.shelf.why_not(name):
                    raise ValueError(reason)
                return self.shelf.get(name)
        raise ValueError(
            f"The evaluation's model is {title}, which this app does not offer: start it with "
            f"python app.py --model {asked}"
        )


def _about(found: Experiment) -> str:
    told = found.told
    return (
        f"<p>{escape(str(told['title']))}, {escape(str(told['suite']))}: {len(found.rows)} items, "
        f"{len(found.policies)} policies. Made by</p><pre tabindex='0' aria-label='Command'><code>"
        f"{escape(str(told['command']))}</code></pre>"
    )


def _chosen(
    found: Experiment, family: str, policy: str, disagreed: bool, order: folder.Order
) -> list[Row]:
    return folder.chosen(found.rows, _one_of(family), _one_of(policy), disagreed, order)


def _one_of(value: str) -> str | None:
    return None if value == _ALL else value


def _heads(kinds: tuple[str, ...]) -> str:
    """Which layers are read with which head in speech slots."""
    fitted = [str(layer) for layer, kind in enumerate(kinds, 1) if kind == "fitted"]
    if not fitted:
        return "the model's own at every layer (logit lens)"
    return f"fitted in speech slots at layers {', '.join(fitted)}, elsewhere the model's own"
