"""A comparison as a page runs it: told by the model's name and plain values, here or on a loan.

Where a GPU is lent, everything told and answered is pickled on its way, and only its own errors
come back from the other process: so a message for the visitor travels as an event. The recogniser
and the MOS predictor need no GPU and judge here, while the loan goes on with the next reply.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from spark import compare, shelf
from spark.comparison import CompareSettings, Exchange, Recording
from spark.lending import Permit, gpu
from spark.models.base import SpokenLM

# What a loan is reckoned with: cautious, as one that ends early loses the rest of the run. A lent
# half of an RTX Pro 6000 reads about twice as fast; a step also launches its layers' kernels.
_BYTES_PER_S, _STEP_S = 4e11, 0.01
_PROMPT_TOKEN_S = 1e-3
_MOVED_PER_S = 4e9  # bytes of weights, when the process begins
_VOCODER_FACTOR = 0.2  # of the sound's duration
_MARGIN_S = 3.0  # for what comes after the last token
LENT_TOKENS = 320  # of a reply, 10 s of speech or more; a visitor has 2 to 5 minutes a day


@dataclass(frozen=True)
class Asked:
    """All that a run is told.

    Attributes:
        shelf: number of the shelf that holds the model.
        model: its name.
        prompt, settings, recording, earlier, replays, live: as of `compare.stream`.
        permit: withdrawn when it is to stop.
        seconds: that a lent GPU is asked for; None where none is.
    """

    shelf: int
    model: str
    prompt: str
    settings: CompareSettings
    permit: Permit
    recording: Recording | None = None
    earlier: tuple[Exchange, ...] = ()
    replays: int = 0
    live: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Refused:
    """The run could not be made, or not to its end; the message is for the visitor."""

    message: str


@dataclass(frozen=True)
class TimeUp:
    """The loan ended the run before its end; the last event where it did."""


Event = compare.Event | Refused | TimeUp


def seconds(lm: SpokenLM, asked: Asked) -> float:
    """How long a run may take on a lent GPU, by the lengths of prompt and reply."""
    recording = asked.recording
    spoken = len(recording.pcm) / recording.rate if recording else 0.0
    prompt = len(asked.prompt) + 25 * spoken + sum(
        len(past.reply) + len(past.text) for past in asked.earlier
    )  # fmt: skip
    limit = asked.settings.limit(lm)
    weights = lm.transformer.nbytes
    reply = limit * (weights / _BYTES_PER_S + _STEP_S)
    rate = lm.vocoder.frame_rate if lm.vocoder else None
    sound = limit / rate * _VOCODER_FACTOR * (1 + asked.live) if rate else 0.0
    once = weights / _MOVED_PER_S + prompt * _PROMPT_TOKEN_S + 3 * sound + _MARGIN_S
    return once + 3 * reply * (1 + asked.replays)


def run(asked: Asked) -> Iterator[Event]:
    """The events of a comparison, or what stood in its way, in this process."""
    end = math.inf if asked.seconds is None else time.monotonic() + asked.seconds - _MARGIN_S

    def late() -> bool:
        return time.monotonic() > end

    def stop() -> bool:
        return asked.permit.withdrawn() or late()

    try:
        with shelf.numbered(asked.shelf).using(asked.model) as lm:
            yield from compare.stream(
                lm, asked.prompt, asked.settings, recording=asked.recording,
                earlier=asked.earlier, listen=asked.seconds is None, replays=asked.replays,
                live=asked.live, stop=stop,
            )  # fmt: skip
        if late() and not asked.permit.withdrawn():
            yield TimeUp()
    except ValueError as error:
        yield Refused(str(error))


def _asked_for(asked: Asked) -> float | None:
    return asked.seconds


@gpu(duration=_asked_for)
def _on_loan(asked: Asked) -> Iterator[Event]:
    yield from run(asked)


def run_on_loan(asked: Asked) -> Iterator[Event]:
    """The same on a lent GPU; replies are judged here.

    Raises:
        Exception: the platform's own, where it lends none (`gradio.Error`, with its reason).
    """
    judged: dict[str, compare.Reply] = {}
    for event in _on_loan(asked):
        match event:
            case compare.Answered(reply, complete=True) if not asked.permit.withdrawn():
                compare.judge(reply)
                judged[reply.policy] = reply
            case compare.Finished(comparison):  # a copy of its own, made over there
                for reply in comparison.replies:
                    if known := judged.get(reply.policy):
                        reply.heard, reply.wer_vs_text = known.heard, known.wer_vs_text
                        reply.mos_predicted = known.mos_predicted
        yield event
