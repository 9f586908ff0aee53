"""What a reply's next steps are before their tokens are known, as long as each fills its slot.

Where nothing but the layout decides, that can be worked out once for all replies. Knows layouts,
policies, heads' names and which rows wait; draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.acceptance import Acceptance
from spark.cache import Leg, Levels
from spark.compiled.step import MOST_ROWS
from spark.heads import HeadBank
from spark.modality import LayoutState, Slot
from spark.schedule import DriftSpark, FixedExit, Place, Policy
from spark.trace import Trace

LONGEST = 64  # tokens, some ten milliseconds of the models for which it counts


def surprised(policy: Policy, layout: LayoutState) -> bool:
    """Whether the last token left the layout, so that the next step trusts it in nothing.

    Such a step runs in full and on every row. A fixed exit has no such remedy: it is what exits do
    where nothing is made good.
    """
    return layout.disagreed and not isinstance(policy, FixedExit)


def speech_only(policy: Policy, layout: LayoutState) -> bool:
    """Whether a policy's step computes speech rows only."""
    return layout.slot is Slot.SPEECH and not surprised(policy, layout)


def place_of(
    layout: LayoutState, pending: int, progress: float = 0.0, k: int | None = None
) -> Place:
    """What a policy is told; see `Place`."""
    return Place(
        slot=layout.slot,
        position=layout.position_in_chunk,
        chunk_length=layout.chunk_length,
        progress=progress,
        pending=pending,
        k=k,
    )


def suits(policy: Policy, acceptance: Acceptance, trace: Trace, measured: bool) -> bool:
    """Whether nothing but the layout decides what a reply's steps are.

    Not where confidence, drift or an acceptance do, nor where words said before are looked at.

    Args:
        policy: how deep each token goes.
        acceptance: which tokens drawn at exits stand.
        trace: of the reply, with what it is made by.
        measured: whether more is measured at each step than it takes.
    """
    return (
        policy.measure is None
        and not isinstance(policy, DriftSpark)
        and not acceptance.verifies
        and trace.kv_policy != "propagate"
        and trace.sampling.repetition_penalty == 1
        and not measured
    )


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A step whose token is not known.

    Attributes:
        layout: before it, chunks counted from that of the first step.
        slot: of it.
        chunk: of it.
        depth: layers below its head.
        heads: the one asked.
        full_head: that full depth is charged with.
        refresh: whether rows that waited come along to the top.
        legs: up which its row and those before it go.
        after: what waits then.
        pending: how many rows that are.
    """

    layout: LayoutState
    slot: Slot
    chunk: int
    depth: int
    heads: tuple[str]
    full_head: str
    refresh: bool
    legs: tuple[Leg, ...]
    after: Levels
    pending: int


@dataclass(frozen=True, eq=False)
class Course:
    """Steps in order, each if the token before fills its slot.

    Equal to itself alone, so that what is made of it can be kept by it.

    Attributes:
        steps: not more than the compiled step can take; maybe none.
    """

    steps: tuple[Foreseen, ...]


@dataclass(frozen=True)
class Foresight:
    """Looks ahead in replies of one policy that `suits`.

    Attributes:
        bank: the heads.
        policy: how deep each token goes.
        defers: whether the upper layers of what exits are run later.
        top: layers of the model.
    """

    bank: HeadBank
    policy: Policy
    defers: bool
    top: int
    _known: dict[object, Course] = field(default_factory=dict, repr=False, compare=False)

    def course(self, layout: LayoutState, waiting: Levels) -> Course:
        """The steps from a place in the layout on, with those rows waiting."""
        key = layout.place, waiting.groups
        if key not in self._known:
            self._known[key] = self._made(layout.in_chunk(0), waiting)
        return self._known[key]

    def _made(self, layout: LayoutState, waiting: Levels) -> Course:
        steps: list[Foreseen] = []
        whole = 0  # steps up to where a group last began
        while len(steps) < LONGEST:
            step = self._step(layout, waiting)
            if step.legs[-1].count > MOST_ROWS:
                return Course(tuple(steps))
            steps.append(step)
            layout, waiting = layout.filled(), step.after
            if layout.opens_group:
                whole = len(steps)
        # The next course is then one that is known already.
        return Course(tuple(steps[: whole or None]))

    def _step(self, layout: LayoutState, waiting: Levels) -> Foreseen:
        exits: tuple[int, ...] = ()
        if not surprised(self.policy, layout):
            exits = self.policy.exits(place_of(layout, len(waiting)))
        narrow, after = speech_only(self.policy, layout), waiting.fork()
        depth = exits[0] if exits else self.top
        legs = after.joined(1, 0, depth)
        if exits and self.defers:
            after.push(depth, legs[-1].count)
        head = self.bank.name(depth if exits else None, narrow)
        return Foreseen(
            layout,
            layout.slot,
            layout.chunk,
            depth,
            (head,),
            self.bank.full_name(head, narrow),
            waiting.lowest is not None and not exits,
            legs,
            after,
            len(after),
        )
