"""A run: begun, followed as its events come, stopped; one at a time for each visitor.

Every way it can end leaves a page that works, with nothing lost that was typed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from spark import cards, compare, lent
from spark.comparison import Recording, Reply
from spark.lending import Permit
from spark.models.base import SpokenLM
from spark.models.recordings import read_recording
from spark.ui.blind import BlindRound
from spark.ui.board import POLICIES, Board, Shown, View
from spark.ui.form import Form, Updates
from spark.ui.live import LivePieces
from spark.ui.share import Share

_TIME_UP = (
    "The lent GPU's time was over before the run; what was there is kept. Allow shorter replies, "
    "or fewer replays."
)
log = logging.getLogger(__name__)


class Runs:
    """Handlers of the buttons that make and stop a run.

    Args:
        form: what is asked for.
        board: what is filled.
        share: its link is of the run before.
    """

    def __init__(self, form: Form, board: Board, share: Share) -> None:
        self.form, self.board, self.share = form, board, share
        self.blind = BlindRound(board)
        self._permits: dict[str, Permit] = {}

    def begin(self, request: gr.Request) -> Updates:
        """The button was pressed: from now on Stop means this run, also while it waits."""
        if _session(request) in self._permits:  # Enter in the prompt during a run begins no other
            return {self.board.status: gr.skip()}
        self._permits[_session(request)] = Permit.given()
        return {**self.board.say("Waiting for a turn ..."), **self.form.busy()}

    def stop(self, request: gr.Request) -> str:
        """End this visitor's run at its next token; what is there is kept."""
        if permit := self._permits.get(_session(request)):
            permit.withdraw()
        return cards.message("Stopping ...")

    def failed(self, request: gr.Request) -> Updates:
        """Gradio refused the run or lost it; its own notice names the cause."""
        self._over(request)
        return self._ended(
            "This run could not be made: too many are waiting, or a setting was refused. "
            "Nothing you typed is lost. Please try again in a moment."
        )

    def run(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Run a comparison and show it as it comes; a message, and nothing lost, if it cannot."""
        permit = self._permits.get(_session(request)) or Permit.given()
        self._permits[_session(request)] = permit
        form, board = self.form, self.board
        view = View(values[board.seconds], values[board.drift])
        kept = {board.shown: values[board.shown]}  # a conversation can go on from there
        try:
            asked, lm = self._asked(values, permit)
            events = self._events(asked)
            updates = (
                self.blind.follow(events, view)
                if values[form.blind]
                else self._openly(lm, asked, events, view)
            )
            follows = board.follows(asked.earlier, lm.title)
            yield {**next(updates), **follows, **self.share.cleared(), **form.busy()}
            if asked.seconds is not None:
                yield board.say(
                    f"Asking for a GPU for up to {asked.seconds:.0f} s of your minutes today ..."
                )
            yield from updates
            yield form.idle()
        except gr.Error as error:  # a ValueError too; of a platform that lends no GPU now
            yield self._ended(f"{error.title}: {error.message}") | kept
        except ValueError as error:
            yield self._ended(str(error)) | kept
        except Exception:
            log.exception("a comparison failed")
            yield (
                self._ended(
                    "This run failed through an error of the lab, which is in its log. "
                    "Nothing you typed is lost. Please try again, or try other settings."
                )
                | kept
            )
        finally:
            self._over(request)

    def _asked(self, values: Mapping[Any, Any], permit: Permit) -> tuple[lent.Asked, SpokenLM]:
        """What the form asks for, checked as far as that needs no GPU, and of which model.

        Raises:
            ValueError: it cannot be run.
        """
        form, before = self.form, values[self.board.shown]
        lm = form.model_of(values[form.model])
        settings = form.wanted(values)
        # A recording for a model that cannot hear is one left over from another model.
        spoken = values[form.spoken] if lm.listener else None
        asked = lent.Asked(
            form.shelf.number, lm.name, values[form.prompt], settings, permit,
            recording=Recording(*read_recording(spoken)) if spoken else None,
            earlier=form.earlier(values, lm, before.comparison if before else None),
            replays=int(values[form.replays]),
            live=values[form.live] and not values[form.blind],
        )  # fmt: skip
        settings.policies(lm), settings.sampling()
        if not any((asked.recording, *(past.recording for past in asked.earlier))):
            settings.prompt(lm, asked.prompt, earlier=asked.earlier)
        if form.shelf.lent(lm.name):
            asked = replace(asked, seconds=lent.seconds(lm, asked))
        return asked, lm

    def _events(self, asked: lent.Asked) -> Iterator[lent.Event]:
        """The run's events; raises ValueError for what it refused."""
        for event in lent.run(asked) if asked.seconds is None else lent.run_on_loan(asked):
            if isinstance(event, lent.Refused):
                raise ValueError(event.message)
            yield event

    def _over(self, request: gr.Request) -> None:
        if permit := self._permits.pop(_session(request), None):
            permit.withdraw()

    def _ended(self, text: str) -> Updates:
        return {**self.board.say(text, "alert"), **self.form.idle()}

    def _openly(
        self, lm: SpokenLM, asked: lent.Asked, events: Iterator[lent.Event], view: View
    ) -> Iterator[Updates]:
        """Cards fill as their tokens come."""
        board, limit = self.board, asked.settings.limit(lm)
        yield board.cleared([cards.waiting(policy) for policy in POLICIES])
        replies, live = list[Reply](), LivePieces()
        for event in events:
            match event:
                case compare.Progress(policy, trace):
                    words = lm.decode_text(trace.text_ids())
                    text = cards.progress(policy, trace, limit, words)
                    running = board.say(f"Running: {cards.title(policy)}")
                    yield {**running, board.heads[POLICIES.index(policy)]: text}
                case compare.Sounded():
                    yield board.sounds(live.add(event))
                case compare.Answered(reply, complete):
                    if not complete:
                        replies.append(reply)
                    yield board.answered(reply, complete, replies, view)
                case compare.Replayed(done, total):
                    yield board.say(f"Timing: replay {done} of {total}. The sounds are ready.")
                case compare.Finished(comparison):
                    yield board.finished(Shown(comparison), view)
                case lent.TimeUp():
                    yield board.say(_TIME_UP)


def _session(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "")
