"""A run: begun, followed as its events come, stopped; one at a time for each visitor.

Every way it can end leaves a page that works, with nothing lost that was typed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from spark import cards, compare
from spark.comparison import Recording, Reply
from spark.models.base import SpokenLM
from spark.shelf import gpu
from spark.speech.audio import read_wav
from spark.ui.blind import BlindRound
from spark.ui.board import POLICIES, Board, Shown
from spark.ui.form import Form, Updates
from spark.ui.share import Share

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
        self._stops: dict[str, threading.Event] = {}

    def begin(self, request: gr.Request) -> Updates:
        """The button was pressed: from now on Stop means this run, also while it waits."""
        if _session(request) in self._stops:  # Enter in the prompt during a run begins no other
            return {self.board.status: gr.skip()}
        self._stops[_session(request)] = threading.Event()
        return {**self.board.say("Waiting for a turn ..."), **self.form.busy()}

    def stop(self, request: gr.Request) -> str:
        """End this visitor's run at its next token; what is there is kept."""
        if event := self._stops.get(_session(request)):
            event.set()
        return cards.message("Stopping ...")

    def failed(self, request: gr.Request) -> Updates:
        """Gradio refused the run or lost it; its own notice names the cause."""
        self._stops.pop(_session(request), None)
        return self._ended(
            "This run could not be made: too many are waiting, or a setting was refused. "
            "Nothing you typed is lost. Please try again in a moment."
        )

    def run(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Run a comparison and show it as it comes; a message, and nothing lost, if it cannot."""
        stop = self._stops.setdefault(_session(request), threading.Event())
        form = self.form
        before: Shown | None = values[self.board.shown]
        try:
            lm = form.model_of(values[form.model])
            settings, prompt = form.wanted(values), values[form.prompt]
            # A recording for a model that cannot hear is one left over from another model.
            spoken = values[form.spoken] if lm.listener else None
            recording = Recording(*read_wav(spoken)) if spoken else None
            earlier = form.earlier(values, lm, before.comparison if before else None)
            settings.policies(lm), settings.sampling()
            if recording is None:
                settings.prompt(lm, prompt, earlier=earlier)
            events = gpu(compare.stream, lm)(
                lm, prompt, settings, recording=recording, earlier=earlier,
                replays=int(values[form.replays]), stop=stop.is_set,
            )  # fmt: skip
            seconds = values[self.board.seconds]
            blind = values[form.blind]
            updates = self.blind.follow(events, seconds) if blind else (
                self._openly(lm, events, seconds))  # fmt: skip
            follows = self.board.follows(earlier, lm.title)
            yield {**next(updates), **follows, **self.share.cleared(), **form.busy()}
            yield from updates
            yield form.idle()
        except ValueError as error:
            yield self._ended(str(error))
        except Exception:
            log.exception("a comparison failed")
            yield self._ended(
                "This run failed through an error of the lab, which is in its log. "
                "Nothing you typed is lost. Please try again, or try other settings."
            ) | {self.board.shown: before}  # a conversation can go on from there
        finally:
            self._stops.pop(_session(request), None)

    def _ended(self, text: str) -> Updates:
        return {**self.board.say(text, "alert"), **self.form.idle()}

    def _openly(
        self, lm: SpokenLM, events: Iterator[compare.Event], seconds: bool
    ) -> Iterator[Updates]:
        """Cards fill as their tokens come."""
        board = self.board
        yield board.cleared([cards.waiting(policy) for policy in POLICIES])
        replies: list[Reply] = []
        for event in events:
            match event:
                case compare.Progress(policy, trace):
                    words = lm.decode_text(trace.text_ids())
                    text = cards.progress(policy, trace, lm.max_tokens, words)
                    running = board.say(f"Running: {cards.title(policy)}")
                    yield {**running, board.heads[POLICIES.index(policy)]: text}
                case compare.Answered(reply, complete):
                    if not complete:
                        replies.append(reply)
                    yield board.answered(reply, complete, replies, seconds)
                case compare.Replayed(done, total):
                    yield board.say(f"Timing: replay {done} of {total}. The sounds are ready.")
                case compare.Finished(comparison):
                    yield board.finished(Shown(comparison), seconds)


def _session(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "")
