"""Which of two is preferred: shares with intervals, the exact binomial test, Bradley-Terry.

Input is one row a vote, with `system` (heard first), `system_b` (heard second) and `choice`
(`a`, `b` or `tie`). Ties are counted and reported; shares and tests are of the untied votes.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import choix
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from listening_test.statistics import crossed_mean, holm

CHOICES = ("a", "b", "tie")
# Draws of the bootstrap.
BOOTSTRAP = 1000
# A weak pull towards equal strengths, so that a system that never lost has a finite one.
_REGULARISATION = 0.01
# Strengths are found to 1e-8; bootstrap samples that differ less do not differ.
_NO_SPREAD = 1e-6


def preferences(frame: pd.DataFrame, names: list[str]) -> list[dict[str, Any]]:
    """One entry a pair of systems: how often `a` was preferred to `b`.

    `share_ci95` is clustered by rater and text; `share_ci95_naive` (Clopper-Pearson) and
    `p_binomial` take the votes as independent, which they are not, and are for comparison.
    `first_share`, with its clustered interval: how often the clip heard first won, whichever it
    was.
    """
    pairs = []
    for first, second in combinations(names, 2):
        votes = votes_of(frame, first, second)
        if votes.empty:
            continue
        untied = votes[votes["choice"] != "tie"]
        won = (untied["winner"] == first).to_numpy(dtype=float)
        first_won = (untied["choice"] == "a").to_numpy(dtype=float)
        test = stats.binomtest(int(won.sum()), len(won)) if len(won) else None
        exact = test.proportion_ci(method="exact") if test else None
        pairs.append(
            {
                "a": first,
                "b": second,
                "wins_a": int(won.sum()),
                "wins_b": int(len(won) - won.sum()),
                "ties": int((votes["choice"] == "tie").sum()),
                "share_a": float(won.mean()) if len(won) else None,
                "share_ci95": _share_interval(won, untied),
                "share_ci95_naive": [float(exact.low), float(exact.high)] if exact else None,
                "p_binomial": float(test.pvalue) if test else None,
                "first_share": float(first_won.mean()) if len(won) else None,
                "first_share_ci95": _share_interval(first_won, untied),
            }
        )
    return holm(pairs, "p_binomial")


def votes_of(frame: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The votes on one pair, in either order, with the `winner` (of a tie: the second)."""
    ab = (frame["system"] == first) & (frame["system_b"] == second)
    ba = (frame["system"] == second) & (frame["system_b"] == first)
    votes = frame[ab | ba]
    winner = votes["system"].where(votes["choice"] == "a", votes["system_b"])
    return votes.assign(winner=winner)


def bradley_terry(frame: pd.DataFrame, names: list[str], seed: int = 1) -> dict[str, Any] | None:
    """Strength of each system from all untied votes, log-odds with mean 0 over the systems.

    Intervals: percentiles of a bootstrap that draws whole raters, since a rater's votes hang
    together. None below two raters or without an untied vote; raters who all voted alike leave
    no spread, and so no interval.
    """
    untied = frame[frame["choice"].isin(("a", "b")) & (frame["system"] != frame["system_b"])]
    raters = sorted(untied["rater_id"].unique())
    if len(raters) < 2:
        return None
    wins = np.zeros((len(raters), len(names), len(names)))
    first_won = (untied["choice"] == "a").to_numpy()
    one = untied["system"].map(names.index).to_numpy()
    two = untied["system_b"].map(names.index).to_numpy()
    rater = untied["rater_id"].map(raters.index).to_numpy()
    np.add.at(wins, (rater, np.where(first_won, one, two), np.where(first_won, two, one)), 1)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(raters), (BOOTSTRAP, len(raters)))
    samples = np.array([_strengths(wins[draw].sum(axis=0)) for draw in draws])
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    strengths = _strengths(wins.sum(axis=0))
    alike = (high - low).max() < _NO_SPREAD
    return {
        name: {
            "strength": float(strengths[i]),
            "ci95": None if alike else [float(low[i]), float(high[i])],
            "no_spread": bool(alike),
        }
        for i, name in enumerate(names)
    }


def _strengths(wins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Maximum likelihood (with the weak pull) from wins[i, j], how often i beat j."""
    found: npt.NDArray[np.float64] = choix.ilsr_pairwise_dense(wins, alpha=_REGULARISATION)
    return found - found.mean()


def identification(frame: pd.DataFrame) -> dict[str, Any] | None:
    """ABX: how often X was told right; `check_passed` says so for each vote. 0.5 is guessing."""
    if "check_passed" not in frame:
        return None
    votes = frame[frame["check_passed"].notna() & (frame["choice"] != "tie")]
    if votes.empty:
        return None
    right = votes["check_passed"].to_numpy(dtype=float)
    test = stats.binomtest(int(right.sum()), len(right))
    exact = test.proportion_ci(method="exact")
    return {
        "right": int(right.sum()),
        "n": len(right),
        "ties": int((frame["choice"] == "tie").sum()),
        "share": float(right.mean()),
        "share_ci95": _share_interval(right, votes),
        "share_ci95_naive": [float(exact.low), float(exact.high)],
        "p_binomial": float(test.pvalue),
    }


def _share_interval(values: npt.NDArray[np.float64], votes: pd.DataFrame) -> list[float] | None:
    interval = crossed_mean(values, votes["rater_id"], votes["item_id"]).interval()
    return None if interval is None else [max(interval[0], 0.0), min(interval[1], 1.0)]
