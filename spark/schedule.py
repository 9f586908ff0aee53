"""Depth policies: at which layers a step may stop, and whether it does.

Pure rules over a place in the layout and, for confidence exit, a number. They know no tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from spark.modality import Slot

KVPolicy = Literal["deferred", "propagate", "skip"]
KV_POLICIES: tuple[KVPolicy, ...] = ("deferred", "propagate", "skip")
Measure = Literal["max_prob", "margin", "entropy", "state_similarity"]
MEASURES: tuple[Measure, ...] = ("max_prob", "margin", "entropy", "state_similarity")
Variant = Literal["triple", "even", "odd"]
_VARIANT_K = {"triple": 3, "even": 2, "odd": 2}
_MOST_PENDING = 8  # rows that wait, where nothing else in a policy sees to a refresh


@dataclass(frozen=True)
class Place:
    """Where a step stands.

    Attributes:
        slot: what the layout expects.
        position: among the slots of its modality in the group, from 0.
        chunk_length: speech slots of the chunk, None where not known.
        progress: tokens emitted over the reply's limit, 0 to 1.
        pending: rows whose upper layers have yet to run.
        k: of a schedule that changes it, as it stands; None: not yet chosen.
    """

    slot: Slot
    position: int = 0
    chunk_length: int | None = None
    progress: float = 0.0
    pending: int = 0
    k: int | None = None


class Policy(Protocol):
    """What the engine asks of a policy."""

    @property
    def name(self) -> str:
        """Short, for tables and file names."""
        ...

    @property
    def kv_policy(self) -> KVPolicy:
        """What becomes of the layers above an exit, unless the caller says otherwise."""
        ...

    @property
    def measure(self) -> Measure | None:
        """The confidence that decides at a candidate; None: the first candidate is taken."""
        ...

    def exits(self, place: Place) -> tuple[int, ...]:
        """Layers after which this step may stop, ascending; () is full depth."""
        ...

    def stops(self, confidence: float, place: Place) -> bool:
        """Whether this confidence is enough to stop at a candidate."""
        ...

    def exit_layers(self) -> tuple[int, ...]:
        """Every layer at which some step may stop."""
        ...


@dataclass(frozen=True)
class FullDepth:
    """Every token runs every layer."""

    name: str = "full"
    kv_policy: ClassVar[KVPolicy] = "deferred"
    measure: ClassVar[None] = None

    def exits(self, place: Place) -> tuple[int, ...]:
        """None."""
        return ()

    def stops(self, confidence: float, place: Place) -> bool:
        """Never."""
        return False

    def exit_layers(self) -> tuple[int, ...]:
        """None."""
        return ()


class _OneExit:
    """What schedules with a single exit layer share: they decide by place, never by confidence."""

    exit_layer: int
    measure: ClassVar[None] = None

    def stops(self, confidence: float, place: Place) -> bool:
        """Always: the schedule alone decides."""
        return True

    def exit_layers(self) -> tuple[int, ...]:
        """The one exit layer."""
        return (self.exit_layer,)


@dataclass(frozen=True)
class Spark(_OneExit):
    """SPAR-K (arXiv 2603.09215): speech stops early in all but one position of every K.

    Positions are counted anew in each chunk. `triple` (K=3) and any plain K run the first of each
    group in full, `odd` (K=2) the 1st, 3rd, ..., `even` (K=2) the 2nd, 4th, ...; a tail group
    shorter than K keeps one full position.

    Attributes:
        text: whether text stops at the exit layer too, while fewer than 8 rows wait: only to test
            the paper's finding that it must not.
    """

    exit_layer: int
    k: int | None = None
    variant: Variant | None = None
    name: str = "spark"
    text: bool = False
    kv_policy: ClassVar[KVPolicy] = "deferred"

    def __post_init__(self) -> None:
        implied = 3 if self.variant is None else _VARIANT_K[self.variant]
        k = implied if self.k is None else self.k
        if self.variant is not None and k != implied:
            raise ValueError(f"{self.variant} means K={implied}, not K={k}")
        if k < 2:
            raise ValueError("K must be at least 2 (1 would be full depth)")
        object.__setattr__(self, "k", k)

    def is_full(self, position: int, chunk_length: int | None) -> bool:
        """Whether this position of a chunk runs every layer."""
        assert self.k is not None
        place = position % self.k
        if self.variant != "even":
            return place == 0
        tail = chunk_length is not None and position == chunk_length - 1
        return place == self.k - 1 or tail

    def exits(self, place: Place) -> tuple[int, ...]:
        """The exit layer, or none where the position runs in full."""
        if place.slot is Slot.TEXT:
            full = not self.text or place.pending >= _MOST_PENDING
        else:
            full = self.is_full(place.position, place.chunk_length)
        return () if full else (self.exit_layer,)


@dataclass(frozen=True)
class DriftSpark(_OneExit):
    """SPAR-K whose K follows the drift: longer while exits agree with full depth, else shorter.

    As in `Spark`, text and the first position of each chunk run in full, then one position in
    every K, here counted from the last full step. Each refresh measures how far the exits since
    then lay from full depth (`spark.drift`) and moves K by one.

    Attributes:
        exit_layer: where speech stops.
        k_min: the shortest, 2 or more: at 1 nothing would exit, so nothing be measured any more.
        k_max: the longest.
        target: mean distance of a refresh's exits (total variation, 0 to 1) up to which K grows.
        name: for tables and file names.
    """

    exit_layer: int
    k_min: int = 2
    k_max: int = 6
    target: float = 0.1
    name: str = "spark"
    kv_policy: ClassVar[KVPolicy] = "deferred"

    def __post_init__(self) -> None:
        if not 2 <= self.k_min <= self.k_max:
            raise ValueError("a schedule by drift needs 2 <= shortest K <= longest K")
        if not 0 <= self.target <= 1:
            raise ValueError("the drift target must lie between 0 and 1")

    @property
    def first_k(self) -> int:
        """K before anything was measured: Triple's, within the bounds."""
        return min(max(_VARIANT_K["triple"], self.k_min), self.k_max)

    def next_k(self, k: int, distance: float) -> int:
        """K after a refresh whose exits lay that far from full depth in the mean."""
        return min(k + 1, self.k_max) if distance <= self.target else max(k - 1, self.k_min)

    def exits(self, place: Place) -> tuple[int, ...]:
        """The exit layer, or none where the position runs in full."""
        k = self.first_k if place.k is None else place.k
        if place.slot is Slot.TEXT or place.position == 0 or place.pending >= k - 1:
            return ()
        return (self.exit_layer,)


@dataclass(frozen=True)
class FixedExit(_OneExit):
    """Every speech token stops at the same layer and nothing is made up for later.

    Attributes:
        text: whether text stops there too.
    """

    exit_layer: int
    name: str = "fixed"
    text: bool = False
    kv_policy: ClassVar[KVPolicy] = "skip"

    def exits(self, place: Place) -> tuple[int, ...]:
        """The exit layer in every slot that may exit."""
        return (self.exit_layer,) if self.text or place.slot is Slot.SPEECH else ()


@dataclass(frozen=True)
class ConfidenceExit:
    """A token stops at the first candidate layer where its confidence reaches a threshold.

    Attributes:
        measure: every measure is larger where the model is surer: the largest probability; the
            two largest probabilities' difference; 1 - entropy / log(rows); the cosine of the
            state with the one a layer before.
        threshold: 0 to 1.
        candidates: exit layers tried, ascending.
        decay: CALM's tau (arXiv 2207.07061): the threshold falls over the reply as
            0.9 threshold + 0.1 exp(-tau progress), at most 1; None keeps it constant.
        modalities: slots that may exit.
        max_pending: with this many rows waiting, the next step runs every layer.
    """

    measure: Measure
    threshold: float
    candidates: tuple[int, ...]
    decay: float | None = None
    modalities: tuple[str, ...] = ("speech",)
    max_pending: int = _MOST_PENDING
    name: str = "confidence"
    kv_policy: ClassVar[KVPolicy] = "deferred"

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"unknown measure {self.measure!r}: use one of {', '.join(MEASURES)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError("the threshold must lie between 0 and 1")
        if not self.candidates:
            raise ValueError("name at least one candidate exit layer")
        if self.decay is not None and self.decay < 0:
            raise ValueError("the decay must be 0 or more")
        if not set(self.modalities) <= {slot.value for slot in Slot}:
            raise ValueError("modalities may hold text and speech only")
        if self.max_pending < 1:
            raise ValueError("max_pending must be at least 1")
        object.__setattr__(self, "candidates", tuple(sorted(set(self.candidates))))

    def threshold_at(self, progress: float) -> float:
        """The threshold at this share of the reply's limit."""
        if self.decay is None:
            return self.threshold
        return min(1.0, 0.9 * self.threshold + 0.1 * math.exp(-self.decay * progress))

    def exits(self, place: Place) -> tuple[int, ...]:
        """The candidates, unless the slot may not exit or too many rows wait."""
        if place.slot.value not in self.modalities or place.pending >= self.max_pending:
            return ()
        return self.candidates

    def stops(self, confidence: float, place: Place) -> bool:
        """Whether the confidence reaches the threshold."""
        return confidence >= self.threshold_at(place.progress)

    def exit_layers(self) -> tuple[int, ...]:
        """The candidates."""
        return self.candidates
