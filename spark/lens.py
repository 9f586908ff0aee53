"""A reply read at every layer: states after each, and how far its exit agrees with the last.

Teacher-forced: the reply's own tokens are run once at full depth, and at each layer the head that
would decide there is asked at every token. Knows states and heads, no schedule and no page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spark.heads import Head, HeadBank, HeadKind, shared_columns
from spark.modality import Slot
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings, filtered

Key = tuple[Slot, int]  # of a position: its modality and its place among that modality's slots


@dataclass(frozen=True)
class LensMap:
    """Agreement of each layer's exit with the last layer, token by token.

    Attributes:
        tokens: what each token is: its text, or the number of its code.
        slots: the modality each token's slot was for; None after one that left the layout.
        heads: by layer from 1, the head asked in speech slots: "fitted", "untrained" or "own",
            which is the last layer's.
        overlap: (L, T), 0 to 1, sum of min(p, q) of the distributions that tokens are drawn from:
            the chance that exit and last layer draw the same token at best.
        same: (L, T), whether both find the same token likeliest.
    """

    tokens: tuple[str, ...]
    slots: tuple[Slot | None, ...]
    heads: tuple[str, ...]
    overlap: Tensor
    same: Tensor


@torch.inference_mode()
def lens_map(
    lm: SpokenLM,
    prompt: Sequence[int],
    reply: Sequence[int],
    sampling: SamplingSettings,
    head: HeadKind = "fitted",
) -> LensMap:
    """The map of a reply.

    Args:
        lm: the model.
        prompt: token ids.
        reply: token ids after them, at least one.
        sampling: how tokens are drawn.
        head: which exit heads decide; layers without a fitted one are read with the model's own
            head, as a logit lens does.

    Raises:
        ValueError: the reply is empty.
    """
    if not reply:
        raise ValueError("the reply is empty: there is nothing to look at")
    bank, places = HeadBank(lm, True, head), slots(lm, prompt, reply)
    after = states_after(lm, [*prompt, *reply][:-1], len(reply))
    speech = torch.tensor([place is not None and place[0] is Slot.SPEECH for place in places])
    layers = len(after)
    overlap, same = torch.zeros(layers, len(reply)), torch.zeros(layers, len(reply)).bool()
    for forced in (True, False):
        rows = (speech == forced).nonzero().squeeze(1)
        full, top = bank.heads[bank.name(None, forced)], after[-1][rows.to(after[-1].device)]
        for layer, states in enumerate(after, 1) if len(rows) else ():
            asked = bank.heads[bank.name(None if layer == layers else layer, forced)]
            ours, theirs = aligned(asked, states[rows.to(states.device)], full, top)
            overlap[layer - 1, rows] = overlaps(ours, theirs, sampling).cpu()
            same[layer - 1, rows] = (ours.argmax(-1) == theirs.argmax(-1)).cpu()
    names = (bank.name(layer, True) for layer in range(1, layers))
    heads = ("fitted" if name.startswith("exit") else "untrained" for name in names)
    kept = tuple(place and place[0] for place in places)
    return LensMap(_named(lm, reply), kept, (*heads, "own"), overlap, same)


def _named(lm: SpokenLM, reply: Sequence[int]) -> tuple[str, ...]:
    """Each token for people."""
    words = lm.vocabulary
    codes = range(words.speech_start, words.speech_end)
    return tuple(
        f"code {token - words.speech_start}"
        if token in codes
        else lm.decode_text([token]).strip() or f"token {token}"
        for token in reply
    )


def slots(lm: SpokenLM, prompt: Sequence[int], reply: Sequence[int]) -> list[Key | None]:
    """Where each token of a reply stands; None after one that left the layout.

    Positions are counted as a schedule counts them: a chunk that is longer begins again.
    """
    layout, found = lm.layout.start(lm.vocabulary, prompt[-1]), list[Key | None]()
    lengths = {Slot.TEXT: lm.layout.n_text, Slot.SPEECH: lm.layout.n_speech}
    for token in reply:
        place = layout.position_in_chunk % lengths[layout.slot]
        found.append(None if layout.disagreed else (layout.slot, place))
        layout.advance(token)
    return found


def states_after(lm: SpokenLM, ids: Sequence[int], last: int) -> list[Tensor]:
    """States (last, D) after each layer, of the last ids, every layer run for every id."""
    body = lm.transformer
    tokens = torch.tensor([list(ids)], device=body.device)
    positions = torch.arange(len(ids), device=body.device)
    cache, states, found = body.new_cache(len(ids)), body.embed(tokens), []
    for layer in range(body.num_layers):
        states = body.run_layers(layer, layer + 1, states, positions, cache)
        found.append(states[0, len(ids) - last :])
    return found


def aligned(head: Head, states: Tensor, full: Head, top: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two heads over the rows that both have, (n, R) float32."""
    ours, theirs = shared_columns(head, full)
    return head.logits(states).float()[:, ours], full.logits(top).float()[:, theirs]


def overlaps(ours: Tensor, theirs: Tensor, sampling: SamplingSettings) -> Tensor:
    """Overlap (n,) of what logits (n, R) are drawn with; at temperature 0, of the likeliest."""
    return torch.minimum(_drawn(ours, sampling), _drawn(theirs, sampling)).sum(-1)


def _drawn(logits: Tensor, sampling: SamplingSettings) -> Tensor:
    """Probabilities (n, R) that tokens are drawn with."""
    if not sampling.temperature:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    log_p, columns = filtered(logits, sampling)
    p = log_p.softmax(-1)
    return torch.zeros_like(logits).scatter_(-1, columns, p)
