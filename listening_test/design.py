"""Who hears what, and in which order: a balanced design drawn from a seed.

A session is one row of the design. The rater hears `items_per_rater` texts, each once under
every system, in blocks of one trial a system. The order of systems in a block is a row of a
Williams Latin square (E. J. Williams, 1949), so that over the rows each system stands equally
often at each place and follows each other system equally often. The same text never comes twice
in a row. Texts are taken in turn, so that after any number of rows their counts differ by at
most one. Nothing here knows of files, raters or system names: items and systems are integers.
"""

from __future__ import annotations

import math
import random


def williams(n: int) -> list[list[int]]:
    """Rows of a Williams design of 0..n-1: `n` rows for even n, `2n` for odd (1 for n = 1).

    Over all rows each symbol stands equally often in each column, and each ordered pair of
    different symbols is adjacent equally often.
    """
    if n == 1:
        return [[0]]
    # 0, 1, n-1, 2, n-2, ... : its neighbouring differences are all distinct modulo n.
    base = [0]
    low, high = 1, n - 1
    while len(base) < n:
        base.append(low)
        low += 1
        if len(base) < n:
            base.append(high)
            high -= 1
    rows = [[(x + shift) % n for x in base] for shift in range(n)]
    return rows if n % 2 == 0 else rows + [row[::-1] for row in rows]


def session_order(
    n_items: int, n_systems: int, items_per_rater: int, seed: int, row: int
) -> list[tuple[int, int]]:
    """Trials of design row `row` (from 0) as (item, system), in the order heard."""
    if not 1 <= items_per_rater <= n_items:
        raise ValueError(f"items_per_rater must be 1 to {n_items}, not {items_per_rater}")
    items = _items_of_row(n_items, items_per_rater, seed, row)
    squares = williams(n_systems)
    random.Random(f"{seed}/squares").shuffle(squares)
    for attempt in range(600):
        # Blocks walk through the square, and each row starts one further. The first attempt is
        # the balanced one; later ones only serve tiny studies, where it can be impossible.
        rng = random.Random(f"{seed}/{row}/{attempt}")
        if attempt < 40:
            blocks = [squares[(row + b) % len(squares)] for b in range(items_per_rater)]
        else:
            blocks = [rng.choice(squares) for _ in range(items_per_rater)]
        order = _place_items(items, [s for block in blocks for s in block], n_systems, rng)
        if order is not None:
            return order
    raise ValueError(
        f"no order of {items_per_rater} texts under {n_systems} systems keeps the same text from "
        "coming twice in a row; give each rater more texts"
    )


def _items_of_row(n_items: int, per_rater: int, seed: int, row: int) -> list[int]:
    """The row's texts: a window that walks round one seeded circle of all texts."""
    circle = list(range(n_items))
    random.Random(f"{seed}/items").shuffle(circle)
    start = row * per_rater
    return [circle[(start + j) % n_items] for j in range(per_rater)]


def cycle_of_item(n_items: int, per_rater: int, seed: int, row: int, item: int) -> int:
    """How often `item` was heard in the rows before `row`: its orders alternate by this."""
    circle = list(range(n_items))
    random.Random(f"{seed}/items").shuffle(circle)
    place = circle.index(item)
    return (row * per_rater - place + n_items - 1) // n_items


def balanced_rows(n_items: int, n_systems: int, items_per_rater: int, least: int) -> int:
    """The smallest number of rows, `least` or more, that is balanced in itself.

    Over so many rows from any on, each text is heard equally often, in each of the orders of a
    pair and of ABX's X (four in all), and the rows of the Latin square are used equally often.
    """
    turns = 4 * n_items // math.gcd(4 * n_items, items_per_rater)
    period = math.lcm(turns, len(williams(n_systems)))
    return period * -(-least // period)


def _place_items(
    items: list[int], systems: list[int], n_systems: int, rng: random.Random
) -> list[tuple[int, int]] | None:
    """Give every trial a text, each text once a system, no text twice in a row; None if stuck."""
    left = {system: rng.sample(items, len(items)) for system in range(n_systems)}
    order: list[tuple[int, int]] = []
    for system in systems:
        # Texts heard longest ago first: repeats of a text are spread over the session.
        last_heard = {item: place for place, (item, _) in enumerate(order)}
        free = [item for item in left[system] if not order or item != order[-1][0]]
        if not free:
            return None
        item = min(free, key=lambda candidate: last_heard.get(candidate, -1))
        left[system].remove(item)
        order.append((item, system))
    return order
