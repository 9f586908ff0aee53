"""Do the intervals hold? `python -m benchmarks.listening_intervals [--runs 4000] [--once]`.

Tests of two equally good systems are simulated with the spreads of the literature
(`listening_test.simulation`) and analysed with the intervals that `listening_test.analyse`
prints: how often the interval of a mean holds the true mean, and how often a difference is found
that is not there, by the interval, by the Wilcoxon test over raters, and by both, as the analysis
asks before it calls a difference shown. With `--once` a rater hears each text under one of the
systems only (`same_text: once`), and how often the difference's interval holds the truth is told
for a true difference as well, `shifted`. A table, then one JSON line. At 4,000 runs a share of 95 %
is known to +-0.7 points.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from listening_test.differences import Layout
from listening_test.simulation import (
    Scores,
    Spreads,
    design_once,
    simulated_once,
    simulated_test,
    true_mean,
)
from listening_test.statistics import CONFIDENCE, crossed_mean, naive_mean, wilcoxon

# (raters, texts, texts a rater)
SIZES = ((20, 10, 10), (20, 20, 10), (20, 100, 10), (30, 40, 10), (48, 40, 10), (100, 20, 20))

# The same with each text heard once; trials are even, so that the systems come equally often.
ONCE = ((20, 10, 10), (20, 20, 10), (20, 100, 10), (24, 40, 4), (48, 40, 10), (100, 20, 20))
_SHIFT = 0.5  # before rounding


def coverage(raters: int, texts: int, per_rater: int, runs: int, seed: int) -> dict[str, float]:
    """Shares over `runs` tests: covered, covered by the naive interval, differences found.

    `false_positives` are those of the interval, `_wilcoxon` of the test, `_shown` of both together.
    """
    rng = np.random.default_rng([seed, raters, texts])
    truth = true_mean(Spreads())
    names = ("covered", "covered_naive", "false_positives", "false_positives_wilcoxon",
             "false_positives_shown")  # fmt: skip
    counts = dict.fromkeys(names, 0)
    for _ in range(runs):
        who, what, a, b = simulated_test(rng, raters, texts, per_rater, Scores(Spreads()))
        counts["covered"] += _holds(crossed_mean(a, who, what).interval(), truth)
        counts["covered_naive"] += _holds(naive_mean(a).interval(), truth)
        apart = not _holds(crossed_mean(a - b, who, what).interval(), 0)
        p = wilcoxon(np.bincount(who, weights=a - b) / np.bincount(who))
        tested = p is not None and p < 1 - CONFIDENCE
        counts["false_positives"] += apart
        counts["false_positives_wilcoxon"] += tested
        counts["false_positives_shown"] += apart and tested
    return {name: count / runs for name, count in counts.items()}


def coverage_once(
    raters: int, texts: int, per_rater: int, runs: int, seed: int
) -> dict[str, float]:
    """Shares over `runs` tests with each text heard once, as `coverage` has them.

    `covered` is of a difference of nought, `covered_shifted` of another one.
    """
    rng = np.random.default_rng([seed, raters, texts])
    who, what, which = design = design_once(raters, texts, per_rater, seed)
    layout = Layout.of(who, what, which == 1)
    truth = true_mean(Spreads(), _SHIFT) - true_mean(Spreads())
    names = ("covered", "covered_shifted", "false_positives", "false_positives_wilcoxon",
             "false_positives_shown")  # fmt: skip
    counts = dict.fromkeys(names, 0)
    for _ in range(runs):
        scores = simulated_once(rng, design, Scores(Spreads()))
        apart = not _holds(layout.difference(scores).interval(), 0)
        means = [
            np.bincount(who[which == s], weights=scores[which == s])
            / np.bincount(who[which == s])
            for s in (0, 1)
        ]
        p = wilcoxon(means[1] - means[0])
        tested = p is not None and p < 1 - CONFIDENCE
        counts["covered"] += not apart
        counts["false_positives"] += apart
        counts["false_positives_wilcoxon"] += tested
        counts["false_positives_shown"] += apart and tested
        shifted = simulated_once(rng, design, Scores(Spreads()), _SHIFT)
        counts["covered_shifted"] += _holds(layout.difference(shifted).interval(), truth)
    return {name: count / runs for name, count in counts.items()}


def _holds(interval: tuple[float, float] | None, value: float) -> bool:
    # No interval claims nothing, and so is not wrong.
    return interval is None or interval[0] <= value <= interval[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listening_intervals")
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--once", action="store_true", help="each text heard once by a rater")
    options = parser.parse_args()
    simulate, sizes, beside = (
        (coverage_once, ONCE, "shifted") if options.once else (coverage, SIZES, "naive")
    )
    rows = []
    print(f"raters  texts  each  covered  {beside:>7s}  false positives  Wilcoxon  shown")
    for raters, texts, per_rater in sizes:
        found = simulate(raters, texts, per_rater, options.runs, options.seed)
        rows.append({"raters": raters, "texts": texts, "texts_per_rater": per_rater, **found})
        print(
            f"{raters:6d} {texts:6d} {per_rater:5d} {found['covered']:8.3f} "
            f"{found[f'covered_{beside}']:8.3f} {found['false_positives']:16.3f} "
            f"{found['false_positives_wilcoxon']:9.3f} {found['false_positives_shown']:6.3f}",
            flush=True,
        )
    print(json.dumps({"runs": options.runs, "seed": options.seed, "rows": rows}))


if __name__ == "__main__":
    main()
