"""The Compare page: its parts in their order, and which event runs what."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import gradio as gr

from spark import cards
from spark.comparison import Comparison
from spark.download import save_script
from spark.models.loading import Progress
from spark.shelf import Shelf
from spark.ui.board import Board, View
from spark.ui.form import Form, Updates
from spark.ui.runs import Runs
from spark.ui.share import COPY_SCRIPT, Share

_LOOK_S = 0.5  # between two looks at a model that is on its way
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class ComparePage:
    """Components and handlers of the page; call inside a `gr.Blocks` context.

    Args:
        shelf: the models.
        example: a finished comparison to begin with; None begins empty.
        concurrency_id: shared by everything that runs a model, so that one runs at a time.
    """

    def __init__(
        self, shelf: Shelf, example: Comparison | None = None, concurrency_id: str = "model"
    ) -> None:
        self.form = Form(shelf)
        self.board = Board(example)
        self.share = Share(self.form, self.board)
        self.runs = Runs(self.form, self.board, self.share)
        self._connect_runs(concurrency_id)
        self._connect_the_rest()

    def _connect_runs(self, concurrency_id: str) -> None:
        form, board, runs = self.form, self.board, self.runs
        told = [board.status, *form.buttons]
        pressed = gr.on([form.run_button.click, form.prompt.submit], runs.begin, None, told,
                        queue=False, **_PRIVATE)  # fmt: skip
        inputs = {*form.asked, form.spoken, form.replays, form.live, form.blind, form.go_on,
                  board.seconds, board.drift, board.shown}  # fmt: skip
        ran = pressed.then(runs.run, inputs, [*board.outputs, *form.buttons, self.share.address],
                           concurrency_id=concurrency_id, concurrency_limit=1,
                           api_visibility="private", show_progress="minimal",
                           show_progress_on=board.status)  # fmt: skip
        # What ends a run before or outside `run`: a full queue, a value that gradio refuses.
        ran.failure(runs.failed, None, told, queue=False, **_PRIVATE)
        # The view may have been switched while it ran.
        drawn = [board.shown, board.seconds, board.drift]
        ran.success(board.redraw, drawn, board.depth, **_PRIVATE)
        form.stop_button.click(runs.stop, None, board.status, queue=False, **_PRIVATE)

    def _connect_the_rest(self) -> None:
        form, board, share = self.form, self.board, self.share
        drawn = [board.shown, board.seconds, board.drift]
        for place, button in enumerate(board.votes):
            button.click(
                lambda shown, seconds, drift, place=place: self.runs.blind.reveal(
                    shown, View(seconds, drift), place
                ),
                drawn, board.outputs, **_PRIVATE,
            )  # fmt: skip
        gr.on([board.seconds.change, board.drift.change], board.redraw, drawn, board.depth,
              **_PRIVATE)  # fmt: skip
        # By hand only: a link sets both at once, and either's change may come before the other's.
        dialled = (cards.dial, [form.dial, form.nearness], form.dial_words)
        gr.on([form.dial.input, form.dial.release, form.nearness.input], *dialled,
              trigger_mode="always_last", **_PRIVATE)  # fmt: skip
        # By hand only: a link that names a model brings its exit layer along.
        form.model.input(self.choose_model, form.model,
                         [board.status, form.model, *form.of_model],
                         **_PRIVATE).then(*dialled, **_PRIVATE)  # fmt: skip
        form.schedule_file.upload(self.take_schedule, [form.schedule_file, form.model],
                                  [board.status, form.schedule], **_PRIVATE)  # fmt: skip
        for button, text in form.examples:
            button.click(None, None, form.prompt, js=f"() => {text!r}", **_PRIVATE)
        saved = save_script("application/zip", "spar-k-comparison.zip")
        share.download.click(share.zipped, board.shown, share.archive, **_PRIVATE).then(
            None, share.archive, None, js=saved, **_PRIVATE
        )
        share.copy.click(share.linked, set(form.asked), share.address, **_PRIVATE).then(
            None, share.address, share.address, js=COPY_SCRIPT, **_PRIVATE
        )

    def take_schedule(self, path: str, name: str) -> Updates:
        """A schedule's file was given: its positions, or why it cannot be used."""
        try:
            taken = self.form.scheduled(path, self.form.model_of(name))
        except ValueError as error:
            told = str(error).replace(path, "The file")  # where it was put is nobody's business
            return self.board.say(told, "alert")
        return {**taken, **self.board.say(f"SPAR-K's schedule: {taken[self.form.schedule]}.")}

    def choose_model(self, name: str) -> Iterator[Updates]:
        """Another model: what changes with it, or why it cannot run here.

        A large one is fetched and read at its first use, which takes as long as network and disk
        take: said first, and then how far it is.
        """
        shelf = self.form.shelf
        if name not in shelf.infos or shelf.why_not(name) or shelf.loaded(name) is not None:
            yield self._chosen(name)
            return
        title = shelf.infos[name].title
        yield self._tell(f"Loading {title}: the first time this can take minutes ...")
        pool = ThreadPoolExecutor(1)
        brought = pool.submit(self._chosen, name)
        pool.shutdown(wait=False)  # goes on if the visitor leaves: others may wait for it
        told: Progress | None = None
        while not wait([brought], _LOOK_S).done:
            progress = shelf.progress(name)
            if progress and progress != told:
                told = progress
                yield self._tell(f"{progress.words} ...")
        # What is fetched now need not be fetched first any more.
        yield {**brought.result(), self.form.model: gr.update(choices=shelf.choices())}

    def _tell(self, text: str, kind: str = "status") -> Updates:
        """What becomes of a choice: in the status line, which is read out, and above the menu."""
        return {**self.board.say(text, kind), self.form.choice: cards.beside(text, kind)}

    def _chosen(self, name: str) -> Updates:
        try:
            lm = self.form.model_of(name, fetch=True)
        except ValueError as error:
            return self._tell(str(error), "alert")
        told = " ".join(filter(None, (f"Model: {lm.title}.", lm.silence)))
        return {**self.form.follow(lm), **self.board.say(told)}
