"""How many raters show a gap: tests are simulated, and analysed as `analyse` does.

A gap is shown where the 95 % interval of the paired difference lies above nought. That is also
what shows non-inferiority of two equal systems at a margin of the same size, since both ask how
often the interval is clear of a point that far away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from listening_test.differences import Layout
from listening_test.simulation import Scores, design_once, simulated_once, simulated_test
from listening_test.statistics import Estimate, crossed_mean

MOST_RATERS = 1000
# With fewer the Wilcoxon test, without which `analyse` calls no gap shown, cannot reach 5 %.
FEWEST_RATERS = 6
RUNS = 500
# Where even without end of raters the texts leave an error this much above what is needed, no
# simulation is run to see that.
_HOPELESS = 1.15


@dataclass(frozen=True)
class GapPlan:
    """One size of test; None where the wish is out of reach. `power` is a simulated share."""

    texts: int
    texts_per_rater: int
    raters: int | None
    ratings_per_system: int | None
    power: float | None


def texts_for(texts: int, most: int, once: bool) -> int:
    """Texts a rater hears; where each is heard once, as many under either system."""
    per_rater = min(texts, most)
    return per_rater - per_rater % 2 if once else per_rater


def simulated_tests(
    raters: int, texts: int, per_rater: int, scores: Scores, runs: int, seed: int,
    once: bool = False, shift: float = 0.0,
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Estimate]]:  # fmt: skip
    """Tests of two systems: the first one's scores, raters and texts; what the second has more.

    Args:
        once: a rater hears each of their texts under one of the systems, not under both.
        shift: what makes the second system better, before rounding.
    """
    rng = np.random.default_rng([seed, raters, texts])
    if not once:
        for _ in range(runs):
            who, what, a, b = simulated_test(rng, raters, texts, per_rater, scores, shift)
            yield (a, who, what), crossed_mean(b - a, who, what)
        return
    who, what, which = design = design_once(raters, texts, per_rater, seed)
    layout, first = Layout.of(who, what, which == 1), which == 0
    for _ in range(runs):
        found = simulated_once(rng, design, scores, shift)
        yield (found[first], who[first], what[first]), layout.difference(found)


def simulated_power(
    gap: float, raters: int, texts: int, per_rater: int, scores: Scores, runs: int, seed: int,
    once: bool = False,
) -> float:  # fmt: skip
    """Share of `runs` simulated tests whose interval shows that the better system is better.

    Args:
        gap: true difference of the mean scores, in points of the scale.
        once: as for `simulated_tests`.
    """
    shown, shift = 0, scores.shift(gap)
    for _, estimate in simulated_tests(
        raters, texts, per_rater, scores, runs, seed, once, shift
    ):
        interval = estimate.interval()
        shown += interval is not None and interval[0] > 0
    return shown / runs


def raters_for_gap(
    gap: float, power: float, texts: int, most_texts_per_rater: int, scores: Scores, seed: int,
    once: bool = False,
) -> GapPlan:  # fmt: skip
    """The fewest raters with which a gap is shown with a probability of `power` at least.

    The formula of the normal distribution says where to look, the simulation decides.
    """
    per_rater = texts_for(texts, most_texts_per_rater, once)

    def enough(raters: int) -> bool:
        if raters not in found:
            found[raters] = simulated_power(
                gap, raters, texts, per_rater, scores, RUNS, seed, once
            )
        return found[raters] >= power

    found: dict[int, float] = {}
    out_of_reach = GapPlan(texts, per_rater, None, None, None)
    guess = formula_raters(gap, power, texts, per_rater, scores, once)
    if guess is None:
        return out_of_reach
    low, high = FEWEST_RATERS - 1, max(FEWEST_RATERS, min(guess, MOST_RATERS))
    if enough(high):
        while high > FEWEST_RATERS and enough(lower := max(FEWEST_RATERS, high * 6 // 7)):
            high = lower
        low = max(FEWEST_RATERS - 1, high * 6 // 7)
    while not enough(high):
        low, high = high, high * 7 // 6 + 1
        if high > MOST_RATERS:
            return out_of_reach
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    per_system = high * per_rater // (2 if once else 1)
    return GapPlan(texts, per_rater, high, per_system, round(found[high], 3))


def formula_raters(
    gap: float, power: float, texts: int, per_rater: int, scores: Scores, once: bool = False
) -> int | None:
    """Raters by the normal approximation; None where the texts alone make it hopeless.

    The variance of a paired difference is 2 (rater_system / raters + item_system / texts + rest /
    ratings); its root must be the gap over the sum of two normal quantiles.
    """
    spreads = scores.spreads
    needed = (gap / float(stats.norm.ppf(0.975) + stats.norm.ppf(power))) ** 2
    from_texts = 2 * spreads.item_system**2 / texts if texts > 1 else 0.0
    if from_texts > needed * _HOPELESS**2:
        return None
    # Rounding to whole scores adds the variance of a uniform step.
    rest = spreads.rest**2 + (1 / 12 if scores.rounded else 0)
    own = 2 * (spreads.rater_system**2 + rest / per_rater)
    if once:  # half as many ratings of a system, and what raters make of a text does not cancel
        own = 2 * (spreads.rater_system**2 + 2 * (rest + spreads.rater_item**2) / per_rater)
    if texts == 1:  # one text counts as fixed, and what raters make of it as theirs
        own = 2 * (spreads.rater_system**2 + rest)
    left = needed - from_texts
    return MOST_RATERS if left * MOST_RATERS <= own else math.ceil(own / left)
