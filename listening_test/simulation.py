"""Simulated listening tests of two systems, for planning and for checking the analysis.

A score is a mean plus parts of rater, text, their interactions with the system and a rest, all
normal. Every rater hears their texts under both systems, or, in balanced incomplete blocks, each
under one. Knows no plan and no ratings.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import optimize, stats

from listening_test.incomplete import incomplete_order

_MEAN = 3.2  # of a score before rounding
_HIGHEST = 5


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of a score's parts, in points of the scale.

    Raters and texts as in the survey of 46 tests by Rosenberg & Ramabhadran (Interspeech 2017);
    their interactions with the system, and the rest, as is usual for such tests. `rater_item` is
    what a rater makes of a text under every system; the survey has it in the rest.
    """

    rater: float = 0.45
    item: float = 0.33
    rater_system: float = 0.15
    item_system: float = 0.15
    rest: float = 0.75
    rater_item: float = 0.0


@dataclass(frozen=True)
class Scores:
    """How scores come about.

    Attributes:
        spreads: of a score's parts.
        rounded: the parts make a number that the rater rounds to 1 to 5, as with the spreads of
            the literature. Spreads of observed scores have that in them already.
    """

    spreads: Spreads
    rounded: bool = True

    def shift(self, gap: float) -> float:
        """What to add to one system's parts so that its mean score is `gap` points higher.

        Raises:
            ValueError: no shift is enough, since the scale ends.
        """
        if not self.rounded or gap == 0:
            return gap
        mean, furthest = true_mean(self.spreads), 10.0
        if not 0 < gap < true_mean(self.spreads, furthest) - mean:
            raise ValueError(
                f"a gap of {gap:g} is more than a scale from 1 to {_HIGHEST} has room for"
            )
        found = optimize.brentq(
            lambda shift: true_mean(self.spreads, shift) - mean - gap, 0, furthest
        )
        return float(found)


def simulated_test(
    rng: np.random.Generator,
    raters: int,
    texts: int,
    per_rater: int,
    scores: Scores,
    shift: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One test of two systems: rater, text, and both scores, (n,) each.

    The second system is better by `shift` before rounding. Every rater hears `per_rater` of the
    texts, taken in turn, under both.
    """
    spreads = scores.spreads
    who = np.repeat(np.arange(raters), per_rater)
    what = np.arange(raters * per_rater) % texts
    common = rng.normal(0, spreads.rater, raters)[who] + rng.normal(0, spreads.item, texts)[what]
    if spreads.rater_item:
        common = common + rng.normal(0, spreads.rater_item, len(who))
    a, b = (_MEAN + common + _own_part(rng, who, what, spreads) for _ in range(2))
    b = b + shift
    if scores.rounded:
        a, b = (np.clip(np.rint(score), 1, _HIGHEST) for score in (a, b))
    return who, what, a, b


def simulated_once(
    rng: np.random.Generator,
    design: tuple[np.ndarray, np.ndarray, np.ndarray],
    scores: Scores,
    shift: float = 0.0,
) -> np.ndarray:
    """One test of two systems in which a rater hears each text once: the scores, (n,).

    Args:
        design: rater, text and system (0 or 1), (n,) each, as `design_once` draws them.
        shift: what makes system 1 better, before rounding.
    """
    spreads = scores.spreads
    who, what, which = design
    raters, texts = who.max() + 1, what.max() + 1
    # The system's own parts of raters and texts are as many for each of the two.
    found = (
        _MEAN
        + shift * which
        + rng.normal(0, spreads.rater, raters)[who]
        + rng.normal(0, spreads.item, texts)[what]
        + rng.normal(0, spreads.rater_system, (raters, 2))[who, which]
        + rng.normal(0, spreads.item_system, (texts, 2))[what, which]
        + rng.normal(0, math.hypot(spreads.rest, spreads.rater_item), len(who))
    )
    return np.clip(np.rint(found), 1, _HIGHEST) if scores.rounded else found


def design_once(
    raters: int, texts: int, per_rater: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rater, text and system (0 or 1) of each rating of a test with `same_text: once`.

    Raises:
        ValueError: a session of `per_rater` texts cannot be balanced.
    """
    rows = [incomplete_order(texts, 2, per_rater, 1, seed, row) for row in range(raters)]
    cells = np.array([cell[:2] for row in rows for cell in row])
    return np.repeat(np.arange(raters), per_rater), cells[:, 0], cells[:, 1]


def true_mean(spreads: Spreads, shift: float = 0.0) -> float:
    """What the mean score of a simulated test estimates: of the rounded and clipped normal."""
    spread = math.sqrt(sum(value**2 for value in asdict(spreads).values()))
    edges = stats.norm.cdf((np.arange(1.5, _HIGHEST) - _MEAN - shift) / spread)
    return float(_HIGHEST - edges.sum())


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
