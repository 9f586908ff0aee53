"""A slow reference for the engine: no cache, no pending rows, no roll-back.

Every token is drawn from the states of the whole model over all ids so far, computed anew each
time. What the engine must come to, tokens, depths, rejections, bytes, is kept in plain lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from spark.acceptance import ALWAYS, Acceptance
from spark.confidence import confidence, state_similarity
from spark.engine import Engine
from spark.modality import LayoutState, Slot
from spark.sampling import SamplingSettings, draw
from spark.schedule import DriftSpark, FixedExit, Place, Policy


@dataclass
class SlowReply:
    """What a reply came to."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    verified: int = 0
    corrected: int = 0
    drawn: int = 0  # also those rejected
    read: int = 0  # bytes
    drifts: dict[int, tuple[float, float]] = field(default_factory=dict)  # overlap, KL by index
    ks: dict[int, int | None] = field(default_factory=dict)  # after full steps, by index


class SlowDecoder:
    """Decodes one reply; see `reply`."""

    def __init__(
        self, engine: Engine, policy: Policy, s: SamplingSettings, acceptance: Acceptance
    ) -> None:
        self.lm, self.heads, self.bank = engine.lm, engine.bank.heads, engine.bank
        self.policy, self.s, self.acceptance = policy, s, acceptance
        self.bytes = engine.weight_bytes()
        self.out = SlowReply()
        self.k = min(max(3, policy.k_min), policy.k_max) if isinstance(policy, DriftSpark) else None

    @torch.inference_mode()
    def states(self, ids: Sequence[int]) -> list[Tensor]:
        """(T, D) after each number of layers."""
        body = self.lm.transformer
        cache, state = body.new_cache(len(ids)), body.embed(torch.tensor([list(ids)]))
        after = [state[0]]
        for layer in range(body.num_layers):
            state = body.run_layers(layer, layer + 1, state, torch.arange(len(ids)), cache)
            after.append(state[0])
        return after

    def layout(self, ids: Sequence[int], prompt: int) -> LayoutState:
        """Where the layout stands after ids."""
        state = self.lm.layout.start(self.lm.vocabulary, ids[prompt - 1])
        for token in ids[prompt:]:
            state.advance(token)
        return state

    def drawn(self, name: str, state: Tensor, ids: Sequence[int], more: float = 0.0, at: int = -1):
        """The token that a head gives after ids, the logit of `at` raised by `more`; its logits."""
        head = self.heads[name]
        logits = head.logits(state[None])
        rows = list(range(logits.shape[1])) if head.row_ids is None else head.row_ids.tolist()
        if at in rows:
            logits[0, rows.index(at)] += more
        seen = torch.zeros(self.lm.vocabulary.size, dtype=torch.bool)
        seen[list(ids)] = True
        return int(draw(logits, head.row_ids, self.s, len(ids), seen)), logits

    def full_draw(self, after: list[Tensor], ids: Sequence[int], prompt: int):
        """Full depth's token after ids (a beginning of those `after` was made of)."""
        place = self.layout(ids, prompt)
        name = self.bank.name(None, place.slot is Slot.SPEECH and not place.disagreed)
        return *self.drawn(name, after[-1][len(ids) - 1], ids), name

    def depth(self, after, place: LayoutState, progress: float, waiting: int):
        """Where the policy stops, and the heads asked up to there."""
        policy, heads = self.policy, []
        surprised = place.disagreed and not isinstance(policy, FixedExit)
        forced = place.slot is Slot.SPEECH and not surprised
        here = Place(
            place.slot, place.position_in_chunk, place.chunk_length, progress, waiting, self.k
        )
        for layer in () if surprised else policy.exits(here):
            name = self.bank.name(layer, forced)
            if policy.measure == "state_similarity":
                sure = float(state_similarity(after[layer - 1][-1], after[layer][-1]))
                if not policy.stops(sure, here):
                    continue
            elif policy.measure is not None:
                logits = self.heads[name].logits(after[layer][-1][None])
                sure = float(confidence(policy.measure, logits))
                if not policy.stops(sure, here):
                    heads.append(name)
                    continue
            return layer, [*heads, name]
        return len(after) - 1, heads

    def check(self, after, waiting: list[int], ids: list[int], prompt: int) -> list[int] | None:
        """Ids up to the first waiting token that may not stand, corrected; None where all may."""
        for place in waiting:
            before, token = ids[:place], ids[place]
            full, _, name = self.full_draw(after, before, prompt)
            self.out.verified += 1
            groups, more = self.acceptance.groups, self.acceptance.tolerance
            if token == full or (groups is not None and groups[token] == groups[full]):
                continue
            raised, _ = self.drawn(name, after[-1][place - 1], before, more, token)
            if more and raised == token:
                continue
            self.out.corrected += 1
            return [*before, full]
        return None

    def drift(self, after, depth: int, place: int, ids: Sequence[int], prompt: int):
        """Overlap and KL at a token drawn at an exit, over the ids that both heads have."""
        layout = self.layout(ids[:place], prompt)
        forced = layout.slot is Slot.SPEECH and not layout.disagreed
        found = []
        for layer, name in (
            (-1, self.bank.name(None, forced)),
            (depth, self.exit_name(depth, layout)),
        ):
            head = self.heads[name]
            rows = range(head.rows.shape[0]) if head.row_ids is None else head.row_ids.tolist()
            logits = head.logits(after[layer][place - 1]).tolist()
            found.append(dict(zip(rows, logits, strict=True)))
        both = sorted(found[0].keys() & found[1].keys())
        warmth = self.s.temperature if self.s.temperature > 0 else 1.0
        p, q = (softmax(np.array([logits[i] for i in both]) / warmth) for logits in found)
        return float(np.minimum(p, q).sum()), float(rel_entr(p, q).sum())

    def exit_name(self, depth: int, layout: LayoutState) -> str:
        """The head asked at an exit: a fixed exit trusts the layout whatever came."""
        surprised = layout.disagreed and not isinstance(self.policy, FixedExit)
        return self.bank.name(depth, layout.slot is Slot.SPEECH and not surprised)

    def watch(self, after, looked_at: list[int], ids: list[int], depths: list[int], prompt: int):
        """Read the drift of exits that have caught up, and move K by it."""
        distances = []
        for place in looked_at:
            seen = self.drift(after, depths[place - prompt], place, ids, prompt)
            self.out.drifts[place - prompt] = seen
            distances.append(1 - seen[0])
        if self.k is not None and distances:
            calm = sum(distances) / len(distances) <= self.policy.target
            self.k = (
                min(self.k + 1, self.policy.k_max) if calm else max(self.k - 1, self.policy.k_min)
            )

    def charge(self, low: int, high: int, heads: Sequence[str]) -> None:
        """Bytes of a run."""
        self.out.read += sum(self.bytes.layers[low:high])
        self.out.read += sum(self.bytes.heads[name] for name in heads)

    def asked(self, waiting: list[int], ids: list[int], prompt: int, also: int | None) -> str:
        """The head with full depth's rows at all these places."""
        places = [*waiting, *([] if also is None else [also])]
        states = [self.layout(ids[:place], prompt) for place in places]
        names = {self.bank.name(None, p.slot is Slot.SPEECH and not p.disagreed) for p in states}
        return "full" if len(names) > 1 else names.pop()

    @torch.inference_mode()
    def reply(self, prompt_ids: Sequence[int], limit: int) -> SlowReply:
        """The reply to a prompt, up to a stop or its limit."""
        ids, prompt, top = list(prompt_ids), len(prompt_ids), self.lm.transformer.num_layers
        depths: list[int] = []
        waiting: list[int] = []  # places in ids of tokens drawn at exits since the last full step
        out, verifies = self.out, self.acceptance.verifies
        while True:
            over = len(depths) >= limit or (depths and ids[-1] in self.lm.vocabulary.stop_ids)
            if over and not (verifies and waiting):
                break
            after = self.states(ids)
            if over:
                youngest = depths[waiting[-1] - prompt]  # older ones have risen along with it
                self.charge(youngest, top, [self.asked(waiting, ids, prompt, None)])
                before = out.verified
                fixed = self.check(after, waiting, ids, prompt)
                self.watch(after, waiting[: out.verified - before], ids, depths, prompt)
                waiting = []
                if fixed is not None:
                    ids, depths = fixed, [*depths[: len(fixed) - 1 - prompt], top]
                    out.ks[len(depths) - 1] = self.k
                continue
            place = self.layout(ids, prompt)
            depth, heads = self.depth(after, place, len(depths) / limit, len(waiting))
            out.drawn += 1
            if depth < top:
                self.charge(0, depth, heads)
                token, _ = self.drawn(heads[-1], after[depth][-1], ids)
                waiting.append(len(ids))
                ids, depths = [*ids, token], [*depths, depth]
                continue
            checked = waiting if verifies else []
            self.charge(0, top, [*heads, self.asked(checked, ids, prompt, len(ids))])
            if waiting and not verifies and self.k is not None:
                self.charge(0, 0, [self.asked(waiting, ids, prompt, None)])
            before = out.verified
            fixed = self.check(after, checked, ids, prompt)
            looked_at = waiting[: out.verified - before] if verifies else waiting
            self.watch(after, looked_at, ids, depths, prompt)
            if fixed is None:
                fixed = [*ids, self.full_draw(after, ids, prompt)[0]]
            ids, depths, waiting = fixed, [*depths[: len(fixed) - 1 - prompt], top], []
            out.ks[len(depths) - 1] = self.k
        out.tokens, out.depths = ids[prompt:], depths
        return out


def slow_reply(
    engine: Engine,
    prompt_ids: Sequence[int],
    policy: Policy,
    sampling: SamplingSettings,
    limit: int,
    acceptance: Acceptance = ALWAYS,
) -> SlowReply:
    """One reply, slowly; only under the KV policy `deferred`."""
    return SlowDecoder(engine, policy, sampling, acceptance).reply(prompt_ids, limit)
