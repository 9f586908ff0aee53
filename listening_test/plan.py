"""How many raters and texts: `python -m listening_test.plan --half-width 0.1 [--json]`.

Tests of growing size are simulated with the spreads of the literature, and analysed with the very
interval that `analyse` prints. The smallest number of raters whose mean half-width reaches the
wish is reported for several numbers of texts: with few texts no number of raters is enough.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from listening_test.statistics import crossed_mean

TEXTS = (8, 16, 32, 64, 128, 256)
MOST_RATERS = 1000
_RUNS = 40
_MEAN = 3.2  # of a score before rounding


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of a score's parts, in MOS.

    Raters and texts as in the survey of 46 tests by Rosenberg & Ramabhadran (Interspeech 2017);
    their interactions with the system, and the rest, as is usual for such tests.
    """

    rater: float = 0.45
    item: float = 0.33
    rater_system: float = 0.15
    item_system: float = 0.15
    rest: float = 0.75


@dataclass(frozen=True)
class Plan:
    """One size of test. Half-widths of 95 % intervals, in MOS; None where it is out of reach."""

    texts: int
    texts_per_rater: int
    raters: int | None
    ratings_per_system: int | None
    half_width: float | None
    half_width_difference: float | None


def simulated_half_widths(
    raters: int, texts: int, per_rater: int, spreads: Spreads, runs: int, seed: int
) -> tuple[float, float]:
    """Mean half-widths of a system's MOS and of a paired difference, over `runs` tests.

    Every rater hears `per_rater` of the texts (taken in turn) under both systems, rates 1 to 5.
    """
    rng = np.random.default_rng([seed, raters, texts])
    found = []
    for _ in range(runs):
        who, what, a, b = simulated_test(rng, raters, texts, per_rater, spreads)
        intervals = [crossed_mean(x, who, what).interval() for x in (a, a - b)]
        found.append([math.inf if i is None else (i[1] - i[0]) / 2 for i in intervals])
    mos, gap = np.mean(found, axis=0)
    return float(mos), float(gap)


def simulated_test(
    rng: np.random.Generator, raters: int, texts: int, per_rater: int, spreads: Spreads
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One test of two systems that are equally good: rater, text, and both scores, (n,) each."""
    who = np.repeat(np.arange(raters), per_rater)
    what = np.arange(raters * per_rater) % texts
    common = rng.normal(0, spreads.rater, raters)[who] + rng.normal(0, spreads.item, texts)[what]
    a, b = (
        np.clip(np.rint(_MEAN + common + _own_part(rng, who, what, spreads)), 1, 5)
        for _ in range(2)
    )
    return who, what, a, b


def true_mean(spreads: Spreads) -> float:
    """What the mean score of a simulated test estimates: of the rounded and clipped normal."""
    spread = math.sqrt(sum(value**2 for value in asdict(spreads).values()))
    edges = stats.norm.cdf((np.arange(1.5, 5) - _MEAN) / spread)
    return float(5 - edges.sum())


def _own_part(
    rng: np.random.Generator, who: np.ndarray, what: np.ndarray, spreads: Spreads
) -> np.ndarray:
    """What is one system's own in each score: interactions and rest."""
    raters, texts = who.max() + 1, what.max() + 1
    own: np.ndarray = (
        rng.normal(0, spreads.rater_system, raters)[who]
        + rng.normal(0, spreads.item_system, texts)[what]
        + rng.normal(0, spreads.rest, len(who))
    )
    return own


def smallest(
    wanted: float, texts: int, most_texts_per_rater: int, spreads: Spreads, seed: int
) -> Plan:
    """The fewest raters whose mean half-width of a MOS is at most `wanted`, by bisection."""
    per_rater = min(texts, most_texts_per_rater)

    def widths(raters: int) -> tuple[float, float]:
        return simulated_half_widths(raters, texts, per_rater, spreads, _RUNS, seed)

    low, high = 1, 4
    while widths(high)[0] > wanted:
        low, high = high, high * 2
        if high > MOST_RATERS:
            return Plan(texts, per_rater, None, None, None, None)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if widths(middle)[0] <= wanted else (middle, high)
    mos, gap = widths(high)
    return Plan(texts, per_rater, high, high * per_rater, round(mos, 4), round(gap, 4))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.plan", description=__doc__)
    parser.add_argument("--half-width", type=float, required=True, help="of a 95 %% interval, MOS")
    parser.add_argument("--texts-per-rater", type=int, default=16, help="at most (default 16)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not 0.02 <= options.half_width <= 2:
        print("--half-width must be 0.02 to 2 MOS, for example 0.1.", file=sys.stderr)
        return 2
    if not 2 <= options.texts_per_rater <= 256:
        print("--texts-per-rater must be 2 to 256.", file=sys.stderr)
        return 2
    spreads = Spreads()
    plans = [
        smallest(options.half_width, texts, options.texts_per_rater, spreads, options.seed)
        for texts in TEXTS
    ]
    if options.json:
        result = {
            "half_width": options.half_width,
            "spreads": asdict(spreads),
            "runs": _RUNS,
            "plans": [asdict(plan) for plan in plans],
        }
        print(json.dumps(result, allow_nan=False))
        return 0
    print(f"for a half-width of {options.half_width:g} MOS (95 %, two-way clustered):")
    for plan in plans:
        if plan.raters is None:
            print(f"{plan.texts:4d} texts: out of reach with up to {MOST_RATERS} raters")
        else:
            print(
                f"{plan.texts:4d} texts: {plan.raters} raters, {plan.texts_per_rater} texts each "
                f"under every system ({plan.ratings_per_system} ratings a system); "
                f"a paired difference then has +-{plan.half_width_difference:.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
