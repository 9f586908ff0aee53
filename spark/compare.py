"""The same prompt under several depth policies: sounds, figures, and where they part.

    python -m spark.compare --model embedded --prompt TEXT --seed 1 --out DIR

`stream` is the one way through a comparison: the page follows its events, `compare` and the
command line wait for the last. Knows the engine and the metrics; knows no page and no plot.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from spark import findings, schedule_file
from spark.acceptance import Acceptance
from spark.bundle import write_comparison
from spark.comparison import CompareSettings, Comparison, Exchange, Recording, Reply
from spark.compiled import prepare
from spark.engine import Engine, Generation, Prefill
from spark.heads import HeadKind
from spark.metrics import mos, wer
from spark.models import load
from spark.models.base import Pcm, SpokenLM
from spark.models.loading import say
from spark.models.recordings import read_recording
from spark.paths import can_be_made
from spark.sampling import SamplingSettings
from spark.schedule import MEASURES, FullDepth, Policy
from spark.timing import timed_change
from spark.trace import Trace, first_difference
from spark.voice import Voice


@dataclass(frozen=True)
class Progress:
    """A reply is being made; its trace grows."""

    policy: str
    trace: Trace


@dataclass(frozen=True)
class Sounded:
    """More of a reply can be heard: the next int16 samples (n,) at `rate` Hz, never taken back."""

    policy: str
    pcm: Pcm
    rate: int


@dataclass(frozen=True)
class Answered:
    """A reply has its sound, or (`complete`) all its figures but for the replays'."""

    reply: Reply
    complete: bool


@dataclass(frozen=True)
class Replayed:
    """Some of the interleaved replays are done."""

    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The last event."""

    comparison: Comparison


Event = Progress | Sounded | Answered | Replayed | Finished
_REPORT_EVERY_S = 0.15  # a page cannot use more
_WARM_UP_TOKENS = 6  # a text slot and a group of speech of TA4: each kind of step once


def stream(
    lm: SpokenLM,
    prompt: str,
    settings: CompareSettings,
    *,
    recording: Recording | None = None,
    earlier: Sequence[Exchange] = (),
    listen: bool = True,
    replays: int = 0,
    live: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Run a comparison, telling how it goes; the last event is `Finished`.

    Args:
        lm: the model.
        prompt: as typed.
        settings: of policies and sampling.
        recording: a spoken prompt, with or without typed words.
        earlier: the conversation so far, the same for all policies.
        listen: whether a recogniser and a MOS predictor judge each sound.
        replays: how often all policies are run again, in turn, to time them; 0 for no timing.
        live: whether each reply's sound is told while its tokens come.
        stop: asked between tokens; once true, what is there is kept and the rest left out.

    Raises:
        PromptError: the model cannot take the prompt.
        ValueError: impossible settings, or a prompt that is too long.
    """
    policies, sampling = settings.policies(lm), settings.sampling()
    accepted = settings.accepted(lm)
    engine = Engine(lm, head=settings.head, drift_meter=True)
    asked = settings.prompt(lm, prompt, recording, earlier)
    prefill = engine.prefill(asked.ids, features=asked.features)
    result = Comparison(lm.name, prompt, settings.resolved(lm), recording, tuple(earlier))
    _warm_up(engine, prefill, policies, sampling, accepted, stop)
    for policy in policies:
        if stop():
            break
        generation = engine.generate(
            prefill, policy, sampling, settings.max_tokens, acceptance=accepted
        )
        reply = yield from _answer(lm, generation, policy.name, live, stop)
        result.replies.append(reply)
        _place_beside_full(reply, result.replies[0])
        yield Answered(reply, complete=False)
        if listen and not stop():
            judge(reply)
        yield Answered(reply, complete=True)
    if replays and not stop():
        yield from _replay(lm, settings, prefill, result, replays, stop)
    result.stopped = stop()
    yield Finished(result)


def compare(
    lm: SpokenLM,
    prompt: str,
    settings: CompareSettings | None = None,
    *,
    recording: Recording | None = None,
    earlier: Sequence[Exchange] = (),
    listen: bool = True,
    replays: int = 0,
) -> Comparison:
    """Run a comparison to its end; arguments and errors as of `stream`."""
    chosen = settings or CompareSettings.of(lm)
    for event in stream(
        lm, prompt, chosen, recording=recording, earlier=earlier, listen=listen, replays=replays
    ):
        if isinstance(event, Finished):
            return event.comparison
    raise AssertionError("a comparison ends with Finished")


def _warm_up(
    engine: Engine,
    prefill: Prefill,
    policies: Sequence[Policy],
    sampling: SamplingSettings,
    accepted: Acceptance,
    stop: Callable[[], bool],
) -> None:
    """Some steps of each policy and a push to the vocoder, thrown away.

    The first use of weights and kernels is slow; without this the first reply timed, which is
    full depth's, would pay for all of them.
    """
    for policy in policies:
        if stop():
            return
        for _ in engine.generate(prefill, policy, sampling, _WARM_UP_TOKENS, acceptance=accepted):
            pass
    if engine.lm.vocoder:
        opening = engine.lm.vocoder.stream()
        opening.push([0])
        opening.flush()


def converse(
    lm: SpokenLM, questions: Sequence[str], settings: CompareSettings
) -> tuple[Exchange, ...]:
    """Ask one question after the other at full depth; what a comparison can follow.

    Raises:
        PromptError: the model cannot take a question, or takes one at a time only.
    """
    engine, earlier = Engine(lm, outside_mass=False), tuple[Exchange, ...]()
    for text in questions:
        asked = settings.prompt(lm, text, earlier=earlier)
        prefill = engine.prefill(asked.ids, features=asked.features)
        made = engine.generate(prefill, FullDepth(), settings.sampling(), settings.max_tokens)
        ids = tuple(step.token_id for step in made)
        earlier = (*earlier, Exchange(text, None, ids, lm.decode_text(made.trace.text_ids())))
    return earlier


def _answer(
    lm: SpokenLM, generation: Generation, name: str, live: bool, stop: Callable[[], bool]
) -> Generator[Event, None, Reply]:
    """Run one reply; returns it as the generator's value."""
    trace, words = generation.trace, lm.vocabulary
    voice, unheard, reported, begun = Voice(lm.vocoder, live), list[Pcm](), 0.0, False
    yield Progress(name, trace)
    for step in generation:
        if words.is_speech(step.token_id):
            since_ms = trace.prefill_ms + generation.spent_ms
            unheard.append(voice.say(words.code(step.token_id), since_ms))
        begins = live and voice.first_ms is not None and not begun  # the first sound never waits
        if stop():
            generation.interrupt()
        elif begins or time.perf_counter() - reported > _REPORT_EVERY_S:
            reported, begun = time.perf_counter(), begun or begins
            yield from _sounded(lm, name, live, unheard)
            yield Progress(name, trace)
    unheard.append(voice.end(trace.prefill_ms + generation.spent_ms))
    yield from _sounded(lm, name, live, unheard)
    reply = Reply(name, trace, lm.decode_text(trace.text_ids()), first_audio_ms=voice.first_ms)
    if lm.vocoder and trace.codes():
        start = time.perf_counter()
        reply.pcm = lm.vocoder.decode(trace.codes())
        reply.vocoder_ms = 1e3 * (time.perf_counter() - start)
        reply.sample_rate = lm.vocoder.sample_rate
    return reply


def _sounded(lm: SpokenLM, name: str, live: bool, unheard: list[Pcm]) -> Iterator[Event]:
    """The sound since the last time, if it is to be told and there is any."""
    pcm = np.concatenate(unheard) if unheard else np.zeros(0, np.int16)
    unheard.clear()
    if live and lm.vocoder and len(pcm):
        yield Sounded(name, pcm, lm.vocoder.sample_rate)


def _place_beside_full(reply: Reply, full: Reply) -> None:
    """Say whether and where a reply parts from full depth's."""
    ours, theirs = reply.trace.ids(), full.trace.ids()
    over = "interrupted" not in (reply.trace.finish, full.trace.finish)
    common = min(len(ours), len(theirs))
    if over or ours[:common] != theirs[:common]:
        reply.identical_to_full = ours == theirs
    place = first_difference(reply.trace.codes(), full.trace.codes())
    rate, reach = reply.trace.frame_rate, min(len(reply.trace.codes()), len(full.trace.codes()))
    if place is not None and rate and (over or place < reach):
        reply.first_divergence_s = place / rate


def judge(reply: Reply) -> None:
    """Let the recogniser and the MOS predictor hear a reply, where it has sound."""
    if reply.pcm is None or reply.sample_rate is None:
        return
    reply.heard = wer.transcribe(reply.pcm, reply.sample_rate)
    if wer.normalise(reply.text, longest=None):
        reply.wer_vs_text = wer.word_error_rate(reply.text, reply.heard)
    reply.mos_predicted = mos.predict(reply.pcm, reply.sample_rate)


def _replay(
    lm: SpokenLM,
    settings: CompareSettings,
    prefill: Prefill,
    result: Comparison,
    replays: int,
    stop: Callable[[], bool],
) -> Iterator[Event]:
    """Time all policies in turn, each round starting with another one; tokens are not kept."""
    engine = Engine(lm, head=settings.head, outside_mass=False)
    policies, sampling = settings.policies(lm), settings.sampling()
    accepted = settings.accepted(lm)
    taken: dict[str, list[float]] = {policy.name: [] for policy in policies}
    for done in range(replays):
        yield Replayed(done, replays)
        turn = done % len(policies)
        for policy in (*policies[turn:], *policies[:turn]):
            generation = engine.generate(
                prefill, policy, sampling, settings.max_tokens, acceptance=accepted
            )
            for _ in generation:
                if stop():
                    return
            taken[policy.name].append(generation.trace.summary()["ms_per_token"])
    full = taken[policies[0].name]
    for policy in policies:
        reply = result.reply(policy.name)
        assert reply is not None
        reply.replayed_ms = statistics.median(taken[policy.name])
        if policy is not policies[0]:
            reply.timing = timed_change(full, taken[policy.name])
    yield Replayed(replays, replays)


def _arguments() -> argparse.ArgumentParser:
    plain = CompareSettings()
    parser = argparse.ArgumentParser(
        "python -m spark.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--model", default="embedded",
        help="a known model, a folder with its files, or OWNER/NAME of the hub",
    )  # fmt: skip
    parser.add_argument("--prompt", default="", help="typed words")
    parser.add_argument(
        "--prompt-audio", type=Path, metavar="FILE", help="a spoken prompt, for models that hear"
    )
    parser.add_argument(
        "--after", action="append", default=[], metavar="TEXT",
        help="asked before, and answered at full depth; may be given several times",
    )  # fmt: skip
    parser.add_argument("--system", help="system prompt, where the model takes one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument(
        "--schedule", default=plain.schedule, metavar="NAME|FILE",
        help="triple, even, odd, k4, ...; drift or drift3-8: K follows the drift; each position's "
        "exit layer (f-11-11-9); or a file that `python -m spark.calibrate` wrote",
    )  # fmt: skip
    parser.add_argument("--exit-layer", type=int, help="of SPAR-K; default: the model's own")
    parser.add_argument(
        "--drift-target", type=float, default=plain.drift_target,
        help="distance of exits from full depth up to which that K grows, 0 to 1",
    )  # fmt: skip
    parser.add_argument(
        "--acceptance", default=plain.acceptance, metavar="NAME",
        help="of tokens drawn at exits: always (SPAR-K as published), exact (full depth's tokens), "
        "or between them which near misses stand: a tolerance in nats such as 0.5, or sound:1.5 "
        "for codes that sound alike, so many times as far apart as neighbours are",
    )  # fmt: skip
    parser.add_argument("--measure", choices=MEASURES, default=plain.measure)
    parser.add_argument("--threshold", type=float, default=plain.threshold)
    parser.add_argument("--candidates", type=int, nargs="+", default=(), metavar="LAYER")
    parser.add_argument("--decay", type=float, help="of the confidence threshold (CALM's tau)")
    parser.add_argument("--head", choices=get_args(HeadKind), default=plain.head)
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--top-p", type=float, help="default: the model's own")
    parser.add_argument("--repetition-penalty", type=float, help="default: the model's own")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--replays", type=int, default=0, help="interleaved runs that time each")
    parser.add_argument("--no-listen", action="store_true", help="leave out WER and MOS")
    placement = parser.add_argument_group("where a large model runs")
    placement.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    placement.add_argument("--voice", type=Path, metavar="FILE",
                           help="a recording whose voice a large model's sound takes")  # fmt: skip
    placement.add_argument("--whole", action="store_true", default=None,
                           help="a large model's sound in one pass, not in pieces")  # fmt: skip
    placement.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    parser.add_argument("--heads", type=Path, metavar="FILE",
                        help="fitted exit heads; default: those beside the model")  # fmt: skip
    return parser


class _Said:
    """Sentences on standard error, each once."""

    def __init__(self) -> None:
        self._known = {""}

    def say(self, sentence: str) -> None:
        if sentence not in self._known:
            self._known.add(sentence)
            say(sentence)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after a message about what was asked."""
    given = vars(_arguments().parse_args(arguments))
    model, prompt, out = given.pop("model"), given.pop("prompt"), given.pop("out")
    listen, replays = not given.pop("no_listen"), given.pop("replays")
    asked = {name: given.pop(name) for name in ("device", "bits", "voice", "whole", "heads")}
    spoken, before = given.pop("prompt_audio"), given.pop("after")
    options = {name: value for name, value in asked.items() if value is not None}
    if not can_be_made(out):  # before the run, not after it
        print(f"--out: no folder can be made at {out}; name another place", file=sys.stderr)
        return 2
    said = _Said()
    try:
        recording = Recording(*read_recording(spoken)) if spoken else None
        lm = load(model, told=said.say, **options)
        prepare(lm.transformer)
        given["schedule"] = schedule_file.named(given["schedule"], lm)
        settings = CompareSettings.of(lm, **{**given, "candidates": tuple(given["candidates"])})
        for note in (*lm.notes, lm.licence, lm.silence):
            said.say(note)
        comparison = compare(
            lm, prompt, settings, recording=recording, earlier=converse(lm, before, settings),
            listen=listen, replays=replays,
        )  # fmt: skip
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if words := findings.drift_words(comparison):
        print(words, file=sys.stderr)
    for path in write_comparison(comparison, out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
