"""Exit heads being fitted on a frozen backbone, against its full-depth distribution.

The target at each speech slot is the model's own distribution over speech and control rows, as in
the SPAR-K paper. A head is a norm gain, an affine lens and its rows, all started from the base
head. Knows states and heads; where token sequences come from is `exit_heads` and `recorded_heads`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.heads import Head, base_hash, save_heads
from spark.models.base import SpokenLM

_RATE, _RATE_WIDTH = 2e-3, 256  # found on the embedded model, whose states have 256 values
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def rate_for(width: int) -> float:
    """Peak learning rate for states of `width` values.

    Adam moves every weight by about the rate; a sum over `width` of them then moves by `width`
    times that, so the rate falls with the width, as in muP (arXiv 2203.03466).
    """
    return _RATE * _RATE_WIDTH / width


class Fitted(nn.Module):
    """A head being fitted: logits = rows . norm(h + lens(h)), in float32."""

    def __init__(self, gain: Tensor, rows: Tensor, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self.rows = nn.Parameter(rows.clone())
        self.lens = nn.Linear(len(gain), len(gain), device=gain.device)
        nn.init.zeros_(self.lens.weight)
        nn.init.zeros_(self.lens.bias)
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        states = states.float()
        states = states + self.lens(states)
        return functional.linear(
            functional.rms_norm(states, self.gain.shape, self.gain, self.eps), self.rows
        )

    def head(self, row_ids: Tensor) -> Head:
        values = (self.gain, self.rows, self.lens.weight, self.lens.bias)
        gain, rows, lens, bias = (value.detach().to(torch.bfloat16) for value in values)
        return Head(gain, rows, self.eps, row_ids, lens, bias)


@dataclass(frozen=True)
class Agreement:
    """How an exit's distribution compares with full depth's over speech slots."""

    top1: float
    overlap: float  # sum of min(p, q), the chance that sampling agrees under shared noise


@torch.no_grad()
def slot_states(lm: SpokenLM, ids: Tensor, keep: Tensor, exits: Sequence[int]) -> dict[int, Tensor]:
    """States (kept, D) after each exit and after the last layer, teacher-forced.

    Args:
        lm: the model.
        ids: (B, T).
        keep: (B, T) bool, the positions whose states are wanted.
        exits: layers, ascending.
    """
    body = lm.transformer
    cache = body.new_cache(ids.shape[1], ids.shape[0])
    ids, keep = ids.to(body.device), keep.to(body.device)
    positions, states, low = torch.arange(ids.shape[1], device=body.device), body.embed(ids), 0
    found: dict[int, Tensor] = {}
    for high in (*exits, body.num_layers):
        states = body.run_layers(low, high, states, positions, cache)
        found[high], low = states[keep], high
    return found


class Fitting:
    """Heads for some exits of one frozen model, being fitted together.

    Args:
        lm: the model.
        exits: layers, ascending; None for every candidate.
    """

    def __init__(self, lm: SpokenLM, exits: Sequence[int] | None = None) -> None:
        body = lm.transformer
        self.lm, self.row_ids = lm, lm.vocabulary.speech_rows()
        self.exits = tuple(lm.candidate_exits if exits is None else exits)
        rows = body.unembedding[self.row_ids.to(body.device)]
        self.rows, self.eps = rows.float(), body.config.rms_norm_eps
        self.gain = body.final_gain.float()
        self.heads = {layer: Fitted(self.gain, self.rows, self.eps) for layer in self.exits}
        self.optimisers = {
            layer: torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=0.0)
            for layer, head in self.heads.items()
        }
        self.sums = {layer: torch.zeros(2) for layer in self.heads}  # decayed, of top-1 and overlap
        self.weight = 0.0

    def full(self, states: Tensor) -> Tensor:
        """Full depth's distribution (n, R) over speech and control rows."""
        normed = functional.rms_norm(states.float(), self.gain.shape, self.gain, self.eps)
        return functional.linear(normed, self.rows).softmax(-1)

    def step(self, states: Mapping[int, Tensor], rate: float) -> None:
        """One step of every head on the states of `slot_states`."""
        full = self.full(states[self.lm.transformer.num_layers])
        self.weight = 0.95 * self.weight + 0.05
        for layer, head in self.heads.items():
            for group in self.optimisers[layer].param_groups:
                group["lr"] = rate
            logs = head(states[layer]).log_softmax(-1)
            (-(full * logs).sum(-1).mean()).backward()
            self.optimisers[layer].step()
            self.optimisers[layer].zero_grad()  # one head's gradients at a time in memory
            found = torch.stack([part.mean() for part in _compared(logs.detach(), full)]).cpu()
            self.sums[layer] = 0.95 * self.sums[layer] + 0.05 * found

    def agreements(self) -> dict[int, Agreement]:
        """Recent agreement with full depth by exit layer."""
        weight = max(self.weight, 1e-9)
        return {k: Agreement(*(v / weight).tolist()) for k, v in self.sums.items()}

    @torch.no_grad()
    def measure(self, batches: Iterator[Mapping[int, Tensor]]) -> dict[int, Agreement]:
        """Agreement of the heads, rounded as `save` does, with full depth over all states given."""
        where, slots = self.gain.device, 0
        heads = {k: h.head(self.row_ids).to(where, torch.float32) for k, h in self.heads.items()}
        sums = {layer: torch.zeros(2) for layer in self.exits}
        for states in batches:
            full = self.full(states[self.lm.transformer.num_layers])
            slots += len(full)
            for layer, head in heads.items():
                both = _compared(head.logits(states[layer].float()).log_softmax(-1), full)
                sums[layer] += torch.stack([part.sum() for part in both]).cpu()
        return {layer: Agreement(*(found / slots).tolist()) for layer, found in sums.items()}

    def nbytes(self) -> int:
        """Bytes at the most: weights and two moments of every head, gradients and one step's
        working copies of one.
        """
        sizes = [sum(p.nbytes for p in head.parameters()) for head in self.heads.values()]
        return 3 * sum(sizes) + 2 * max(sizes)

    def state(self) -> dict[str, Tensor]:
        """Everything that a later process needs to go on as if this one had not stopped."""
        kept = {"weight": torch.tensor([self.weight], dtype=torch.float64)}
        for layer, head in self.heads.items():
            kept[f"{layer}.sums"] = self.sums[layer]
            for name, parameter in head.named_parameters():
                kept[f"{layer}.{name}"] = parameter.detach()
                for moment, value in self.optimisers[layer].state.get(parameter, {}).items():
                    kept[f"{layer}.{name}.{moment}"] = value
        return {name: value.cpu().contiguous() for name, value in kept.items()}

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; raises KeyError where it is of other exits."""
        self.weight = float(kept["weight"])
        for layer, head in self.heads.items():
            self.sums[layer] = kept[f"{layer}.sums"].clone()
            for name, parameter in head.named_parameters():
                parameter.copy_(kept[f"{layer}.{name}"])
                if f"{layer}.{name}.step" in kept:
                    step, *both = (kept[f"{layer}.{name}.{moment}"] for moment in _MOMENTS)
                    moved = [step.clone(), *(value.to(parameter.device) for value in both)]
                    self.optimisers[layer].state[parameter] = dict(
                        zip(_MOMENTS, moved, strict=True)
                    )

    def save(self, path: Path, about: Mapping[str, str] | None = None) -> None:
        """Write the heads with the hash of the base head, and words about them."""
        base = base_hash(self.lm.transformer.final_gain, self.lm.transformer.unembedding)
        heads = {layer: head.head(self.row_ids) for layer, head in self.heads.items()}
        save_heads(path, heads, base, about)


def _compared(logs: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """Of log-probabilities and full depth's probabilities (n, R): same top-1, overlap; (n,)."""
    same = (logs.argmax(-1) == full.argmax(-1)).float()
    return same, torch.minimum(logs.exp(), full).sum(-1)
