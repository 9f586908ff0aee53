"""A run that is judged blind: three sounds in an order of their own, then a vote, then the rest.

Nothing that differs between policies reaches the page before the vote: no progress, no length, no
words, no figure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import gradio as gr

from spark import cards, compare, lent
from spark.comparison import Comparison
from spark.ui.board import POLICIES, Board, Shown, View
from spark.ui.form import Updates


class BlindRound:
    """Follows a run without telling; reveals it after the vote.

    Args:
        board: what is filled.
    """

    def __init__(self, board: Board) -> None:
        self.board = board

    def follow(self, events: Iterator[lent.Event], view: View) -> Iterator[Updates]:
        """Nothing is told until all are done."""
        yield {
            **self.board.cleared([cards.blind_head(place) for place in range(3)]),
            **self.board.say("Running all three. They appear together when all are done."),
        }
        for event in events:
            if isinstance(event, compare.Finished):
                yield self.opened(event.comparison, view)

    def opened(self, comparison: Comparison, view: View) -> Updates:
        """The three sounds and the vote; all at once, without a vote, where one was cut off."""
        board = self.board
        cut = any(reply.trace.finish == "interrupted" for reply in comparison.replies)
        if cut or len(comparison.replies) < len(POLICIES):  # a length would tell them apart
            return board.finished(Shown(comparison), view, players=True)
        order = random.SystemRandom().sample(range(len(POLICIES)), len(POLICIES))
        updates: Updates = {
            board.shown: Shown(comparison, tuple(order), blind=True),
            board.vote: gr.update(visible=True),
            **board.say("Ready: listen to A, B and C, then say which sounds best."),
        }
        for place, policy in enumerate(order):
            updates[board.players[place]] = cards.blind_player(comparison.replies[policy], place)
        return updates

    def reveal(self, shown: Shown | None, view: View, place: int) -> Updates:
        """After a vote: which card was which, with everything that was hidden."""
        if shown is None or not shown.blind:
            return {self.board.status: gr.skip()}
        if place < len(POLICIES):
            name = cards.title(shown.comparison.replies[shown.order[place]].policy)
            text = f"You chose {cards.LETTERS[place]}, which is {name}."
        else:
            text = "You heard no difference."
        revealed = Shown(shown.comparison, shown.order)
        return {**self.board.finished(revealed, view, players=True, letters=True),
                **self.board.say(text)}  # fmt: skip
