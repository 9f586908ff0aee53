"""What comes of a run: status line, three cards, plots and tables, and how they are filled.

Strings and figures come from `spark.cards` and `spark.plots`; this puts them into components. Knows
no model and no form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from spark import cards, findings
from spark.comparison import CompareSettings, Comparison, Exchange, Reply
from spark.plots import comparison as plots
from spark.ui.form import Updates

POLICIES = ("full", "spark", "confidence")


@dataclass(frozen=True)
class Shown:
    """What one visitor's page shows.

    Attributes:
        comparison: finished or stopped.
        order: policy index at each card; the plain order unless blind.
        blind: whether the policies are still hidden.
    """

    comparison: Comparison
    order: tuple[int, ...] = (0, 1, 2)
    blind: bool = False


@dataclass(frozen=True)
class View:
    """How the depth plot is drawn: its x axis, and whether the drift stands below."""

    seconds: bool = False
    drift: bool = True


class Board:
    """Components below the form; made inside a `gr.Blocks` context.

    Args:
        example: a finished comparison to begin with; None begins empty.
    """

    def __init__(self, example: Comparison | None) -> None:
        self.shown = gr.State(Shown(example) if example else None)
        self._cards(example)
        self._vote()
        self._results(example or Comparison("", "", CompareSettings()))
        self.outputs = [
            self.shown, self.status, self.live, self.conversation, *self.heads, *self.players,
            *self.figures, self.vote, self.results, self.finding, self.depth, self.drifted,
            self.histogram, self.table, self.tokens,
        ]  # fmt: skip

    # Components

    def _cards(self, example: Comparison | None) -> None:
        told = ""
        if example:
            told = f"Example of {example.model}, run when this app started: “{example.prompt}”"
        self.status = gr.HTML(cards.message(told), elem_id="status")
        self.live = gr.HTML(padding=False, elem_id="live")
        self.conversation = gr.HTML(padding=False, elem_id="conversation")
        self.heads, self.players, self.figures = [], [], []
        with gr.Row(equal_height=True):
            for policy in POLICIES:
                reply = example.reply(policy) if example else None
                head = cards.head(policy, _described(reply) if reply else "")
                with gr.Column(elem_classes="sk-card", min_width=250):
                    self.heads.append(gr.HTML(head))
                    self.players.append(gr.HTML(cards.player(reply) if reply else ""))
                    self.figures.append(gr.HTML(cards.figures(reply, True) if reply else ""))

    def _vote(self) -> None:
        with gr.Column(visible=False) as self.vote:
            gr.Markdown("**Which sounds best?** The policies are revealed after your answer.")
            with gr.Row():
                self.votes = [gr.Button(name) for name in (*cards.LETTERS, "No difference")]

    def _results(self, first: Comparison) -> None:
        replies = first.replies
        with gr.Column(visible=bool(replies)) as self.results:
            self.finding = gr.Markdown(findings.finding(first), elem_classes="sk-finding")
            gr.Markdown("## Depth at each token", elem_classes="sk-section")
            with gr.Row():
                self.seconds = gr.Checkbox(False, label="x axis in seconds of speech")
                self.drift = gr.Checkbox(True, label="drift line below")
            self.depth = gr.Plot(depth_figure(replies, View()), show_label=False,
                                 elem_id="depth-plot", elem_classes="sk-plot")  # fmt: skip
            gr.HTML(
                "<p class='sk-note'>A hollow mark waits for its upper layers; a triangle is a "
                "refresh, which runs them for all that wait. A crossed diamond is a token that "
                "full depth took back. A click on a mark plays the sound from there; the table of "
                "tokens below does the same by keyboard.</p>"
            )
            self.drifted = gr.HTML(cards.drifted(first), padding=False, elem_id="drift")
            gr.Markdown("## How many tokens ran how deep", elem_classes="sk-section")
            self.histogram = gr.Plot(plots.histogram_figure(replies), show_label=False,
                                     elem_classes="sk-plot")  # fmt: skip
            with gr.Accordion("All figures", open=False):
                self.table = gr.HTML(cards.summary_table(first))
            with gr.Accordion("Every token", open=False):
                self.tokens = gr.HTML(cards.token_tables(replies))

    # Updates

    def say(self, text: str, kind: str = "status") -> Updates:
        """The status line; kinds as of `cards.message`."""
        return {self.status: cards.message(text, kind)}

    def follows(self, earlier: Sequence[Exchange], title: str) -> Updates:
        """The conversation that a run follows, above its cards."""
        return {self.conversation: cards.conversation(earlier, title)}

    def sounds(self, pieces: str) -> Updates:
        """Sound of a reply that is being made, for the page's script."""
        return {self.live: pieces}

    def cleared(self, heads: Sequence[str]) -> Updates:
        """The board before a run: empty cards, nothing of an earlier run left."""
        texts = [self.live, *self.players, *self.figures, self.finding, self.drifted, self.table,
                 self.tokens]  # fmt: skip
        return {
            **dict(zip(self.heads, heads, strict=True)),
            **dict.fromkeys(texts, ""),
            self.depth: None,
            self.histogram: None,
            self.shown: None,
            self.vote: gr.update(visible=False),
            self.results: gr.update(visible=False),
        }

    def answered(self, reply: Reply, complete: bool, replies: list[Reply], view: View) -> Updates:
        """A card has its sound or its figures. The player is set once: it may be playing."""
        place = POLICIES.index(reply.policy)
        updates: Updates = {
            self.heads[place]: cards.head(reply.policy, _described(reply)),
            self.figures[place]: cards.figures(reply, complete),
        }
        if not complete:
            updates[self.players[place]] = cards.player(reply)
            updates[self.results] = gr.update(visible=True)
            updates[self.depth] = depth_figure(replies, view)
        return updates

    def finished(
        self, shown: Shown, view: View, players: bool = False, letters: bool = False
    ) -> Updates:
        """The end of a run or of a blind round; `players` where the cards have none yet."""
        comparison = shown.comparison
        done = "Stopped; what was there is kept." if comparison.stopped else "Done."
        updates = self._everything(shown, view, players=players, letters=letters)
        if len(comparison.replies) < len(POLICIES):
            rest = POLICIES[len(comparison.replies) :]
            updates.update({self.heads[POLICIES.index(p)]: cards.head(p, "not run") for p in rest})
        return {**updates, **self.say(done)}

    def _everything(self, shown: Shown, view: View, players: bool, letters: bool) -> Updates:
        """All that a finished comparison shows."""
        comparison = shown.comparison
        updates: Updates = {
            self.shown: shown,
            self.vote: gr.update(visible=False),
            self.results: gr.update(visible=bool(comparison.replies)),
            self.finding: findings.finding(comparison),
            self.depth: depth_figure(comparison.replies, view),
            self.drifted: cards.drifted(comparison),
            self.histogram: plots.histogram_figure(comparison.replies),
            self.table: cards.summary_table(comparison),
            self.tokens: cards.token_tables(comparison.replies),
        }
        for place, index in enumerate(shown.order[: len(comparison.replies)]):
            reply = comparison.replies[index]
            letter = cards.LETTERS[place] if letters else ""
            updates[self.heads[place]] = cards.head(reply.policy, _described(reply), letter)
            updates[self.figures[place]] = cards.figures(reply, complete=True)
            if players:
                updates[self.players[place]] = cards.player(reply)
        return updates

    def redraw(self, shown: Shown | None, seconds: bool, drift: bool) -> Any:
        """The depth plot in another view."""
        if shown is None or shown.blind:
            return gr.skip()
        return depth_figure(shown.comparison.replies, View(seconds, drift))


def depth_figure(replies: list[Reply], view: View) -> Any:
    """The depth plot over tokens, or over seconds of speech."""
    return plots.depth_figure(replies, "seconds" if view.seconds else "tokens", view.drift)


def _described(reply: Reply) -> str:
    """One line on how a reply was decoded."""
    exits = sorted({step.depth for step in reply.trace.steps})
    layers = len(reply.trace.weights.layers)
    early = [str(depth) for depth in exits if depth < layers]
    if reply.policy == "full":
        return f"all {layers} layers for every token"
    if not early:
        return f"no token stopped early; {layers} layers"
    return f"{layers} layers, exits after {', '.join(early)}"
