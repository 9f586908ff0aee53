"""The engine: prompts run once, replies begun under any policy, alone or in a batch, and stopped.

How a reply is decoded, step by step, is the business of `decoding.py`. Knows token ids and layers;
words and sound are the model's own business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from spark import hardware
from spark.acceptance import ALWAYS, Acceptance
from spark.cache import KVCache, Rows
from spark.decoding import Decoding
from spark.foresight import LONGEST, Foresight, suits
from spark.heads import HeadBank, HeadKind
from spark.late import LateDecoding, can_take_back
from spark.models.base import SpokenLM
from spark.remembered import Remembered
from spark.sampling import SamplingSettings
from spark.schedule import KV_POLICIES, DriftSpark, KVPolicy, Policy
from spark.stretch import StretchDecoding
from spark.trace import Step, Trace, WeightBytes
from spark.work import Run
from spark.worker import Worker

_MOST_KNOWN = 16  # policies whose steps an engine keeps in mind


@dataclass(frozen=True)
class Prefill:
    """A prompt, run at full depth but for its last token, which belongs to the first step.

    Attributes:
        ids: every token so far.
        cache: of all but the last; never written to, a reply works on a copy.
        ms: wall-clock of running it.
    """

    ids: tuple[int, ...]
    cache: KVCache
    ms: float


class Engine:
    """Runs one model under any policy.

    Args:
        lm: the model.
        speech_row_head: whether slots that must hold speech compute speech and control rows only.
        head: which heads decide at exit layers; where a layer has no fitted one, the untrained.
        outside_mass: whether to log the probability that the base head's speech rows leave out,
            at full depth and at exits of the untrained head (a fitted one has no rows for the
            rest). It takes the whole head again, outside the clock.
        drift_meter: whether to measure, at each refresh, how far exits lay from full depth. Where
            no acceptance asks full depth anyway that takes its speech rows once more a refresh,
            outside the clock; inside it, and among the bytes read, where K follows the drift.
        compiled: whether to run the model's compiled step or its graphs, where it has them by now.
    """

    def __init__(
        self,
        lm: SpokenLM,
        speech_row_head: bool = True,
        head: HeadKind = "fitted",
        outside_mass: bool = True,
        drift_meter: bool = False,
        compiled: bool = True,
    ) -> None:
        self.lm = lm
        self.bank = HeadBank(lm, speech_row_head, head)
        self.outside_mass = outside_mass and speech_row_head
        self.drift_meter = drift_meter
        self._worker = Worker(lm.transformer, self.bank, compiled)
        self._foresights = Remembered[tuple[Policy, KVPolicy], Foresight](_MOST_KNOWN)

    def weight_bytes(self) -> WeightBytes:
        """Bytes that one evaluation of each part reads."""
        body, step = self.lm.transformer, self._worker.step
        layers = range(body.num_layers)
        return WeightBytes(
            layers=step.layer_bytes if step else tuple(body.layer_bytes(i) for i in layers),
            projections=tuple(body.projection_bytes(i) for i in layers),
            heads=self._worker.head_bytes(),
        )

    @torch.inference_mode()
    def prefill(
        self,
        ids: Sequence[int],
        history: Prefill | None = None,
        features: Sequence[tuple[int, Tensor]] = (),
    ) -> Prefill:
        """Run a prompt once, for all policies.

        Args:
            ids: the prompt, or the next turn's part of it.
            history: earlier turns, from `Generation.history`.
            features: (index in `ids`, (n, D) states in place of the embeddings from there on), as
                spoken prompts have them; not for the last id, which belongs to the first step.

        Raises:
            ValueError: no ids, more than the model has positions, features beyond the ids.
        """
        if not ids:
            raise ValueError("the prompt is empty")
        body = self.lm.transformer
        known = history.ids if history else ()
        every = (*known, *ids)
        done = max(len(known) - 1, 0)  # the last known token has not been run
        with self._worker.turn:
            hardware.wait(body.device)
            start = time.perf_counter()  # from here: others' turns are not its time
            cache = history.cache.fork(len(every)) if history else body.new_cache(len(every))
            if len(every) - 1 > done:
                fresh = torch.tensor([every[done:-1]], device=body.device)
                rows = Rows(_overlaid(body.embed(fresh), features, len(known) - done), done)
                self._worker.run_once(Run(0, body.num_layers, rows, cache))
            hardware.wait(body.device)
            spent_ms = 1e3 * (time.perf_counter() - start)
        return Prefill(tuple(every), cache, spent_ms)

    def generate(
        self,
        prefill: Prefill,
        policy: Policy,
        sampling: SamplingSettings,
        max_tokens: int | None = None,
        kv_policy: KVPolicy | None = None,
        acceptance: Acceptance = ALWAYS,
    ) -> Generation:
        """Start a reply; iterate over the result to run it.

        Args:
            prefill: of the prompt; stays usable for other replies.
            policy: how deep each token goes.
            sampling: how tokens are drawn.
            max_tokens: limit of the reply; at most, and without it, the model's own.
            kv_policy: what becomes of the layers above an exit; None is the policy's own choice.
            acceptance: which tokens drawn at an exit stand.

        Raises:
            ValueError: an exit layer that the model does not have, an unknown KV policy or one
                that acceptance cannot work with, or a reply that would not fit into the model's
                positions.
        """
        lm = self.lm
        limit = lm.max_tokens if max_tokens is None else min(max_tokens, lm.max_tokens)
        kept = policy.kv_policy if kv_policy is None else kv_policy
        _check(lm, policy, limit, kept, acceptance)
        capacity = len(prefill.ids) + limit
        if capacity > lm.transformer.config.max_position_embeddings:
            raise ValueError(
                f"{len(prefill.ids)} prompt tokens and {limit} more do not fit into the model's "
                f"{lm.transformer.config.max_position_embeddings} positions: shorten the prompt"
            )
        if self._worker.graphs:
            self._worker.graphs.prepare(capacity)
        trace = Trace(
            steps=[],
            model=lm.name,
            policy=policy.name,
            kv_policy=kept,
            sampling=sampling,
            vocabulary=lm.vocabulary,
            weights=self.weight_bytes(),
            prompt_tokens=len(prefill.ids),
            prefill_ms=prefill.ms,
            frame_rate=lm.vocoder.frame_rate if lm.vocoder else lm.speech_rate,
            acceptance=acceptance.mode,
            compiled=self._worker.is_compiled,
        )
        metered = self.drift_meter and kept == "deferred"  # else nothing is ever caught up
        with self._worker.turn:
            cache = prefill.cache.fork(capacity)
        make = self._way(policy, acceptance, trace, metered or self.outside_mass)
        decoding = make(
            lm, self.bank, prefill.ids, cache, policy, limit, acceptance, self.outside_mass,
            metered, trace,
        )  # fmt: skip
        return Generation(decoding, self._worker)

    def _way(
        self, policy: Policy, acceptance: Acceptance, trace: Trace, measured: bool
    ) -> Callable[..., Decoding]:
        """How a reply is decoded, given what `Decoding` is given.

        Args:
            policy: how deep each token goes.
            acceptance: which tokens drawn at exits stand.
            trace: of the reply, with what it is made by.
            measured: whether more is measured at each step than it takes.
        """
        if suits(policy, acceptance, trace):
            if self._worker.has_stretches:
                return partial(StretchDecoding, self._foresight(policy, trace.kv_policy))
            if self._worker.graphs and not measured and can_take_back(policy, trace):
                return LateDecoding
        return Decoding

    def _foresight(self, policy: Policy, kv_policy: KVPolicy) -> Foresight:
        """Of all replies of a policy."""
        defers, top = kv_policy == "deferred", self.lm.transformer.num_layers
        return self._foresights.of(
            (policy, kv_policy), lambda: Foresight(self.bank, policy, defers, top)
        )


class Generation(Iterator[Step]):
    """A reply being made: each `next` gives the next step that stands.

    Where the acceptance is `always` that is one step of the model; else as many as it takes to
    know, after which several stand at once. Nothing handed out is ever taken back. Stop by not
    asking for more, or by `interrupt` from anywhere (also another thread): the iteration then ends
    before its next step. `trace` is there at any time; `history` gives the state for another turn.
    """

    def __init__(self, decoding: Decoding, worker: Worker) -> None:
        self._decoding, self._worker = decoding, worker
        self._interrupted = self._broken = False

    @property
    def trace(self) -> Trace:
        """Of the steps handed out."""
        return self._decoding.trace

    @property
    def spent_ms(self) -> float:
        """Wall-clock of all steps so far, those included that are not handed out yet."""
        return self._decoding.spent_ms

    def interrupt(self) -> None:
        """End the reply before its next step."""
        self._interrupted = True

    def __next__(self) -> Step:
        if self._interrupted:
            self._decoding.interrupt()
        while (step := self._decoding.take()) is None:
            if self.trace.finish != "running":
                raise StopIteration
            with _done_or_broken([self]):
                self._worker.alone(self._decoding.advance(LONGEST))
        return step

    @property
    def opens_group(self) -> bool:
        """Whether the next token is the first of a group of the layout."""
        return self._decoding.opens_group

    def is_over(self) -> bool:
        """Hand out to the trace what stands, without a step; whether nothing is to come."""
        if self._interrupted:
            self._decoding.interrupt()
        while self._decoding.take() is not None:
            pass
        return self.trace.finish != "running"

    def history(self) -> Prefill:
        """What another turn builds on: every token so far, the upper layers of all made good.

        Under `deferred` this is where a catch-up runs on its own; its time and its weights are
        added to the trace. A reply that is not over counts as interrupted.

        Raises:
            ValueError: a step of the reply failed, and left it half done.
        """
        if self._broken:
            raise ValueError("a step of this reply failed: nothing can follow it, ask again")
        self._decoding.interrupt()
        with _done_or_broken([self]):
            self._worker.alone(self._decoding.catch_up())
        return Prefill(tuple(self._decoding.ids), self._decoding.cache, self.trace.flush_ms)


@contextmanager
def _done_or_broken(replies: Sequence[Generation]) -> Iterator[None]:
    """Work on replies; where it fails, by Ctrl-C too, it is left half done and they are over."""
    try:
        yield
    except BaseException:
        for reply in replies:
            reply._broken = True
            with suppress(Exception):  # what there is to tell is why it failed
                reply._decoding.interrupt()
        raise


def decode_batch(replies: Iterable[Generation], size: int) -> Iterator[Generation]:
    """Run replies of one engine to their ends, several at a time; yields each as it ends.

    A reply comes to what it would alone, to rounding, whatever the policies, lengths and prompts
    beside it. Where replies stand at the same place of the layout under one schedule, they run the
    same layers and the weights are read once for all: so a new one begins where another opens a
    group, and exits stay in step.

    Args:
        replies: taken one by one as places become free, so their prompts can be run then.
        size: the most that are decoded together.

    Raises:
        ValueError: no place, or replies of two engines.
    """
    if size < 1:
        raise ValueError("a batch needs room for at least one reply")
    waiting, live = iter(replies), list[Generation]()
    while True:
        joins = not live or any(reply.opens_group for reply in live)
        begun = list(islice(waiting, size - len(live))) if joins else []
        if not live and not begun:
            return
        live += begun
        over = [reply for reply in live if reply.is_over()]
        yield from over
        live = [reply for reply in live if reply not in over]
        if len({id(reply._worker) for reply in live}) > 1:
            raise ValueError("a batch holds replies of one engine")
        for reply in live:
            reply.trace.batch = max(reply.trace.batch, len(live))
        if live:
            most = LONGEST if size == 1 else 1
            with _done_or_broken(live):
                live[0]._worker.together([reply._decoding.advance(most) for reply in live])


def _overlaid(states: Tensor, features: Sequence[tuple[int, Tensor]], offset: int) -> Tensor:
    """Embeddings (1, T, D) with rows replaced; `offset` is where the prompt's first id stands."""
    for place, rows in features:
        start, end = place + offset, place + offset + len(rows)
        if place < 0 or end > states.shape[1]:
            raise ValueError("features stand where the prompt has no ids for them")
        states[0, start:end] = rows.to(states)
    return states


def _check(
    lm: SpokenLM, policy: Policy, limit: int, kv_policy: KVPolicy, acceptance: Acceptance
) -> None:
    """Raise ValueError for settings that the model cannot run."""
    layers = lm.transformer.num_layers
    for layer in policy.exit_layers():
        if not 0 < layer < layers:
            raise ValueError(f"exit layer {layer} is not between 1 and {layers - 1}")
    if kv_policy not in KV_POLICIES:
        raise ValueError(f"unknown KV policy {kv_policy!r}: use one of {', '.join(KV_POLICIES)}")
    if acceptance.verifies and policy.exit_layers() and kv_policy != "deferred":
        raise ValueError(
            f"{acceptance.mode} acceptance needs the KV policy deferred: under {kv_policy} full "
            "depth is never run for tokens that exited"
        )
    if isinstance(policy, DriftSpark) and kv_policy != "deferred":
        raise ValueError(
            f"a schedule by drift needs the KV policy deferred: under {kv_policy} there is no "
            "refresh to measure it at"
        )
    if limit < 1:
        raise ValueError("a reply needs room for at least one token")
