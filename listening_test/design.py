"""Who hears what, and in which order: a balanced design drawn from a seed.

A session is one row of the design. The rater hears `items_per_rater` texts, each once under
every system, in blocks of one trial a system. The order of systems in a block is a row of a
Williams Latin square (E. J. Williams, 1949), so that over the rows each system stands equally
often at each place and follows each other system equally often. The same text never comes twice
in a row, unless it is wanted so. Texts are taken in turn. After any number of rows, full cycles or
not, the counts of the ratings of a stimulus differ by at most one, and so do those of the systems
at a place of the session. Nothing here knows of files, raters or system names: items and systems
are integers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

# Random ways to give the trials their texts, before one is taken that is less mixed.
_TRIES = 40
# Texts that a trial chooses among: so that very long sessions are drawn in no time either.
_CANDIDATES = 64


def williams(n: int) -> list[list[int]]:
    """Rows of a Williams design of 0..n-1: `n` rows for even n, `2n` for odd (1 for n = 1).

    Over all rows each symbol stands equally often in each column, and each ordered pair of
    different symbols is adjacent equally often. Each run of `n` rows, from the first on, is a
    Latin square, row `k` of which is its first row plus `k` (modulo n).
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
    n_items: int,
    n_systems: int,
    items_per_rater: int,
    seed: int,
    row: int,
    together: bool = False,
) -> list[tuple[int, int]]:
    """Trials of design row `row` (from 0) as (item, system), in the order heard.

    `together`: one text under all systems, then the next text.

    Raises:
        ValueError: more texts for a rater than there are, or one text under several systems.
    """
    if not 1 <= items_per_rater <= n_items:
        raise ValueError(f"items_per_rater must be 1 to {n_items}, not {items_per_rater}")
    if items_per_rater == 1 and n_systems > 1 and not together:
        raise ValueError(
            f"one text under {n_systems} systems comes {n_systems} times in a row; give each "
            "rater more texts"
        )
    items = items_of_row(n_items, items_per_rater, seed, row)
    rng = random.Random(f"{seed}/{row}")
    if together:
        systems = systems_of_row(n_systems, block_shifts(n_systems, items_per_rater, seed), row)
        places = [block for block in range(items_per_rater) for _ in range(n_systems)]
    else:
        shifts, known = _blocks(n_systems, items_per_rater, seed)
        systems = systems_of_row(n_systems, shifts, row)
        tries = (_place(systems, items_per_rater, rng) for _ in range(_TRIES))
        places = next(filter(None, tries), known[row // n_systems % len(known)])
    items = rng.sample(items, len(items))
    names = random.Random(f"{seed}/systems").sample(range(n_systems), n_systems)
    return [(items[place], names[system]) for place, system in zip(places, systems, strict=True)]


def items_of_row(n_items: int, per_rater: int, seed: int, row: int) -> list[int]:
    """The row's texts: a window that walks round one seeded circle of all texts."""
    circle = list(range(n_items))
    random.Random(f"{seed}/items").shuffle(circle)
    start = row * per_rater
    return [circle[(start + j) % n_items] for j in range(per_rater)]


def turns_of_row(n_items: int, per_rater: int, seed: int, row: int, n: int) -> dict[int, int]:
    """Which of `n` orders of its clips each text of the row comes in: 0 to n - 1.

    The orders take turns over the row's texts, and those of one text over the rows: among any `n`
    hearings of a text in turn, each order comes once.
    """
    # Where `n` and the number of texts have a divisor in common, a text would meet some orders
    # only: after each such span its turns go on by one, until all have come.
    common = math.gcd(n_items, n)
    span = n_items * n // common
    return {
        item: (place + place // span % common) % n
        for place, item in enumerate(items_of_row(n_items, per_rater, seed, row), row * per_rater)
    }


def clip_order(n: int, seed: int, turn: int) -> list[int]:
    """Order `turn` (0 to n - 1) of `n` clips that stand on one page: a row of a Latin square.

    Over all turns each clip stands once at each place.
    """
    names = random.Random(f"{seed}/clips").sample(range(n), n)
    return [names[clip] for clip in williams(n)[turn]]


def balanced_rows(
    n_items: int, n_systems: int, items_per_rater: int, orders: int, least: int
) -> int:
    """The smallest number of rows, `least` or more, that is balanced in itself.

    Over so many rows from any on, each text is heard equally often in each of its `orders` of
    clips, and the rows of the Latin square are used equally often.
    """
    turns = orders * n_items // math.gcd(orders * n_items, items_per_rater)
    period = math.lcm(turns, len(williams(n_systems)))
    return period * -(-least // period)


def systems_of_row(n: int, shifts: Sequence[int], row: int) -> list[int]:
    """The systems of a session's trials, block by block.

    Block `b` takes row `row + shifts[b]` of the square that all rows of this cycle share, so at
    each place `n` rows from a cycle's begin hold `n` different systems.
    """
    squares = williams(n)
    first = row // n * n % len(squares)
    square = squares[first : first + n]
    return [system for shift in shifts for system in square[(row + shift) % n]]


def block_shifts(n: int, blocks: int, seed: int) -> tuple[int, ...]:
    """For each block of a session its row of the square; all different as far as they go."""
    return next(_shifts(n, blocks, seed))


@lru_cache(maxsize=64)
def _blocks(n: int, per_rater: int, seed: int) -> tuple[tuple[int, ...], list[list[int]]]:
    """Each block's shift, and a way to give the trials their texts under each of the squares.

    A row differs from the next of its square by the systems' names only, so what serves one row
    serves all.
    """
    cycles = len(williams(n)) // n
    for shifts in _shifts(n, per_rater, seed):
        rng = random.Random(f"{seed}/texts")
        known = []
        for cycle in range(cycles):
            systems = systems_of_row(n, shifts, cycle * n)
            tries = (_place(systems, per_rater, rng) for _ in range(_TRIES))
            known.append(next(filter(None, tries), []))
        if all(known):
            return shifts, known
    raise AssertionError(f"no order of {per_rater} texts under {n} systems")  # tested: there is


def _shifts(n: int, per_rater: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Shifts to try: all different as far as they go; at last such as always have an order.

    Few texts under many systems leave little choice. Two must alternate throughout, which a row
    and its mirror image allow, or, of an odd number of systems, a row and itself.
    """
    rng = random.Random(f"{seed}/blocks")
    for _ in range(60):
        rounds = (rng.sample(range(n), n) for _ in range(-(-per_rater // n)))
        yield tuple([shift for one in rounds for shift in one][:per_rater])
    yield tuple(0 if n % 2 else n // 2 * (block % 2) for block in range(per_rater))


def _place(systems: Sequence[int], n_texts: int, rng: random.Random) -> list[int] | None:
    """A text (0 to n_texts - 1) for each trial: each once a system, none twice in a row.

    The text heard longest ago comes first, so that the repeats of a text are spread. None if
    this try got stuck.
    """
    left = {system: rng.sample(range(n_texts), n_texts) for system in set(systems)}
    last_heard: dict[int, int] = {}
    order: list[int] = []
    for place, system in enumerate(systems):
        near = left[system][:_CANDIDATES]
        free = [text for text in near if place == 0 or text != order[-1]]
        if free:
            text = min(free, key=lambda candidate: last_heard.get(candidate, -1))
            left[system].remove(text)
        else:
            swapped = _swap(order, systems, system, rng)
            if swapped is None:
                return None
            text = swapped
        last_heard[text] = place
        order.append(text)
    return order


def _swap(order: list[int], systems: Sequence[int], system: int, rng: random.Random) -> int | None:
    """Put the text just heard, the system's last one, at an earlier trial; returns what was there.

    None if it would stand beside itself everywhere.
    """
    text = order[-1]
    earlier = [place for place in range(len(order) - 1) if systems[place] == system]
    for place in rng.sample(earlier, len(earlier)):
        beside = order[max(place - 1, 0) : place + 2]
        if text not in beside:
            there, order[place] = order[place], text
            return there
    return None
