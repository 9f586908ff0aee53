"""One reply as it is decoded: where it stands, its next step, and what is rolled back.

Under the KV policy `deferred` a step that runs past a layer takes along every row that waits
there, in the same batch, so that each layer's keys are complete and in order whenever they are
read. A full-depth step therefore sees exactly the full model's states for the tokens drawn; where
the acceptance wants it, it also draws what full depth would have drawn at the rows that waited.
Steps are handed out once they stand. Asks for work (`spark.work`), does none; knows token ids and
layers; words and sound are the model's own business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spark import hardware
from spark.acceptance import Acceptance
from spark.cache import KVCache, Pending, Rows
from spark.confidence import mass_outside, state_similarity
from spark.foresight import place_of, speech_only, surprised
from spark.heads import HeadBank
from spark.modality import Modality
from spark.models.base import SpokenLM
from spark.schedule import Measure, Place, Policy
from spark.trace import Flush, Step, Trace
from spark.verification import Draft, Spot, Verifier
from spark.watch import CaughtUp, Watch
from spark.work import Ask, Drawn, Look, Sure, Task, Token, climb


@dataclass(frozen=True)
class Choice:
    """What a step came to.

    Attributes:
        spot: of the token.
        token: drawn.
        head: whose distribution it was drawn from.
        heads: evaluated on the way, the one that gave that distribution last.
        depth: layers below it.
        sureness: by the policy's measure, else the largest probability.
        states: (1, T, D) of which it saw the last; None where nobody looks at them.
    """

    spot: Spot
    token: int
    head: str
    heads: tuple[str, ...]
    depth: int
    sureness: float
    states: Tensor | None = None


@dataclass(frozen=True)
class Begun:
    """A step whose layers, head and draw are under way, though what it drew may not be read yet.

    Attributes:
        spot: of the token.
        head: asked.
        depth: layers below it.
        refresh: whether rows that waited come along to the top.
        pending: rows that wait once it is done.
        made: what comes of it.
    """

    spot: Spot
    head: str
    depth: int
    refresh: bool
    pending: int
    made: Drawn


class Decoding:
    """A reply being made.

    Args:
        lm: the model.
        bank: its heads.
        ids: of the prompt.
        cache: of all of them but the last, with room for the reply; will be written to.
        policy: how deep each token goes.
        limit: of the reply's tokens.
        acceptance: which tokens drawn at exits stand.
        outside_mass: whether to log what a speech-row head leaves out.
        drift_meter: whether to log how far exits lay from full depth; a policy that follows the
            drift needs no asking.
        trace: an empty one, filled as steps are handed out.
    """

    def __init__(
        self,
        lm: SpokenLM,
        bank: HeadBank,
        ids: Sequence[int],
        cache: KVCache,
        policy: Policy,
        limit: int,
        acceptance: Acceptance,
        outside_mass: bool,
        drift_meter: bool,
        trace: Trace,
    ) -> None:
        self._lm, self._bank, self._policy, self._limit = lm, bank, policy, limit
        self._verifier = Verifier(bank, acceptance, trace.sampling, lm.vocabulary.size)
        self._verifies, self._outside_mass, self.trace = acceptance.verifies, outside_mass, trace
        self._top = lm.transformer.num_layers
        self._prompt, self.ids, self.cache = len(ids), list(ids), cache
        self._held_before = list(cache.lengths)
        self._layout = lm.layout.start(lm.vocabulary, ids[-1])
        self._codes = 0
        self._pending = Pending()
        self._drafts: list[Draft] = []  # one a pending row, in order, if anybody asks about them
        self._watch = Watch(policy, drift_meter, bank, self._verifier, trace.sampling)
        self._caught_up: CaughtUp | None = None  # by the step that runs
        self._drawn: list[Step] = []  # not handed out yet
        self.spent_ms = 0.0  # of all steps so far, handed out or not

    def take(self) -> Step | None:
        """Hand out the next step that stands, None where there is none (yet)."""
        if self.trace.finish != "running":
            return None
        if not self._drawn or (self._verifies and self._drafts):
            if not self._unsure and len(self.trace.steps) >= self._limit:
                self.trace.finish = "length"
            return None
        step = self._drawn.pop(0)
        self.trace.steps.append(step)
        if step.token_id in self._lm.vocabulary.stop_ids:
            self.trace.finish = "stop"
        return step

    def advance(self, most: int = 1) -> Task[None]:
        """Draw a token; or, where the reply would end with tokens that may not stand, ask.

        Args:
            most: tokens that may be drawn at once, where that saves anything.
        """
        over = self._count >= self._limit or self.ids[-1] in self._lm.vocabulary.stop_ids
        start, waited = time.perf_counter(), self._pending.lowest is not None
        if self._unsure and over:
            choice = yield from self._settle()
        else:
            choice = yield from self._choose()
        caught, self._caught_up = self._caught_up, None
        asked = (yield from self._watch.read(caught)) if self._watch.steers else ()
        if choice is None:
            spent_ms = self._spent(start)
            last = self._drawn.pop()
            self._drawn.append(replace(last, elapsed_ms=last.elapsed_ms + spent_ms))
        else:
            if asked:
                choice = replace(choice, heads=(*asked, *choice.heads))
            rejected_ms = self._roll_back(choice.spot) if choice.spot.index < self._count else 0.0
            elapsed_ms = self._spent(start) + rejected_ms
            outside = math.nan
            if self._outside_mass and choice.states is not None:
                (outside,) = yield from self._outside([choice.head], choice.states[0, -1:])
            refresh = waited and choice.depth == self._top
            step = self._recorded(choice, refresh, len(self._pending), elapsed_ms, outside)
            self._drawn.append(step)
            self._follow(choice.token)
        if self._watch.wants:
            if not self._watch.steers:  # a meter alone is no part of the work
                yield from self._watch.read(caught)
            self._watch.note(self.trace.steps, self._drawn)

    def interrupt(self) -> None:
        """End the reply with the last step handed out."""
        if self.trace.finish != "running":
            return
        self.trace.finish = "interrupted"
        self.trace.ahead += self._drawn
        self._drawn.clear()
        del self.ids[self._prompt + len(self.trace.steps) :]
        self._forget(len(self.ids) - 1)
        self._pending.truncate(len(self.ids) - 1)
        self._drafts = [d for d in self._drafts if d.spot.position < len(self.ids) - 1]

    def _forget(self, length: int) -> None:
        """Keep the keys and values of the first rows, of all tokens so far but the last."""
        self.cache.truncate(length)
        if self.trace.kv_policy == "skip":  # upper layers hold those alone that came so far
            depths = [step.depth for step in self.trace.steps]
            for layer, before in enumerate(self._held_before):
                came = before + sum(depth > layer for depth in depths)
                self.cache.lengths[layer] = min(self.cache.lengths[layer], came)

    def catch_up(self) -> Task[None]:
        """Run the upper layers of what is pending, so that another turn can follow."""
        low, start = self._pending.lowest, time.perf_counter()
        if low is not None:
            yield from self._rise_pending()
            hardware.wait(self._lm.transformer.device)
            self.trace.flushes.append(Flush(low, self._top))
            self.trace.flush_ms += self._spent(start)

    @property
    def opens_group(self) -> bool:
        """Whether the next token is the first of a group of the layout."""
        return self._layout.opens_group

    @property
    def _count(self) -> int:
        """Tokens of the reply so far, those included that may not stand."""
        return len(self.ids) - self._prompt

    @property
    def _unsure(self) -> bool:
        """Whether there are tokens that may be taken back."""
        return self._verifies and len(self._drafts) > 0

    def _spent(self, start: float) -> float:
        """Milliseconds since `start`, which count as work on this reply."""
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        self.spent_ms += elapsed_ms
        return elapsed_ms

    # Up to a token

    def _choose(self) -> Task[Choice]:
        """Run the last token up to where the policy stops it, and leave its upper layers."""
        body, bank, policy = self._lm.transformer, self._bank, self._policy
        spot = self._here()
        layers, place = self._exits(spot), self._place(spot)
        if policy.measure is None and (layers or not self._drafts):
            start = Rows(body.embed_one(self.ids[-1]), spot.position)
            begun = yield from self._begin(spot, layers, start)
            token, sureness, _ = begun.made.read()
            if layers:
                self._keep(spot, token, begun.head, begun.made.logits)
            return self._chosen(begun, token, sureness)
        speech_only, by_state = self._speech_only(spot), policy.measure == "state_similarity"
        rows, low = Rows(body.embed_one(self.ids[-1]), spot.position), 0
        heads: tuple[str, ...] = ()
        for layer in layers:
            name = bank.name(layer, speech_only)
            if by_state:
                below = yield from self._rise(rows, low, max(low, layer - 1))
                rows, low = (yield from self._rise(below, max(low, layer - 1), layer)), layer
                sure = float(state_similarity(below.states[:, -1], rows.states[:, -1]))
            else:
                rows, legs = self._pending.joined(rows, low, layer)
                seen = yield Look(rows, legs, self.cache, name, self._measure)
                rows, low, sure = Rows(seen.states, rows.start), layer, seen.sureness
                heads = (*heads, name)
            if not policy.stops(sure, place):
                continue
            if by_state:
                heads, logits = (*heads, name), (yield Ask(name, rows.states[:, -1]))
            else:
                logits = seen.logits
            token = int((yield self._verifier.draw(logits, name, [spot], self.ids)))
            self._leave(rows, layer)
            self._keep(spot, token, name, logits)
            return Choice(spot, token, name, heads, layer, sure, rows.states)
        choice = yield from self._end(spot, rows, low)
        return replace(choice, heads=(*heads, *choice.heads))

    def _end(self, spot: Spot, rows: Rows, low: int) -> Task[Choice]:
        """Run rows from layer `low` to the top and draw there, or take back a draft on the way."""
        if self._drafts:
            rows = yield from self._rise(rows, low, self._top)
            choice = yield from self._at_the_top(rows, spot)
            assert choice is not None
            return choice
        begun = yield from self._begin(spot, (), rows, low)
        token, sureness, _ = begun.made.read()
        if self._policy.measure == "state_similarity":
            sureness = math.nan
        elif self._measure != "max_prob":
            sureness = float((yield Sure(self._measure, begun.made.logits)))
        return self._chosen(begun, token, sureness)

    def _here(self) -> Spot:
        return Spot(self._count, len(self.ids) - 1, self._layout.fork(), self._codes)

    def _begin(
        self, spot: Spot, layers: Sequence[int], rows: Rows, low: int = 0
    ) -> Task[Begun]:
        """Begin a step of which is known where it stops, or what is left of one.

        Args:
            spot: where it draws.
            layers: at the first of them; at the top where there are none.
            rows: of the last token, and those that came along to `low`.
            low: the first layer to run.
        """
        layer = layers[0] if layers else self._top
        head = (
            self._bank.name(layer, self._speech_only(spot))
            if layers
            else self._verifier.asked([spot])
        )
        waited = self._pending.lowest is not None
        rows, legs = self._pending.joined(rows, low, layer)
        how = self._verifier.how(head, [spot], self.ids)
        made = yield Token(rows, legs, self.cache, head, how)
        if layers:
            self._leave(Rows(made.states, rows.start), layer)
        return Begun(spot, head, layer, waited and not layers, len(self._pending), made)

    def _chosen(self, begun: Begun, token: int, sureness: float) -> Choice:
        heads = (begun.head,)
        return Choice(
            begun.spot, token, begun.head, heads, begun.depth, sureness, begun.made.states
        )

    @property
    def _measure(self) -> Measure:
        """Of logits: the policy's, or what is logged where it has none."""
        measure = self._policy.measure
        return "max_prob" if measure in (None, "state_similarity") else measure

    def _speech_only(self, spot: Spot) -> bool:
        """Whether the policy's step computes speech rows only."""
        return speech_only(self._policy, spot.layout)

    def _exits(self, spot: Spot) -> tuple[int, ...]:
        """Where the step there may stop; () is the top."""
        return () if surprised(self._policy, spot.layout) else self._policy.exits(self._place(spot))

    def _place(self, spot: Spot) -> Place:
        progress = spot.index / self._limit
        return place_of(spot.layout, len(self._pending), progress, self._watch.k)

    def _rise(self, rows: Rows, low: int, high: int) -> Task[Rows]:
        """Run rows from layer `low` to `high`, taking along every row that waits on the way."""
        rows, legs = self._pending.joined(rows, low, high)
        return (yield from climb(rows, legs, self.cache))

    def _rise_pending(self) -> Task[Rows]:
        """Run everything that waits to the top."""
        low = self._pending.lowest
        assert low is not None
        rows = self._pending.take(low)
        assert rows is not None
        return (yield from self._rise(rows, low, self._top))

    def _keep(self, spot: Spot, token: int, head: str, logits: Tensor) -> None:
        """Remember what was drawn at an exit, if anybody asks about it."""
        if self._verifies or self._watch.wants:
            self._drafts.append(Draft(spot, token, head, logits))

    def _leave(self, rows: Rows, layer: int) -> None:
        """Do with the layers above an exit what the KV policy says."""
        if self.trace.kv_policy == "deferred":
            self._pending.push(layer, rows)
        elif self.trace.kv_policy == "propagate":
            body = self._lm.transformer
            positions = torch.arange(rows.start, rows.end, device=body.device)
            body.append_keys(layer, self._top, rows.states, positions, self.cache)

    # Full depth, asked

    def _settle(self) -> Task[Choice | None]:
        """Ask full depth about all drafts, without a token to follow; None where all stand."""
        low = self._pending.lowest
        assert low is not None
        rows = yield from self._rise_pending()
        asked = self._verifier.asked([draft.spot for draft in self._drafts])
        self.trace.flushes.append(Flush(low, self._top, (asked,)))
        choice = yield from self._at_the_top(rows, None)
        return choice and replace(choice, heads=())  # the flush has paid for it

    def _at_the_top(self, rows: Rows, spot: Spot | None) -> Task[Choice | None]:
        """Full depth's draw at the first draft that may not stand, or else at `spot`.

        Args:
            rows: after the last layer; the drafts' rows and that of `spot` come last.
            spot: of the token to follow; None where the reply is over if all drafts stand.
        """
        drafts, self._drafts = self._drafts, []
        states = rows.states[0, -len(drafts) - (spot is not None) :]
        asked = drafts if self._verifies else []
        verdict = yield from self._verifier.judge(
            states[len(drafts) - len(asked) :], asked, spot, self.ids
        )
        self._caught_up = CaughtUp(drafts, states, verdict.verified)
        self.trace.verified += len(verdict.verified)
        self.trace.corrected += verdict.corrected
        if verdict.answer is None:
            return None
        answer, sureness = verdict.answer, math.nan
        if self._policy.measure != "state_similarity":
            sureness = float((yield Sure(self._measure, answer.logits)))
        heads = (verdict.asked,)
        return Choice(
            answer.spot, answer.token, answer.head, heads, self._top, sureness, answer.state[None]
        )

    # After a token

    def _roll_back(self, spot: Spot) -> float:
        """Forget every token from a spot on; returns the milliseconds that went into them."""
        gone = [step for step in self._drawn if step.index >= spot.index]
        del self._drawn[len(self._drawn) - len(gone) :]
        self.trace.rejected += gone
        del self.ids[spot.position + 1 :]
        self.cache.truncate(spot.position + 1)
        self._layout, self._codes = spot.layout.fork(), spot.codes
        return sum(step.elapsed_ms for step in gone)

    def _recorded(
        self, choice: Choice, refresh: bool, pending: int, elapsed_ms: float, outside_mass: float
    ) -> Step:
        spot, words, rate = choice.spot, self._lm.vocabulary, self.trace.frame_rate
        modality = words.modality(choice.token)
        return Step(
            index=spot.index,
            chunk=spot.layout.chunk,
            slot=spot.layout.slot,
            modality=modality,
            token_id=choice.token,
            text=self._lm.decode_text([choice.token]) if modality is Modality.TEXT else "",
            time_s=spot.codes / rate if rate else math.nan,
            depth=choice.depth,
            refresh=refresh,
            pending=pending,
            head=choice.head,
            confidence=choice.sureness,
            elapsed_ms=elapsed_ms,
            heads=choice.heads,
            full_head=self._bank.full_name(choice.head, self._speech_only(spot)),
            outside_mass=outside_mass,
            k=self._watch.k,
        )

    def _outside(self, heads: Sequence[str], states: Tensor) -> Task[list[float]]:
        """Probability that deciding speech-row heads left out, nan where not measured.

        Args:
            heads: that decided.
            states: (n, D) that they saw.
        """
        found, ids = [math.nan] * len(heads), self._bank.heads["speech"].row_ids
        sliced = [i for i, head in enumerate(heads) if head in ("speech", "untrained-speech")]
        if sliced and ids is not None:
            logits = yield Ask("full", states[sliced])
            for i, mass in zip(sliced, mass_outside(logits, ids).tolist(), strict=True):
                found[i] = mass
        return found

    def _follow(self, token: int) -> None:
        """Make a token the next one to run."""
        self.ids.append(token)
        self._layout.advance(token)
        self._codes += self._lm.vocabulary.is_speech(token)
