"""Candidate schedules: for every depth of a chunk, the one that the sweep predicts to harm least.

Divergences of positions add up (`sweep` says why), so the best schedule of each depth is found by
going through the positions once and keeping the best beginnings of each depth; nothing is left
out. Two measures of harm are searched, since it is not known beforehand which of them ears agree
with. Knows numbers only: no model and no reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spark.calibrate.sweep import Cell, Sweep
from spark.modality import Slot
from spark.positions import Exits, PositionSchedule

Harm = Mapping[int, float]  # of one position, by exit layer


@dataclass(frozen=True)
class Predicted:
    """A schedule with what the sweep says of it.

    Attributes:
        notation: of the schedule.
        saving: share of full depth's speech layers that it leaves out.
        traffic: weight bytes read over full depth's, for one group.
        kl: nats a chunk, of full depth from the schedule.
        missed: tokens a chunk that would be drawn otherwise, at best.
    """

    notation: str
    saving: float
    traffic: float
    kl: float
    missed: float


@dataclass(frozen=True)
class Costs:
    """What each depth of a step costs.

    Attributes:
        layers: of the model.
        text: bytes of a full-depth text step.
        speech: bytes of a speech step by exit layer, None for full depth; its head included.
        n_text: text slots of a group.
    """

    layers: int
    text: int
    speech: Mapping[int | None, int]
    n_text: int

    def saving(self, exits: Exits) -> float:
        """Share of speech layers left out."""
        ran = sum(self.layers if layer is None else layer for layer in exits)
        return 1 - ran / (self.layers * len(exits))

    def traffic(self, exits: Exits) -> float:
        """Bytes of a group over full depth's."""
        text = self.n_text * self.text
        ours = text + sum(self.speech[layer] for layer in exits)
        return ours / (text + len(exits) * self.speech[None])


def least_harm(harms: Sequence[Harm], layers: int) -> dict[int, Exits]:
    """By the layers a chunk runs in all, the schedule of least harm, ascending.

    Only those that no schedule of fewer layers undercuts or equals.

    Args:
        harms: of each position, in order; full depth does none.
        layers: of the model.
    """
    best: dict[int, tuple[float, Exits]] = {0: (0.0, ())}
    for harm in harms:
        longer: dict[int, tuple[float, Exits]] = {}
        options = [(layers, 0.0, None), *((layer, does, layer) for layer, does in harm.items())]
        for ran, (sum_, exits) in best.items():
            for depth, does, layer in options:
                found = longer.get(ran + depth)
                if found is None or sum_ + does < found[0]:
                    longer[ran + depth] = (sum_ + does, (*exits, layer))
        best = longer
    front, least = dict[int, Exits](), float("inf")
    for ran in sorted(best):
        if best[ran][0] < least:
            least, front[ran] = best[ran]
    return front


def predicted(exits: Exits, sweep: Sweep, costs: Costs) -> Predicted:
    """What the sweep says of a schedule."""
    cells = [
        sweep.cells[Slot.SPEECH, position][layer]
        for position, layer in enumerate(exits)
        if layer is not None
    ]
    kl, missed = sum(cell.kl for cell in cells), sum(1 - cell.overlap for cell in cells)
    notation = PositionSchedule(exits).notation
    return Predicted(notation, costs.saving(exits), costs.traffic(exits), kl, missed)


def candidates(
    sweep: Sweep, costs: Costs, n_speech: int, least_saving: float, most: int
) -> list[Predicted]:
    """Schedules worth trying, by saving: least harm by divergence and by overlap.

    Each exit layer is also left out in turn: were ears to mind one more than the sweep does, it
    would spoil every schedule else. Of what saves enough, half are those of least divergence, and
    half are spread evenly up to twice the saving.

    Args:
        sweep: of the model.
        costs: of its steps.
        n_speech: positions of a chunk.
        least_saving: of speech depth, 0 to 1.
        most: how many.

    Raises:
        ValueError: no exit saves that much, or the sweep lacks a position.
    """
    lacking = [i for i in range(n_speech) if (Slot.SPEECH, i) not in sweep.cells]
    if lacking:
        raise ValueError(
            f"no reply of the sweep reached speech position {lacking[0]} of a chunk: sweep more "
            "prompts, or allow longer replies"
        )
    tables = [sweep.cells[Slot.SPEECH, position] for position in range(n_speech)]
    rows = [predicted(exits, sweep, costs) for exits in _pool(tables, costs.layers)]
    enough = [row for row in rows if row.saving >= least_saving - 1e-9]
    if not enough:
        raise ValueError(
            f"no schedule saves {100 * least_saving:.0f} % of speech depth with the exits on "
            "offer: lower --min-saving"
        )
    enough.sort(key=lambda row: row.kl)
    chosen, rest = enough[: (most + 1) // 2], enough[(most + 1) // 2 :]
    rest.sort(key=lambda row: (row.saving, row.kl))
    near = [row for row in rest if row.saving <= 2 * least_saving + 1e-9]
    chosen += _spread(near, most - len(chosen))
    return sorted(chosen, key=lambda row: (row.saving, row.kl))


def _pool(tables: Sequence[Mapping[int, Cell]], layers: int) -> list[Exits]:
    """What harms least, by either measure, with all exit layers and without each of them."""
    by_kl = [{layer: cell.kl for layer, cell in table.items()} for table in tables]
    by_overlap = [{layer: 1 - cell.overlap for layer, cell in t.items()} for t in tables]
    found: dict[Exits, None] = {}
    for harms in (by_kl, by_overlap):
        for left_out in (None, *tables[0]):
            kept = [{i: harm for i, harm in h.items() if i != left_out} for h in harms]
            found |= dict.fromkeys(least_harm(kept, layers).values())
    return list(found)


def _spread(rows: Sequence[Predicted], most: int) -> list[Predicted]:
    """At most so many, the last among them, evenly."""
    if len(rows) <= most:
        return list(rows)
    return [rows[len(rows) * (i + 1) // most - 1] for i in range(most)]
