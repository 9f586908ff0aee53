"""The decoding loop: one token a step, as deep as the policy says, exits made good later.

Under the KV policy `deferred` a step that runs past a layer takes along every row that waits
there, in the same batch, so that each layer's keys are complete and in order whenever they are
read. A full-depth step therefore sees exactly the full model's states for the tokens emitted.
Knows token ids and layers; words and sound are the model's own business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spark.cache import KVCache, Pending, Rows
from spark.confidence import confidence, mass_outside, state_similarity
from spark.heads import HeadBank, HeadKind
from spark.modality import Modality, Slot
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings, draw
from spark.schedule import KV_POLICIES, FixedExit, KVPolicy, Place, Policy
from spark.trace import Step, Trace, WeightBytes


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
    """

    def __init__(
        self,
        lm: SpokenLM,
        speech_row_head: bool = True,
        head: HeadKind = "fitted",
        outside_mass: bool = True,
    ) -> None:
        self.lm = lm
        self.bank = HeadBank(lm, speech_row_head, head)
        self.outside_mass = outside_mass and speech_row_head
        body = lm.transformer
        self.positions = torch.arange(body.config.max_position_embeddings, device=body.device)

    def weight_bytes(self) -> WeightBytes:
        """Bytes that one evaluation of each part reads."""
        body = self.lm.transformer
        layers = range(body.num_layers)
        return WeightBytes(
            layers=tuple(body.layer_bytes(i) for i in layers),
            projections=tuple(body.projection_bytes(i) for i in layers),
            heads=self.bank.nbytes(),
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
        start = time.perf_counter()
        body = self.lm.transformer
        known = history.ids if history else ()
        every = (*known, *ids)
        cache = history.cache.fork(len(every)) if history else body.new_cache(len(every))
        done = max(len(known) - 1, 0)  # the last known token has not been run
        if len(every) - 1 > done:
            fresh = torch.tensor([every[done:-1]], device=body.device)
            positions = self.positions[done : len(every) - 1]
            states = _overlaid(body.embed(fresh), features, len(known) - done)
            body.run_layers(0, body.num_layers, states, positions, cache)
            if body.device.type == "cuda":  # which works on while the clock is read
                torch.cuda.synchronize(body.device)
        return Prefill(tuple(every), cache, 1e3 * (time.perf_counter() - start))

    def generate(
        self,
        prefill: Prefill,
        policy: Policy,
        sampling: SamplingSettings,
        max_tokens: int | None = None,
        kv_policy: KVPolicy | None = None,
    ) -> Generation:
        """Start a reply; iterate over the result to run it.

        Args:
            prefill: of the prompt; stays usable for other replies.
            policy: how deep each token goes.
            sampling: how tokens are drawn.
            max_tokens: limit of the reply; at most, and without it, the model's own.
            kv_policy: what becomes of the layers above an exit; None is the policy's own choice.

        Raises:
            ValueError: an exit layer that the model does not have, an unknown KV policy, or a
                reply that would not fit into the model's positions.
        """
        return Generation(self, prefill, policy, sampling, max_tokens, kv_policy)


@dataclass(frozen=True)
class _Decision:
    """What a step came to, before a token is drawn."""

    state: Tensor  # (B, D), below the deciding head
    logits: Tensor  # (B, R)
    depth: int
    heads: tuple[str, ...]  # all evaluated, the deciding one last
    sureness: Tensor  # (B,)


class Generation(Iterator[Step]):
    """A reply being made: each `next` runs one step.

    Stop by not asking for more, or by `interrupt` from anywhere (also another thread): the
    iteration then ends before its next step. `trace` is there at any time; `history` gives the
    state for another turn.
    """

    def __init__(
        self,
        engine: Engine,
        prefill: Prefill,
        policy: Policy,
        sampling: SamplingSettings,
        max_tokens: int | None,
        kv_policy: KVPolicy | None,
    ) -> None:
        lm = engine.lm
        limit = lm.max_tokens if max_tokens is None else min(max_tokens, lm.max_tokens)
        _check(lm, policy, limit, kv_policy)
        self._engine, self._policy, self._sampling, self._limit = engine, policy, sampling, limit
        self._ids = list(prefill.ids)
        capacity = len(prefill.ids) + limit
        if capacity > lm.transformer.config.max_position_embeddings:
            raise ValueError(
                f"{len(prefill.ids)} prompt tokens and {limit} more do not fit into the model's "
                f"{lm.transformer.config.max_position_embeddings} positions: shorten the prompt"
            )
        self._cache = prefill.cache.fork(capacity)
        self._pending = Pending()
        self._layout = lm.layout.start(lm.vocabulary, prefill.ids[-1])
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen = torch.zeros(lm.vocabulary.size, dtype=torch.bool)
            self._seen[list(prefill.ids)] = True
            self._seen = self._seen.to(lm.transformer.device)
        self._interrupted = False
        self._codes = 0
        self.trace = Trace(
            steps=[],
            model=lm.name,
            policy=policy.name,
            kv_policy=kv_policy or policy.kv_policy,
            sampling=sampling,
            vocabulary=lm.vocabulary,
            weights=engine.weight_bytes(),
            prompt_tokens=len(prefill.ids),
            prefill_ms=prefill.ms,
            frame_rate=lm.vocoder.frame_rate if lm.vocoder else lm.speech_rate,
        )

    def interrupt(self) -> None:
        """End the reply before its next step."""
        self._interrupted = True

    def __next__(self) -> Step:
        if self.trace.finish == "running":
            if self._interrupted:
                self.trace.finish = "interrupted"
            elif len(self.trace.steps) >= self._limit:
                self.trace.finish = "length"
        if self.trace.finish != "running":
            raise StopIteration
        step = self._step()
        self.trace.steps.append(step)
        if step.token_id in self._engine.lm.vocabulary.stop_ids:
            self.trace.finish = "stop"
        return step

    @torch.inference_mode()
    def _step(self) -> Step:
        start = time.perf_counter()
        layout, bank = self._layout, self._engine.bank
        forced = layout.slot is Slot.SPEECH and not self._surprised()
        waited = len(self._pending) > 0
        decision = self._decide(self._place(), forced)
        ids = bank.heads[decision.heads[-1]].row_ids
        token = int(draw(decision.logits, ids, self._sampling, len(self._ids), self._seen))
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        full = decision.depth == self._engine.lm.transformer.num_layers
        step = Step(
            index=len(self.trace.steps),
            chunk=layout.chunk,
            slot=layout.slot,
            modality=self._engine.lm.vocabulary.modality(token),
            token_id=token,
            text=self._words(token),
            time_s=self._codes / self.trace.frame_rate if self.trace.frame_rate else math.nan,
            depth=decision.depth,
            refresh=waited and full,
            pending=len(self._pending),
            head=decision.heads[-1],
            confidence=float(decision.sureness),
            elapsed_ms=elapsed_ms,
            heads=decision.heads,
            full_head=bank.full_name(decision.heads[-1], forced),
            outside_mass=self._outside(decision),
        )
        self._follow(token)
        return step

    def _surprised(self) -> bool:
        """Whether the last token left the layout, so that this step trusts it in nothing.

        Such a step runs in full and on every row. A fixed exit has no such remedy: it is what
        exits do where nothing is made good.
        """
        return self._layout.disagreed and not isinstance(self._policy, FixedExit)

    def _place(self) -> Place:
        layout = self._layout
        return Place(
            slot=layout.slot,
            position=layout.position_in_chunk,
            chunk_length=layout.chunk_length,
            progress=len(self.trace.steps) / self._limit,
            pending=len(self._pending),
        )

    def _decide(self, place: Place, forced: bool) -> _Decision:
        """Run the last token up to where the policy stops it, and leave its upper layers."""
        body, bank, policy = self._engine.lm.transformer, self._engine.bank, self._policy
        exits = () if self._surprised() else policy.exits(place)
        by_state = policy.measure == "state_similarity"
        measure = "max_prob" if policy.measure is None or by_state else policy.measure
        token = torch.tensor([[self._ids[-1]]], device=body.device)
        rows, low = Rows(body.embed(token), len(self._ids) - 1), 0
        heads: tuple[str, ...] = ()
        for layer in exits:
            if by_state:
                below = self._rise(rows, low, layer - 1) if layer - 1 > low else rows
                rows, low = self._rise(below, max(low, layer - 1), layer), layer
                sureness = state_similarity(below.states[:, -1], rows.states[:, -1])
                if not policy.stops(float(sureness), place):
                    continue
            else:
                rows, low = self._rise(rows, low, layer), layer
            heads = (*heads, bank.name(layer, forced))
            logits = bank.heads[heads[-1]].logits(rows.states[:, -1])
            if not by_state:
                sureness = confidence(measure, logits)
            if policy.measure is None or policy.stops(float(sureness), place):
                self._leave(rows, layer)
                return _Decision(rows.states[:, -1], logits, layer, heads, sureness)
        rows = self._rise(rows, low, body.num_layers)
        heads = (*heads, bank.name(None, forced))
        logits = bank.heads[heads[-1]].logits(rows.states[:, -1])
        sureness = logits.new_full((1,), math.nan) if by_state else confidence(measure, logits)
        return _Decision(rows.states[:, -1], logits, body.num_layers, heads, sureness)

    def _rise(self, rows: Rows, low: int, high: int) -> Rows:
        """Run rows from layer `low` to `high`, taking along every row that waits on the way."""
        body = self._engine.lm.transformer
        while low < high:
            older = self._pending.take(low)
            rows = rows if older is None else older.then(rows)
            waiting = self._pending.lowest
            stop = high if waiting is None else min(high, waiting)
            positions = self._engine.positions[rows.start : rows.end]
            states = body.run_layers(low, stop, rows.states, positions, self._cache)
            rows, low = Rows(states, rows.start), stop
        return rows

    def _leave(self, rows: Rows, layer: int) -> None:
        """Do with the layers above an exit what the KV policy says."""
        body = self._engine.lm.transformer
        if self.trace.kv_policy == "deferred":
            self._pending.push(layer, rows)
        elif self.trace.kv_policy == "propagate":
            positions = self._engine.positions[rows.start : rows.end]
            body.append_keys(layer, body.num_layers, rows.states, positions, self._cache)

    def _words(self, token: int) -> str:
        lm = self._engine.lm
        is_text = lm.vocabulary.modality(token) is Modality.TEXT
        return lm.decode_text([token]) if is_text else ""

    def _outside(self, decision: _Decision) -> float:
        """Probability that the deciding speech-row head left out, nan where not measured."""
        heads = self._engine.bank.heads
        sliced, ids = decision.heads[-1] in ("speech", "untrained-speech"), heads["speech"].row_ids
        if not self._engine.outside_mass or not sliced or ids is None:
            return math.nan
        return float(mass_outside(heads["full"].logits(decision.state), ids))

    def _follow(self, token: int) -> None:
        """Make an emitted token the next one to run."""
        self._ids.append(token)
        self._layout.advance(token)
        self._codes += self._engine.lm.vocabulary.is_speech(token)
        if self._seen is not None:
            self._seen[token] = True

    @torch.inference_mode()
    def history(self) -> Prefill:
        """What another turn builds on: every token so far, the upper layers of all made good.

        Under `deferred` this is the one place where a catch-up runs on its own; its time and its
        weights are added to the trace. A reply that is not over counts as interrupted.
        """
        if self.trace.finish == "running":
            self.trace.finish = "interrupted"
        start = time.perf_counter()
        low, top = self._pending.lowest, self._engine.lm.transformer.num_layers
        if low is not None:
            rows = self._pending.take(low)
            assert rows is not None
            self._rise(rows, low, top)
            self.trace.flushes.append((low, top))
            self.trace.flush_ms += 1e3 * (time.perf_counter() - start)
        return Prefill(tuple(self._ids), self._cache, self.trace.flush_ms)


def _overlaid(states: Tensor, features: Sequence[tuple[int, Tensor]], offset: int) -> Tensor:
    """Embeddings (1, T, D) with rows replaced; `offset` is where the prompt's first id stands."""
    for place, rows in features:
        start, end = place + offset, place + offset + len(rows)
        if place < 0 or end > states.shape[1]:
            raise ValueError("features stand where the prompt has no ids for them")
        states[0, start:end] = rows.to(states)
    return states


def _check(lm: SpokenLM, policy: Policy, limit: int, kv_policy: KVPolicy | None) -> None:
    """Raise ValueError for settings that the model cannot run."""
    layers = lm.transformer.num_layers
    for layer in policy.exit_layers():
        if not 0 < layer < layers:
            raise ValueError(f"exit layer {layer} is not between 1 and {layers - 1}")
    if kv_policy is not None and kv_policy not in KV_POLICIES:
        raise ValueError(f"unknown KV policy {kv_policy!r}: use one of {', '.join(KV_POLICIES)}")
    if limit < 1:
        raise ValueError("a reply needs room for at least one token")
