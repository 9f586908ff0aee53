"""How far an exit head's distribution lies from full depth's at the same tokens.

A refresh runs the upper layers of every token that exited, so full depth's distribution at their
places is one head away, and the exit head's is remembered from their own steps: no layer runs
twice. Both are plain softmaxes at the sampling's temperature (1 where it is greedy) over the rows
that both heads have, which in a slot of speech are the codes and the control tokens. Top-k, top-p
and the repetition penalty are left out: they cut the two to different tokens, and a divergence
between those says nothing. Knows heads and logits; knows no layers and no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from spark.heads import HeadBank, shared_columns


@dataclass(frozen=True)
class Drift:
    """Between two distributions, p of full depth and q of the exit.

    Attributes:
        overlap: sum of min(p, q), 0 to 1; how often a draft from q would be accepted by rejection
            sampling (Leviathan et al. 2023, arXiv 2211.17192).
        kl: KL(p || q) in nats, 0 or more.
    """

    overlap: float
    kl: float

    @property
    def distance(self) -> float:
        """Total variation, 1 - overlap: 0 is the same, 1 nothing in common."""
        return 1 - self.overlap


def drifts(full: Tensor, exited: Tensor, temperature: float) -> list[Drift]:
    """One drift a row of logits (n, R), whose columns are the same tokens.

    Args:
        full: of full depth.
        exited: of the exit head.
        temperature: that divides both; 0 counts as 1, since a greedy draw has no distribution.
    """
    warmth = temperature or 1.0
    p, q = ((logits.float() / warmth).log_softmax(-1) for logits in (full, exited))
    overlap = torch.minimum(p, q).exp().sum(-1).clamp(max=1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    return [Drift(*row) for row in torch.stack((overlap, kl), dim=-1).tolist()]


@dataclass(frozen=True)
class Pair:
    """Logits (1, R) of two heads at one token, each with its head's name."""

    full_head: str
    full: Tensor
    exit_head: str
    exited: Tensor


class DriftMeter:
    """Reads the drift of pairs of heads.

    Args:
        bank: the heads; looked up at each reading.
        temperature: of the sampling.
    """

    def __init__(self, bank: HeadBank, temperature: float) -> None:
        self._bank, self._temperature = bank, temperature
        self._columns: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def read(self, pairs: Sequence[Pair]) -> list[Drift]:
        """One drift a pair, in order."""
        found: list[Drift] = []
        for (full_head, exit_head), run in groupby(pairs, lambda p: (p.full_head, p.exit_head)):
            alike = list(run)
            ours, theirs = self._shared(full_head, exit_head)
            full = torch.cat([pair.full for pair in alike])[:, ours]
            exited = torch.cat([pair.exited for pair in alike])[:, theirs]
            found += drifts(full, exited, self._temperature)
        return found

    def _shared(self, full_head: str, exit_head: str) -> tuple[Tensor, Tensor]:
        """The columns of two heads that stand for the same tokens."""
        key = full_head, exit_head
        if key not in self._columns:
            self._columns[key] = shared_columns(*(self._bank.heads[name] for name in key))
        return self._columns[key]
