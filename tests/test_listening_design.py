"""The design: balance over raters, orders within a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test.design import clip_order, session_order, turns_of_row, williams
from listening_test.incomplete import incomplete_order, incomplete_rows, session_lengths
from listening_test.methods import LAYOUTS
from listening_test.session_plan import Trial, block_rows, session_trials
from tests.listening import made


def spread(found: Iterable[Hashable], of: Iterable[Hashable]) -> int:
    """By how much the counts of all of these differ; nothing else may be among the found."""
    kinds = list(of)
    counts = Counter(dict.fromkeys(kinds, 0)) + Counter()
    counts.update(dict.fromkeys(kinds, 0))
    counts.update(found)
    assert set(counts) == set(kinds)
    return max(counts.values()) - min(counts.values())


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


# ---- every method, by what a rater gets
def condition(method: str, trial: Trial) -> tuple[str, ...]:
    """Which systems a trial of `made` compares, in no order."""
    arms = [clip.partition("-")[2] for clip in trial.clips]
    if LAYOUTS[method].conditions == "reference":
        assert arms[0] == "0"
        return (arms[1],)
    return tuple(sorted(set(arms)))


def conditions_of(method: str, arms: int) -> list[tuple[str, ...]]:
    names = [str(arm) for arm in range(arms)]
    kind = LAYOUTS[method].conditions
    if kind == "pair":
        return list(combinations(names, 2))
    return [tuple(names)] if kind == "all" else [(n,) for n in names[kind == "reference" :]]


@settings(deadline=None, max_examples=150)
@given(
    method=st.sampled_from(list(LAYOUTS)), same_text=st.sampled_from(["apart", "together", "once"]),
    items=st.integers(2, 12), arms=st.integers(2, 5), seed=st.integers(0, 999),
    rows=st.integers(1, 45), data=st.data(),
)  # fmt: skip
def test_every_method_is_balanced_after_any_number_of_raters(
    method: str, same_text: Any, items: int, arms: int, seed: int, rows: int, data: st.DataObject
) -> None:
    wanted = conditions_of(method, arms)
    texts = [f"i{item}" for item in range(items)]
    lengths = list(range(2, items + 1))
    if same_text == "once":
        lengths = session_lengths(items, len(wanted))
    per_rater = data.draw(st.sampled_from(lengths))
    study = made(method, items, arms, per_rater, seed, same_text=same_text)
    sessions = [session_trials(study, row) for row in range(rows)]
    assert {len(order) for order in sessions} == {study.trials_per_session}
    heard = [(trial.item_id, condition(method, trial)) for order in sessions for trial in order]
    assert spread(heard, [(text, one) for text in texts for one in wanted]) <= 1
    assert spread([one for _, one in heard], wanted) <= 1
    at = [(p, condition(method, trial)) for order in sessions for p, trial in enumerate(order)]
    places = range(study.trials_per_session)
    assert spread(at, [(place, one) for place in places for one in wanted]) <= 1
    for order in sessions:
        if same_text == "once":
            assert len({trial.item_id for trial in order}) == len(order)
        elif same_text == "together":
            blocks = [trial.item_id for trial in order][:: len(wanted)]
            assert [trial.item_id for trial in order] == [
                text for text in blocks for _ in wanted
            ]  # fmt: skip
            assert len(set(blocks)) == len(blocks)
        elif len(wanted) > 1:
            assert all(one.item_id != two.item_id for one, two in pairwise(order))
    assert sessions[-1] == session_trials(study, rows - 1)


@settings(deadline=None, max_examples=100)
@given(
    method=st.sampled_from(["ccr", "ab", "abx", "mushra"]),
    same_text=st.sampled_from(["apart", "together", "once"]),
    items=st.integers(2, 9), arms=st.integers(2, 5), seed=st.integers(0, 999),
    rows=st.integers(1, 40), data=st.data(),
)  # fmt: skip
def test_the_orders_of_a_pairs_clips_are_balanced_per_pair_and_per_text(
    method: str, same_text: Any, items: int, arms: int, seed: int, rows: int, data: st.DataObject
) -> None:
    wanted = conditions_of(method, arms)
    lengths = session_lengths(items, len(wanted)) if same_text == "once" else range(2, items + 1)
    per_rater = data.draw(st.sampled_from(list(lengths)))
    study = made(method, items, arms, per_rater, seed, same_text=same_text)
    n = {"abx": 4, "mushra": arms}.get(method, 2)
    per_pair: dict[Any, Counter[Any]] = {}
    per_cell: dict[Any, Counter[Any]] = {}
    for row in range(rows):
        for trial in session_trials(study, row):
            pair = condition(method, trial)
            order = tuple(clip.partition("-")[2] for clip in trial.clips)
            per_pair.setdefault(pair, Counter()).update([order])
            per_cell.setdefault((trial.item_id, pair), Counter()).update([order])
    for counted in (*per_pair.values(), *per_cell.values()):
        counts = [*counted.values(), *[0] * (n - len(counted))]
        assert len(counts) == n
        assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=60)
@given(
    items=st.integers(1, 30), n=st.integers(1, 28), orders=st.sampled_from([1, 2, 4]),
    data=st.data(),
)  # fmt: skip
def test_a_block_of_incomplete_sessions_is_equal_in_all_cells(
    items: int, n: int, orders: int, data: st.DataObject
) -> None:
    trials = data.draw(st.sampled_from(session_lengths(items, n)))
    size = incomplete_rows(items, n, trials, orders, 1)
    if size * trials > 20_000:
        return
    first = data.draw(st.sampled_from([0, size]))
    cells = Counter(
        (item, condition, turn % orders)
        for row in range(first, first + size)
        for item, condition, turn in incomplete_order(items, n, trials, orders, 5, row)
    )
    assert len(cells) == items * n * orders
    assert len(set(cells.values())) == 1


def test_a_server_holds_whole_balanced_blocks_of_incomplete_sessions() -> None:
    study = made("ab", 12, 4, 6, 1, same_text="once")
    assert block_rows(study) == incomplete_rows(12, 6, 6, 2, 128)


def test_sessions_that_cannot_be_balanced_are_refused() -> None:
    assert session_lengths(12, 6) == [1, 2, 3, 6, 12]
    assert session_lengths(5, 6) == [1, 2, 3]
    with pytest.raises(ValueError, match="not balanced"):
        incomplete_order(12, 6, 5, 2, 1, 0)
