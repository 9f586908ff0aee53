"""What a reply's next steps are before their tokens are known, as long as each fills its slot.

Where nothing but the layout decides, that can be worked out once for all replies. Knows layouts,
policies, heads' names and which rows wait; draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

from spark.acceptance import Acceptance
from spark.compiled.step import MOST_ROWS
from spark.heads import HeadBank
from spark.modality import LayoutState, Slot
from spark.positions import PositionSchedule
from spark.remembered import Remembered
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, Place, Policy, Spark
from spark.trace import Trace

LONGEST = 64  # tokens
_MOST_KNOWN = 64  # courses that are kept


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


def suits(policy: Policy, acceptance: Acceptance, trace: Trace) -> bool:
    """Whether the layout, rows that wait and the largest probability decide what steps are.

    Not where another measure, drift or an acceptance do, nor where words said before are looked at;
    nor where a policy is not one of those known here, which may look at anything.

    Args:
        policy: how deep each token goes.
        acceptance: which tokens drawn at exits stand.
        trace: of the reply, with what it is made by.
    """
    by_layout = type(policy) in (FullDepth, Spark, PositionSchedule, FixedExit)
    return (
        (by_layout or asks(policy))
        and not acceptance.verifies
        and trace.kv_policy != "propagate"
        and trace.sampling.repetition_penalty == 1
    )


def asks(policy: Policy) -> TypeGuard[ConfidenceExit]:
    """Whether the largest probability decides at a policy's exits."""
    if type(policy) is not ConfidenceExit:
        return False
    return policy.measure == "max_prob" and policy.max_pending < MOST_ROWS


@dataclass(frozen=True, slots=True)
class Way:
    """Where a step may stop.

    Attributes:
        depth: layers below the head.
        head: that is asked there.
        full_head: that full depth is charged with.
        heads: asked by then, where earlier ways were tried.
    """

    depth: int
    head: str
    full_head: str
    heads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A step whose token is not known.

    Attributes:
        layout: before it, chunks counted from that of the first step.
        slot: of it.
        chunk: of it.
        ways: where it may stop, the last one in any case.
    """

    layout: LayoutState
    slot: Slot
    chunk: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, eq=False)
class Course:
    """Steps in order, each if the token before fills its slot.

    Equal to itself alone, so that what is made of it can be kept by it.

    Attributes:
        steps: maybe none.
        rows: the most that go up together.
    """

    steps: tuple[Foreseen, ...]
    rows: int


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
    _known: Remembered[object, Course] = field(
        default_factory=lambda: Remembered(_MOST_KNOWN), repr=False, compare=False
    )

    def course(self, layout: LayoutState, pending: int) -> Course:
        """The steps from a place in the layout on, with so many rows waiting."""
        # Where confidence decides, how many will wait is not known.
        key = layout.place, None if asks(self.policy) else pending
        return self._known.of(key, lambda: self._made(layout.in_chunk(0), pending))

    def _made(self, layout: LayoutState, pending: int) -> Course:
        if asks(self.policy):
            pending = 0
        steps: list[Foreseen] = []
        whole, rows = 0, 1  # steps up to where a group last began
        while len(steps) < LONGEST and pending < MOST_ROWS:
            steps.append(self._step(layout, pending))
            rows = max(rows, pending + 1)
            if self.defers and not asks(self.policy):
                pending = pending + 1 if steps[-1].ways[0].depth < self.top else 0
            layout = layout.filled()
            if layout.opens_group:
                whole = len(steps)
        if asks(self.policy):
            rows = self.policy.max_pending + 1
        # The next course is then one that is known already.
        return Course(tuple(steps[: whole or None]), rows)

    def _step(self, layout: LayoutState, pending: int) -> Foreseen:
        exits: tuple[int, ...] = ()
        if not surprised(self.policy, layout):
            exits = self.policy.exits(place_of(layout, pending))
        depths: tuple[int | None, ...] = exits or (None,)
        if exits and asks(self.policy):
            depths = (*exits, None)
        ways: list[Way] = []
        narrow = speech_only(self.policy, layout)
        for depth in depths:
            head = self.bank.name(depth, narrow)
            heads = (*(way.head for way in ways), head)
            ways.append(Way(depth or self.top, head, self.bank.full_name(head, narrow), heads))
        return Foreseen(layout, layout.slot, layout.chunk, tuple(ways))
