"""The design held by a real store: many begin at once, some quit, others take their places."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from listening_test import enrolment
from listening_test.prepared import PreparedStudy
from tests.listening import made
from tests.test_listening_store import Clock, opened


def spread(counts: Counter[Any]) -> int:
    return max(counts.values()) - min(counts.values())


def compared(trial: dict[str, Any], study: PreparedStudy) -> tuple[int, ...]:
    """The arms of a stored trial, in no order."""
    return tuple(sorted({study.by_id[clip].arm for clip in trial["clips"]}))


@pytest.mark.parametrize(
    ("method", "items", "arms", "each", "same_text"),
    [
        ("acr", 4, 3, 3, "apart"), ("acr", 6, 4, 2, "apart"), ("acr", 4, 3, 2, "together"),
        ("acr", 9, 3, 6, "once"), ("p835", 4, 2, 3, "apart"), ("dcr", 5, 4, 2, "apart"),
        ("ccr", 5, 3, 2, "apart"), ("ab", 7, 3, 6, "once"), ("ab", 8, 4, 3, "once"),
        ("abx", 5, 3, 2, "apart"), ("mushra", 6, 3, 4, "apart"),
    ],
)  # fmt: skip
def test_a_hundred_starts_at_once_with_dropouts_leave_cells_that_differ_by_one_at_most(
    tmp_path: Path, method: str, items: int, arms: int, each: int, same_text: Any
) -> None:
    study = made(method, items, arms, each, 1, same_text=same_text)
    store = opened(tmp_path)
    clock, rng = Clock(store, study), random.Random(items)
    keys = [f"k{n}" for n in range(100)]
    with ThreadPoolExecutor(100) as pool:
        list(pool.map(clock.start, keys))
    quitters = set(rng.sample(keys, 30))
    while quitters:
        for key in keys:
            clock.finish(key, rng.randrange(study.trials_per_session) if key in quitters else None)
        clock.now += enrolment.IDLE_S + 1
        # For each who quit another comes, at once again, and of those some quit too.
        keys = [f"{key}+" for key in sorted(quitters)]
        with ThreadPoolExecutor(30) as pool:
            list(pool.map(clock.start, keys))
        quitters = set(rng.sample(keys, 3 * len(keys) // 10))
    for key in keys:
        clock.finish(key)
    complete = store.run(
        lambda db: db.execute(
            "SELECT design_row, trials FROM sessions WHERE state = 'complete'"
        ).fetchall()
    ).result()
    assert sorted(row for row, _ in complete) == list(range(100))
    sessions = [json.loads(order) for _, order in complete]
    wanted = {compared(trial, study) for order in sessions for trial in order}
    assert len(wanted) == study.conditions
    texts, places = study.items("rating"), range(study.trials_per_session)
    heard = Counter(dict.fromkeys(product(texts, wanted), 0))
    at = Counter(dict.fromkeys(product(places, wanted), 0))
    orders: dict[tuple[int, ...], Counter[str]] = {}
    for order in sessions:
        heard.update((trial["item_id"], compared(trial, study)) for trial in order)
        at.update((place, compared(trial, study)) for place, trial in enumerate(order))
        for trial in order:
            first = study.by_id[trial["clips"][0]].arm
            orders.setdefault(compared(trial, study), Counter()).update([first])
    assert spread(heard) <= 1
    assert spread(at) <= 1
    assert all(spread(first) <= 1 for first in orders.values())
    store.close()
