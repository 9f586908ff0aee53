"""The teacher-forced sweep: at every exit layer and position, how far an exit is from full depth.

Over a model's own full-depth replies each exit's head is asked at every slot, as the engine would
ask it, and compared with full depth's distribution. Since refreshes make the cache exact, an
exit's distribution depends on the tokens alone; so by the chain rule a schedule's divergence from
full depth over a whole reply is the sum of these over its positions, whatever the others do.
Knows states and heads, no schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spark.heads import HeadBank, HeadKind, base_head
from spark.lens import Key, aligned, overlaps, slots, states_after
from spark.modality import Slot
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings


@dataclass(frozen=True)
class Cell:
    """One exit layer at one position, means over the tokens there.

    Attributes:
        n: tokens.
        overlap: sum of min(p, q) of the distributions that tokens are drawn from, temperature and
            filters included: the chance that both draw the same token at best.
        kl: KL(full depth || exit) in nats at the sampling's temperature, without filters, which
            would make it infinite.
        entropy: of the exit's distribution there, in nats.
        entropy_full: of full depth's.
    """

    n: int
    overlap: float
    kl: float
    entropy: float
    entropy_full: float


@dataclass(frozen=True)
class Masses:
    """Probability of all speech and of all text tokens after each layer, means over tokens.

    Attributes:
        speech, text: by layer, from 1; read with the base head, as a logit lens does.
        overtakes: first layer from which on speech outweighs text up to the last; None where it
            never does.
    """

    speech: tuple[float, ...]
    text: tuple[float, ...]

    @property
    def overtakes(self) -> int | None:
        """See above."""
        pairs = zip(self.speech, self.text, strict=True)
        behind = [layer for layer, (speech, text) in enumerate(pairs, 1) if speech <= text]
        first = behind[-1] + 1 if behind else 1
        return first if first <= len(self.speech) else None


@dataclass(frozen=True)
class Sweep:
    """The sweep's result.

    Attributes:
        cells: by position and exit layer.
        masses: by position.
    """

    cells: dict[Key, dict[int, Cell]]
    masses: dict[Key, Masses]

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            f"{slot.value} {position}": {
                "exits": {str(layer): vars(cell) for layer, cell in cells.items()},
                "speech_mass": self.masses[slot, position].speech,
                "text_mass": self.masses[slot, position].text,
                "speech_overtakes_text": self.masses[slot, position].overtakes,
            }
            for (slot, position), cells in self.cells.items()
        }

    @classmethod
    def of_record(cls, held: dict[str, Any]) -> Sweep:
        """Inverse of `record`."""
        cells, masses = {}, {}
        for name, values in held.items():
            slot, position = name.split()
            key = (Slot(slot), int(position))
            cells[key] = {int(k): Cell(**cell) for k, cell in values["exits"].items()}
            masses[key] = Masses(tuple(values["speech_mass"]), tuple(values["text_mass"]))
        return cls(cells, masses)


class Sweeper:
    """Adds up replies.

    Args:
        lm: the model.
        head: which exit heads decide.
        sampling: how tokens are drawn.
    """

    def __init__(self, lm: SpokenLM, head: HeadKind, sampling: SamplingSettings) -> None:
        self._lm, self._bank, self._sampling = lm, HeadBank(lm, True, head), sampling
        self._full = base_head(lm)
        self._sums: dict[tuple[Key, int], Tensor] = defaultdict(lambda: torch.zeros(4).double())
        self._masses: dict[Key, Tensor] = {}
        self._counts: dict[Key, int] = defaultdict(int)

    @torch.inference_mode()
    def add(self, prompt: Sequence[int], reply: Sequence[int]) -> None:
        """Run a reply through the model once, teacher-forced, and ask every exit."""
        places = slots(self._lm, prompt, reply)
        after = states_after(self._lm, [*prompt, *reply][:-1], len(reply))
        for key in dict.fromkeys(place for place in places if place is not None):
            rows = torch.tensor([place == key for place in places])
            self._add(key, [states[rows] for states in after])

    def _add(self, key: Key, after: Sequence[Tensor]) -> None:
        speech = key[0] is Slot.SPEECH
        self._counts[key] += len(after[-1])
        full = self._bank.heads[self._bank.name(None, speech)]
        for layer in self._lm.candidate_exits:
            head = self._bank.heads[self._bank.name(layer, speech)]
            ours, theirs = aligned(head, after[layer - 1], full, after[-1])
            self._sums[key, layer] += compared(ours, theirs, self._sampling)
        masses = torch.stack([self._mass(states) for states in after])
        self._masses[key] = self._masses.get(key, 0.0) + masses

    def _mass(self, states: Tensor) -> Tensor:
        """(2,) sums over states of the probability of speech and of text."""
        words = self._lm.vocabulary
        p = self._full.logits(states).float().softmax(-1)
        speech = p[:, words.speech_start : words.speech_end].sum(-1)
        control = p[:, [*words.control_ids, *words.idle_ids]].sum(-1)
        return torch.stack([speech.sum(), (1 - speech - control).sum()]).double().cpu()

    def result(self) -> Sweep:
        """Means so far."""
        keys = sorted(self._counts, key=lambda key: (key[0] is Slot.TEXT, key[1]))
        cells: dict[Key, dict[int, Cell]] = {}
        for key in keys:
            n = self._counts[key]
            cells[key] = {
                layer: Cell(n, *(self._sums[key, layer] / n).tolist())
                for layer in self._lm.candidate_exits
            }
        masses = {key: (self._masses[key] / self._counts[key]).T.tolist() for key in keys}
        return Sweep(cells, {key: Masses(tuple(s), tuple(t)) for key, (s, t) in masses.items()})


def compared(ours: Tensor, theirs: Tensor, sampling: SamplingSettings) -> Tensor:
    """Sums (4,) over rows of overlap, KL(theirs || ours), and the entropies of both.

    Args:
        ours: logits (n, R) of an exit.
        theirs: logits (n, R) of full depth.
        sampling: at temperature 0 the overlap is that of the likeliest tokens, and the other
            figures are taken at temperature 1.
    """
    warm = sampling if sampling.temperature else replace(sampling, temperature=1.0)
    log_q, log_p = ((x / warm.temperature).log_softmax(-1) for x in (ours, theirs))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    overlap = overlaps(ours, theirs, sampling)
    entropies = [-(x.exp() * x).sum(-1) for x in (log_q, log_p)]
    sums = torch.stack([part.double().sum() for part in (overlap, kl, *entropies)])
    return sums.cpu()
