"""Names beside marks: apart where a side keeps them apart."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from spark.plots import labels


def boxes(points: list[tuple[float, float]], names: list[str], size: float) -> list[labels.Box]:
    """Of the names, for points whose corners are (0, 0) and (size, size): units are pixels."""
    found = labels.sides(points, names, size, size)
    return [
        labels._box((x, size - y), name, side)
        for (x, y), name, side in zip(points, names, found, strict=True)
    ]


def overlaps(found: list[labels.Box]) -> int:
    return sum(labels._shared(one, other) > 0 for one, other in combinations(found, 2))


def test_neighbours_on_a_line_are_kept_apart() -> None:
    """Four marks 30 pixels apart under names of 70: all above would lie on one another."""
    points = [(0.0, 0.0), (400.0, 400.0), (200.0, 200.0), (230.0, 200.0), (170.0, 205.0)]
    names = ["corner", "other", "confidence", "confidence", "fixed:12"]
    assert overlaps(boxes(points, names, 400)) == 0


def test_a_mark_alone_has_its_name_above() -> None:
    assert labels.sides([(0.7, 66.0)], ["full"], 500, 200) == ["top center"]
    assert labels.sides([], [], 500, 200) == []


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_marks_with_room_between_them_have_names_that_do_not_meet(
    cells: set[tuple[int, int]],
) -> None:
    spots = [(100.0 * x, 100.0 * y) for x, y in [(-1, -1), (6, 6), *sorted(cells)]]
    at = [(x + 100, y + 100) for x, y in spots]
    assert overlaps(boxes(at, ["confidence"] * len(at), 700)) == 0
