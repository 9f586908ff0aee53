"""Fits exit heads on the frozen backbone, against its full-depth distribution.

`python -m spark.training.exit_heads --data DIR --model DIR --minutes M`. Histories are the
training recordings, teacher-forced; the target at each speech slot is the model's own distribution
over speech and control rows, as in the SPAR-K paper. A head is a norm gain, an affine lens and its
rows, all started from the base head. Knows nothing of decoding.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.heads import Head, base_hash, save_heads
from spark.models import embedded
from spark.models.base import SpokenLM
from spark.training import mixture
from spark.training.sequences import Writer, load_tokenizer, padded

SPOKEN = mixture.Shares(aloud=0.6, aloud_written=0.0, answer_spoken=0.4, answer_written=0.0)
RATE = 2e-3


class Fitted(nn.Module):
    """A head being fitted: logits = rows . norm(h + lens(h))."""

    def __init__(self, gain: Tensor, rows: Tensor, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self.rows = nn.Parameter(rows.clone())
        self.lens = nn.Linear(len(gain), len(gain))
        nn.init.zeros_(self.lens.weight)
        nn.init.zeros_(self.lens.bias)
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
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
def slot_states(lm: SpokenLM, ids: Tensor, keep: Tensor) -> dict[int, Tensor]:
    """States (kept, D) after each exit candidate and after the last layer, teacher-forced."""
    body = lm.transformer
    cache = body.new_cache(ids.shape[1], ids.shape[0])
    positions, states, low = torch.arange(ids.shape[1]), body.embed(ids), 0
    found: dict[int, Tensor] = {}
    for high in (*lm.candidate_exits, body.num_layers):
        states = body.run_layers(low, high, states, positions, cache)
        found[high], low = states[keep], high
    return found


def speech_slots(lm: SpokenLM, targets: Tensor) -> Tensor:
    """Where (B, T) the next id is a speech code or filler."""
    words = lm.vocabulary
    speech = (targets >= words.speech_start) & (targets < words.speech_end)
    return speech | (targets == words.filler)


class Fitting:
    """Heads for every candidate exit of one frozen model, being fitted together."""

    def __init__(self, lm: SpokenLM) -> None:
        body = lm.transformer
        self.lm, self.row_ids = lm, lm.vocabulary.speech_rows()
        self.rows, self.eps = body.unembedding[self.row_ids], body.config.rms_norm_eps
        self.gain = body.final_gain
        self.heads = {layer: Fitted(self.gain, self.rows, self.eps) for layer in lm.candidate_exits}
        self.optimisers = {
            layer: torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.0)
            for layer, head in self.heads.items()
        }
        self.sums = {layer: torch.zeros(2) for layer in self.heads}  # decayed, of top-1 and overlap
        self.weight = 0.0

    def full(self, states: Tensor) -> Tensor:
        """Full depth's distribution (n, R) over speech and control rows."""
        normed = functional.rms_norm(states, self.gain.shape, self.gain, self.eps)
        return functional.linear(normed, self.rows).softmax(-1)

    def step(self, ids: Tensor, targets: Tensor, rate: float) -> None:
        """One step of every head on one teacher-forced batch."""
        states = slot_states(self.lm, ids, speech_slots(self.lm, targets))
        full = self.full(states[self.lm.transformer.num_layers])
        self.weight = 0.95 * self.weight + 0.05
        for layer, head in self.heads.items():
            for group in self.optimisers[layer].param_groups:
                group["lr"] = rate
            logs = head(states[layer]).log_softmax(-1)
            self.optimisers[layer].zero_grad()
            (-(full * logs).sum(-1).mean()).backward()
            self.optimisers[layer].step()
            with torch.no_grad():
                same = (logs.argmax(-1) == full.argmax(-1)).float().mean()
                shared = torch.minimum(logs.exp(), full).sum(-1).mean()
            self.sums[layer] = 0.95 * self.sums[layer] + 0.05 * torch.stack([same, shared])

    def agreements(self) -> dict[int, Agreement]:
        """Recent agreement with full depth by exit layer."""
        weight = max(self.weight, 1e-9)
        return {k: Agreement(*(v / weight).tolist()) for k, v in self.sums.items()}

    def save(self, path: Path) -> None:
        """Writes the heads with the hash of the base head."""
        base = base_hash(self.gain, self.lm.transformer.unembedding)
        save_heads(path, {k: head.head(self.row_ids) for k, head in self.heads.items()}, base)


def fit(data: Path, model: Path, minutes: float, tokens: int = 3072) -> dict[int, Agreement]:
    """Fits and saves heads for every candidate exit; returns their agreement with full depth."""
    torch.manual_seed(0)
    fitting = Fitting(embedded.load(model))
    writer = Writer(load_tokenizer(data / "tokenizer.json"))
    source = mixture.of(data, writer, SPOKEN, seed=77)
    stream = source.batches(tokens)
    begun, shown = time.time(), time.time()
    while (progress := (time.time() - begun) / (60 * minutes)) < 1:
        ids, targets = (torch.from_numpy(x) for x in padded(next(stream), writer.pad))
        fitting.step(ids, targets, RATE * max(0.02, 1 - progress))
        if time.time() - shown > 20:
            shown = time.time()
            print({k: round(v.overlap, 3) for k, v in fitting.agreements().items()}, flush=True)
    fitting.save(model / "exit_heads.safetensors")
    return fitting.agreements()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded.FOLDER)
    parser.add_argument("--minutes", type=float, default=8.0)
    arguments = parser.parse_args()
    for layer, agreement in fit(arguments.data, arguments.model, arguments.minutes).items():
        print(f"exit {layer}: top-1 {agreement.top1:.3f}, overlap {agreement.overlap:.3f}")


if __name__ == "__main__":
    main()
