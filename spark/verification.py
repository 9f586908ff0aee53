"""Full depth asked about tokens drawn at exits: what it would have drawn, and which may stand.

Knows heads, noise and the acceptance; runs no layers: it is given states after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from spark.acceptance import Acceptance
from spark.heads import HeadBank, shared_columns
from spark.modality import LayoutState, Slot
from spark.sampling import SamplingSettings
from spark.work import Ask, Draw, How, Task


@dataclass(frozen=True)
class Spot:
    """Where a token is drawn.

    Attributes:
        index: of the token in the reply.
        position: of the row that draws it; the token's own is one more.
        layout: before the token.
        codes: speech codes before it.
    """

    index: int
    position: int
    layout: LayoutState
    codes: int

    @property
    def speech_only(self) -> bool:
        """Whether full depth computes speech rows only: not after a token out of place."""
        return self.layout.slot is Slot.SPEECH and not self.layout.disagreed


@dataclass(frozen=True)
class Draft:
    """A token drawn at an exit, about which full depth has yet to be asked.

    Attributes:
        spot: where.
        token: drawn.
        head: whose distribution it was drawn from.
        logits: (1, R) of that head.
    """

    spot: Spot
    token: int
    head: str
    logits: Tensor


@dataclass(frozen=True)
class Answer:
    """What full depth draws at a spot.

    Attributes:
        spot: where.
        token: drawn.
        head: whose distribution it comes from.
        logits: (1, R) of that head.
        state: (1, D) after the last layer.
    """

    spot: Spot
    token: int
    head: str
    logits: Tensor
    state: Tensor


@dataclass(frozen=True)
class Verdict:
    """What came of asking.

    Attributes:
        asked: the one head evaluated.
        answer: full depth's, at the first draft that may not stand or else at the spot to follow;
            None where all stand and nothing follows.
        verified: full depth's answers at the drafts looked at.
        corrected: whether the last of those drafts may not stand.
    """

    asked: str
    answer: Answer | None
    verified: tuple[Answer, ...]
    corrected: bool


class Verifier:
    """Asks full depth.

    Args:
        bank: the heads.
        acceptance: which drafts stand.
        sampling: how tokens are drawn.
        vocabulary_size: number of token ids.
    """

    def __init__(
        self,
        bank: HeadBank,
        acceptance: Acceptance,
        sampling: SamplingSettings,
        vocabulary_size: int,
    ) -> None:
        self._bank, self._acceptance, self._sampling = bank, acceptance, sampling
        self._size = vocabulary_size

    def judge(
        self, states: Tensor, drafts: Sequence[Draft], spot: Spot | None, ids: Sequence[int]
    ) -> Task[Verdict]:
        """Which drafts stand, and what full depth draws then.

        Args:
            states: (n, D) after the last layer, of the drafts and of `spot`.
            drafts: oldest first.
            spot: of a token to follow them; None for none.
            ids: every token so far.
        """
        spots = [*(draft.spot for draft in drafts), *([] if spot is None else [spot])]
        asked = self.asked(spots)
        answers = yield from self._answers(states, spots, asked, ids)
        for place, draft in enumerate(drafts):
            if not (yield from self._stands(draft, answers[place], ids)):
                return Verdict(asked, answers[place], tuple(answers[: place + 1]), corrected=True)
        seen = tuple(answers[: len(drafts)])
        return Verdict(asked, answers[-1] if spot else None, seen, corrected=False)

    def asked(self, spots: Sequence[Spot]) -> str:
        """Name of the one head that has full depth's rows for all spots."""
        names = {self._bank.name(None, spot.speech_only) for spot in spots}
        return names.pop() if len(names) == 1 else "full"

    def draw(self, logits: Tensor, head: str, spots: Sequence[Spot], ids: Sequence[int]) -> Draw:
        """Work: the tokens that a head's logits (n, R) give at n spots of a sequence."""
        return Draw(logits, self.how(head, spots, ids))

    def how(self, name: str, spots: Sequence[Spot], ids: Sequence[int]) -> How:
        """How tokens are drawn at n spots of a sequence from the logits of a head."""
        head, seen = self._bank.heads[name], None
        if self._sampling.repetition_penalty != 1:
            seen = torch.zeros(len(spots), self._size, dtype=torch.bool, device=head.rows.device)
            for row, spot in zip(seen, spots, strict=True):
                row[list(ids[: spot.position + 1])] = True
        positions = tuple(spot.position + 1 for spot in spots)
        seeds = (self._sampling.seed,) * len(spots)
        return How(head.row_ids, self._sampling, positions, seen, seeds)

    def _answers(
        self, states: Tensor, spots: Sequence[Spot], asked: str, ids: Sequence[int]
    ) -> Task[list[Answer]]:
        found: list[Answer] = []
        every = yield Ask(asked, states)
        for name, run in groupby(spots, lambda spot: self._bank.name(None, spot.speech_only)):
            alike = list(run)
            logits = every[len(found) : len(found) + len(alike)]
            if name != asked:
                heads = self._bank.heads
                logits = logits[:, shared_columns(heads[asked], heads[name])[0]]
            tokens = (yield self.draw(logits, name, alike, ids)).tolist()
            for row, (spot, token) in enumerate(zip(alike, tokens, strict=True)):
                state = states[len(found) : len(found) + 1]
                found.append(Answer(spot, token, name, logits[row : row + 1], state))
        return found

    def _stands(self, draft: Draft, answer: Answer, ids: Sequence[int]) -> Task[bool]:
        """Whether a draft may stand beside full depth's draw."""
        if self._acceptance.alike(draft.token, answer.token):
            return True
        rows = self._bank.heads[answer.head].row_ids
        raised = self._acceptance.raised(answer.logits, rows, draft.token)
        if raised is None:
            return False
        drawn = yield self.draw(raised, answer.head, [draft.spot], ids)
        return int(drawn) == draft.token
