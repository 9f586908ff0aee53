"""Schedules: which positions of a chunk run in full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.modality import Slot
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, Place, Policy, Spark


def pattern(policy: Policy, length: int, known: bool = True) -> str:
    """F and S over a chunk of this length."""
    places = (Place(Slot.SPEECH, i, length if known else None) for i in range(length))
    return "".join("S" if policy.exits(place) else "F" for place in places)


@pytest.mark.parametrize(
    ("policy", "length", "expected"),
    [
        (Spark(11, variant="triple"), 4, "FSSF"),
        (Spark(11, variant="triple"), 8, "FSSFSSFS"),
        (Spark(11, variant="odd"), 5, "FSFSF"),
        (Spark(11, variant="even"), 4, "SFSF"),
        (Spark(11, variant="even"), 5, "SFSFF"),
        (Spark(11, k=4), 10, "FSSSFSSSFS"),
        (Spark(11), 4, "FSSF"),
        (FullDepth(), 4, "FFFF"),
        (FixedExit(7), 4, "SSSS"),
    ],
)
def test_patterns(policy: Policy, length: int, expected: str) -> None:
    assert pattern(policy, length) == expected


def test_the_papers_mean_depths() -> None:
    """Table 2: 25 of 28 for chunks of 4, exit 22; 38.04 of 40 for chunks of 26, exit 37."""
    for layers, exit_layer, length, mean in ((28, 22, 4, 25), (40, 37, 26, 38 + 1 / 26)):
        depths = {"F": layers, "S": exit_layer}
        chunk = pattern(Spark(exit_layer, variant="triple"), length)
        assert sum(depths[step] for step in chunk) / length == pytest.approx(mean)


@given(
    st.one_of(
        st.integers(2, 9).map(lambda k: Spark(5, k)),
        st.sampled_from([Spark(5, variant=v) for v in ("triple", "even", "odd")]),
    ),
    st.integers(1, 40),
)
def test_each_group_keeps_exactly_one_full_position(policy: Spark, length: int) -> None:
    """Tail groups too; where the chunk's end is not known, each whole group."""
    k = policy.k or 0
    chunk = pattern(policy, length)
    groups = [chunk[i : i + k] for i in range(0, length, k)]
    assert all(group.count("F") == 1 for group in groups)
    unknown = pattern(policy, length, known=False)
    whole = [unknown[i : i + k] for i in range(0, length - length % k, k)]
    assert all(group.count("F") == 1 for group in whole)


@pytest.mark.parametrize("policy", [Spark(3), FixedExit(3), FullDepth()])
def test_text_runs_in_full(policy: Policy) -> None:
    assert policy.exits(Place(Slot.TEXT, position=1, chunk_length=4)) == ()


def test_confidence_candidates() -> None:
    policy = ConfidenceExit("margin", 0.5, (9, 5, 7, 5), max_pending=2)
    assert policy.exits(Place(Slot.SPEECH, pending=1)) == (5, 7, 9)
    assert policy.exits(Place(Slot.SPEECH, pending=2)) == ()
    assert policy.exits(Place(Slot.TEXT)) == ()
    both = ConfidenceExit("margin", 0.5, (5,), modalities=("speech", "text"))
    assert both.exits(Place(Slot.TEXT)) == (5,)


def test_the_threshold_decays_as_calms() -> None:
    """0.9 L + 0.1 exp(-tau t / N), at most 1."""
    policy = ConfidenceExit("max_prob", 0.8, (5,), decay=4.0)
    assert policy.threshold_at(0) == pytest.approx(0.82)
    assert policy.threshold_at(1) == pytest.approx(0.72 + 0.1 * 0.018315638888734)
    start, end = Place(Slot.SPEECH, progress=0), Place(Slot.SPEECH, progress=1)
    assert (policy.stops(0.75, start), policy.stops(0.75, end)) == (False, True)
    steady = ConfidenceExit("max_prob", 0.8, (5,))
    assert (steady.stops(0.8, start), steady.stops(0.79, end)) == (True, False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Spark(3, k=1), "at least 2"),
        (lambda: Spark(3, k=4, variant="even"), "means K=2"),
        (lambda: ConfidenceExit("guess", 0.5, (3,)), "unknown measure"),
        (lambda: ConfidenceExit("margin", 1.5, (3,)), "threshold"),
        (lambda: ConfidenceExit("margin", 0.5, ()), "candidate"),
        (lambda: ConfidenceExit("margin", 0.5, (3,), decay=-1.0), "decay"),
        (lambda: ConfidenceExit("margin", 0.5, (3,), modalities=("video",)), "modalities"),
        (lambda: ConfidenceExit("margin", 0.5, (3,), max_pending=0), "max_pending"),
    ],
)
def test_impossible_policies_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
