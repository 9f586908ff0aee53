"""The drift of one reply's exits as they catch up, and the K that follows it.

Keeps no reply and runs no layer: it is told which drafts have just been run to the top, asks one
head about them where nobody has, and says what it read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import Tensor

from spark.drift import Drift, DriftMeter, Pair
from spark.heads import HeadBank
from spark.sampling import SamplingSettings
from spark.schedule import DriftSpark, Policy
from spark.trace import Step
from spark.verification import Answer, Draft, Verifier
from spark.work import Ask, Task


@dataclass(frozen=True)
class CaughtUp:
    """Drafts whose upper layers have just run.

    Attributes:
        drafts: oldest first.
        states: (n, D) after the last layer, n at least the drafts' number.
        answers: full depth's at the first of them, as far as an acceptance asked.
    """

    drafts: Sequence[Draft]
    states: Tensor
    answers: tuple[Answer, ...]


class Watch:
    """Reads the drift, if anybody wants it.

    Args:
        policy: whose K may follow it.
        metered: whether it is to be logged anyway.
        bank: the heads.
        verifier: knows which head to ask.
        sampling: of the reply.

    Attributes:
        steers: whether the policy follows the drift, so that reading it is part of its work.
        wants: whether drafts are to be kept for reading.
        k: of a policy that follows it, as it stands; None for others.
    """

    def __init__(
        self,
        policy: Policy,
        metered: bool,
        bank: HeadBank,
        verifier: Verifier,
        sampling: SamplingSettings,
    ) -> None:
        self._policy = policy if isinstance(policy, DriftSpark) else None
        self._meter, self._verifier = DriftMeter(bank, sampling.temperature), verifier
        self.steers = self._policy is not None
        self.wants = metered or self.steers
        self.k = None if self._policy is None else self._policy.first_k
        self._readings: list[tuple[int, Drift]] = []  # by the token's index

    def read(self, caught: CaughtUp | None) -> Task[tuple[str, ...]]:
        """Read the drift of what has just caught up; returns the heads it took to know."""
        asked: tuple[str, ...] = ()
        if not self.wants or caught is None or not caught.drafts:
            return asked
        drafts, full = caught.drafts, [(answer.head, answer.logits) for answer in caught.answers]
        if not full:
            asked = (self._verifier.asked([draft.spot for draft in drafts]),)
            logits = yield Ask(asked[0], caught.states[: len(drafts)])
            full = [(asked[0], row) for row in logits.split(1)]
        looked_at = drafts[: len(full)]
        drifts = self._meter.read(
            [Pair(*row, d.head, d.logits) for row, d in zip(full, looked_at, strict=True)]
        )
        places = [draft.spot.index for draft in looked_at]
        self._readings = list(zip(places, drifts, strict=True))
        if self._policy is not None and self.k is not None:
            self.k = self._policy.next_k(self.k, fmean(drift.distance for drift in drifts))
        return asked

    def note(self, told: list[Step], drawn: list[Step]) -> None:
        """Put what was read to its tokens' steps: those handed out, and those that follow."""
        for index, drift in self._readings:
            steps, place = (told, index) if index < len(told) else (drawn, index - len(told))
            steps[place] = replace(steps[place], drift=drift.distance, kl=drift.kl)
        self._readings = []
