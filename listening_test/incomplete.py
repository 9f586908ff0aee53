"""Balanced incomplete blocks: a rater hears each of their texts once, under one condition of many.

`design.py` gives every rater all conditions of a text. Here the cells (text, condition) are spread
over raters instead, as is wanted where hearing a text again would tell what to listen for, or where
there are more pairs of systems than one rater can take. A session has a multiple of the conditions,
or a whole share of them. After any number of rows the counts of the cells differ by at most one,
and so do those of the conditions at a place of the session; the orders of a cell's clips take turns
over its hearings, and those of a condition over its texts. Texts and conditions are integers.
"""

from __future__ import annotations

import math
import random

from listening_test.design import block_shifts, systems_of_row, williams

Cell = tuple[int, int, int]


def session_lengths(n_items: int, n_conditions: int) -> list[int]:
    """How many trials a session may have."""
    return [
        trials
        for trials in range(1, n_items + 1)
        if trials % n_conditions == 0 or n_conditions % trials == 0
    ]


def incomplete_order(
    n_items: int, n_conditions: int, trials: int, orders: int, seed: int, row: int
) -> list[Cell]:
    """Trials of design row `row` (from 0) as (text, condition, order of its clips).

    Args:
        orders: in how many orders a condition's clips come.

    Raises:
        ValueError: a session of so many trials cannot be balanced.
    """
    if trials not in session_lengths(n_items, n_conditions):
        raise ValueError(
            f"{trials} trials of {n_items} texts under {n_conditions} conditions are not balanced"
        )
    each, share = _proportion(n_conditions, trials)
    rng = random.Random(f"{seed}/{row}/once")
    circle = random.Random(f"{seed}/items").sample(range(n_items), n_items)
    names = random.Random(f"{seed}/systems").sample(range(n_conditions), n_conditions)
    places = _conditions(n_conditions, trials, seed, row)
    # A condition's next texts on the circle, each at one of its trials. All conditions' texts of
    # one row lie side by side there, so that none comes twice.
    turns = {number: rng.sample(range(each), each) for number in set(places)}
    order = []
    for number in places:
        heard = row * each // share + turns[number].pop()
        text = circle[(number * each // share + heard) % n_items]
        order.append((text, names[number], _turn(heard, n_items, orders) + names[number]))
    return order


def incomplete_rows(n_items: int, n_conditions: int, trials: int, orders: int, least: int) -> int:
    """The smallest number of rows, `least` or more, over which all cells and orders are equal."""
    each, share = _proportion(n_conditions, trials)
    hearings = share * n_items * orders
    squares = n_conditions * len(williams(trials)) // trials
    if share == 1:
        squares = len(williams(n_conditions))
    period = math.lcm(hearings // math.gcd(hearings, each), squares)
    return period * -(-least // period)


def _proportion(n_conditions: int, trials: int) -> tuple[int, int]:
    """Trials of a condition in a session, and in how many sessions each condition comes once."""
    return max(trials // n_conditions, 1), max(n_conditions // trials, 1)


def _conditions(n: int, trials: int, seed: int, row: int) -> list[int]:
    """The condition at each place of a row: over `n` rows each place holds each of them once."""
    each, share = _proportion(n, trials)
    if share == 1:
        return systems_of_row(n, block_shifts(n, each, seed), row)
    # Every `share`-th condition, from another one on in each row.
    squares = williams(trials)
    first = squares[row // n * trials % len(squares)]
    return [(step * share + row) % n for step in first]


def _turn(heard: int, n_items: int, orders: int) -> int:
    """The order of a cell's clips; see `design.turns_of_row`."""
    common = math.gcd(n_items, orders)
    span = n_items * orders // common
    return (heard + heard // span % common) % orders
