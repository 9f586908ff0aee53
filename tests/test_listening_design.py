"""The design: balance over raters, orders within a session."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test.design import clip_order, session_order, turns_of_row, williams


@given(st.integers(1, 12))
def test_williams_balances_places_and_neighbours(n: int) -> None:
    rows = williams(n)
    places = Counter((place, x) for row in rows for place, x in enumerate(row))
    assert set(places.values()) == {len(rows) // n}
    assert len(places) == n * n
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) <= 1


@settings(deadline=None, max_examples=60)
@given(
    n_items=st.integers(3, 12),
    n_systems=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
    row=st.integers(0, 500),
    data=st.data(),
)
def test_a_session_is_complete_and_never_repeats_a_text_at_once(
    n_items: int, n_systems: int, seed: int, row: int, data: st.DataObject
) -> None:
    per_rater = data.draw(st.integers(3, n_items))
    order = session_order(n_items, n_systems, per_rater, seed, row)
    heard = Counter(item for item, _ in order)
    assert len(heard) == per_rater
    assert set(heard.values()) == {n_systems}
    assert len(set(order)) == len(order)
    if n_systems > 1:
        assert all(a[0] != b[0] for a, b in pairwise(order))
    # Each block of trials holds every system once.
    for start in range(0, len(order), n_systems):
        assert {s for _, s in order[start : start + n_systems]} == set(range(n_systems))
    assert order == session_order(n_items, n_systems, per_rater, seed, row)


@settings(deadline=None, max_examples=30)
@given(
    n_items=st.integers(2, 15), rows=st.integers(1, 40), seed=st.integers(0, 999), data=st.data()
)
def test_texts_are_heard_equally_often_after_any_number_of_rows(
    n_items: int, rows: int, seed: int, data: st.DataObject
) -> None:
    per_rater = data.draw(st.integers(2, n_items))
    counts = Counter(dict.fromkeys(range(n_items), 0))
    for row in range(rows):
        counts.update({item for item, _ in session_order(n_items, 2, per_rater, seed, row)})
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None, max_examples=40)
@given(
    n_items=st.integers(2, 12), n_systems=st.integers(2, 9), rows=st.integers(1, 40),
    seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_systems_stand_equally_often_at_a_place_after_any_number_of_rows(
    n_items: int, n_systems: int, rows: int, seed: int, data: st.DataObject
) -> None:
    per_rater = data.draw(st.integers(2, n_items))
    counts = Counter(
        {(place, s): 0 for place in range(n_systems * per_rater) for s in range(n_systems)}
    )
    for row in range(rows):
        order = session_order(n_items, n_systems, per_rater, seed, row)
        counts.update((place, system) for place, (_, system) in enumerate(order))
        assert all(one[0] != two[0] for one, two in pairwise(order))
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None, max_examples=60)
@given(
    n_items=st.integers(1, 12), n=st.integers(1, 8), rows=st.integers(1, 60), data=st.data()
)  # fmt: skip
def test_orders_of_clips_take_turns_within_a_rater_and_over_a_texts_hearings(
    n_items: int, n: int, rows: int, data: st.DataObject
) -> None:
    per_rater = data.draw(st.integers(1, n_items))
    turns: dict[int, list[int]] = {item: [] for item in range(n_items)}
    of_all = Counter(dict.fromkeys(range(n), 0))
    for row in range(rows):
        found = turns_of_row(n_items, per_rater, 1, row, n)
        for item, turn in found.items():
            turns[item].append(turn)
        of_all.update(found.values())
        within = Counter(dict.fromkeys(range(n), 0) | Counter(found.values()))
        assert max(within.values()) - min(within.values()) <= (1 if n <= 2 else 2)
        assert max(of_all.values()) - min(of_all.values()) <= 1
    for heard in turns.values():
        assert all(len(set(heard[at : at + n])) == n for at in range(len(heard) - n + 1))
    orders = [clip_order(n, 3, turn) for turn in range(n)]
    assert all({order[place] for order in orders} == set(range(n)) for place in range(n))


@pytest.mark.parametrize("n_systems", [2, 3, 4])
def test_systems_stand_equally_often_at_each_place_over_the_rows(n_systems: int) -> None:
    cycle = len(williams(n_systems))
    orders = [session_order(8, n_systems, 8, 5, row) for row in range(cycle)]
    places = Counter(
        (place, order[place][1]) for order in orders for place in range(len(orders[0]))
    )
    assert set(places.values()) == {cycle // n_systems}
    within = Counter(
        (order[at][1], order[at + 1][1])
        for order in orders
        for at in range(len(order) - 1)
        if (at + 1) % n_systems
    )
    assert len(set(within.values())) == 1


@pytest.mark.parametrize("n_systems", [2, 3, 5])
def test_two_texts_are_enough_to_keep_them_apart(n_systems: int) -> None:
    for row in range(12):
        order = session_order(2, n_systems, 2, 1, row)
        assert all(a[0] != b[0] for a, b in pairwise(order))


def test_one_text_under_two_systems_is_refused() -> None:
    with pytest.raises(ValueError, match="more texts"):
        session_order(5, 2, 1, 1, 0)
    with pytest.raises(ValueError, match="must be 1 to 5"):
        session_order(5, 2, 6, 1, 0)
