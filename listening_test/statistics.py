"""From ratings to evidence: means with honest intervals, differences, tests, non-inferiority.

Ratings are crossed: each rater scores many texts and each text is scored by many raters, so
votes are not independent and the plain t interval is far too narrow (about 65 % coverage for a
nominal 95 %). Here the variance of a mean is the sum of a rater part, a text part and a
rest, estimated by the analysis of variance for unbalanced crossed random effects (Henderson's
method I, Biometrics 9, 1953; Searle, Casella & McCulloch, Variance Components, 1992, ch. 5), with
Satterthwaite's degrees of freedom as the small-sample correction. Differences of systems are
estimated in `differences.py`.

Pure functions of a data frame; files are read in `analyse.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.95
# Below this a standard error is nought but for rounding.
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom (nan where not estimable).

    Values that are all the same have no spread to tell from how sure their mean is. A handful of
    equal ratings is no certainty: there is no interval then, and no test.
    """

    mean: float
    se: float
    df: float

    @property
    def no_spread(self) -> bool:
        """Whether the data are enough in number, but do not differ."""
        return self.df > 0 and self.se < _NO_SPREAD

    @property
    def _testable(self) -> bool:
        return math.isfinite(self.se) and self.df > 0 and not self.no_spread

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Two-sided t interval, or None where the data give no standard error."""
        if not self._testable:
            return None
        half = float(stats.t.ppf((1 + confidence) / 2, self.df)) * self.se
        return self.mean - half, self.mean + half

    def listed(self) -> list[float] | None:
        """The 95 % interval as a list, for JSON."""
        interval = self.interval()
        return None if interval is None else list(interval)

    def as_json(self) -> dict[str, Any]:
        """Mean and interval as plain JSON values."""
        return {"mean": self.mean, "ci95": self.listed(), "no_spread": self.no_spread}

    def p_above(self, bound: float) -> float | None:
        """One-sided p of the hypothesis that the mean is at most `bound`."""
        if not self._testable:
            return None
        return float(stats.t.sf((self.mean - bound) / self.se, self.df))

    def p_below(self, bound: float) -> float | None:
        """One-sided p of the hypothesis that the mean is at least `bound`."""
        if not self._testable:
            return None
        return float(stats.t.cdf((self.mean - bound) / self.se, self.df))


def crossed_mean(values: Values, raters: npt.ArrayLike, items: npt.ArrayLike) -> Estimate:
    """Mean of crossed ratings with its two-way (rater, item) standard error.

    Args:
        values, raters, items: (n,) scores or differences and who and what they belong to.

    One rater says nothing of other raters: no standard error. One item counts as fixed, and the
    raters' means are then the units.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    r_codes, i_codes = pd.factorize(np.asarray(raters))[0], pd.factorize(np.asarray(items))[0]
    n_r, n_i = np.bincount(r_codes, minlength=1), np.bincount(i_codes, minlength=1)
    k = len(n_r)
    if k < 2:
        return Estimate(mean, math.nan, math.nan)
    if len(n_i) < 2:
        sums = np.bincount(r_codes, weights=values - mean)
        return Estimate(mean, math.sqrt(k / (k - 1) * float(np.sum(sums**2))) / n, k - 1)
    # Centred, so that equal values leave no rounding that would look like spread.
    found = _components(values - mean, r_codes, i_codes, n_r, n_i)
    # A variance is not negative, though its estimate can be.
    rater, item, rest = (max(component, 0.0) for component in found)
    from_raters = rater * float(np.sum((n_r / n) ** 2))
    from_items = item * float(np.sum((n_i / n) ** 2))
    from_rest = rest / n
    variance = from_raters + from_items + from_rest
    df = satterthwaite(from_raters, from_items, from_rest, len(n_r), len(n_i))
    return Estimate(mean, math.sqrt(variance), df)


def variance_components(
    values: Values, raters: npt.ArrayLike, items: npt.ArrayLike
) -> tuple[float, float, float]:
    """Variances of (rater, item, rest), free of bias: an estimate near nought can be below it.

    Args:
        values, raters, items: (n,) as for `crossed_mean`; two raters and two items at least.
    """
    r_codes, i_codes = pd.factorize(np.asarray(raters))[0], pd.factorize(np.asarray(items))[0]
    n_r, n_i = np.bincount(r_codes), np.bincount(i_codes)
    return _components(values - float(np.mean(values)), r_codes, i_codes, n_r, n_i)


def _components(
    values: Values,
    r_codes: npt.NDArray[np.int64],
    i_codes: npt.NDArray[np.int64],
    n_r: npt.NDArray[np.int64],
    n_i: npt.NDArray[np.int64],
) -> tuple[float, float, float]:
    """Variance components (rater, item, rest) by Henderson's method I; they can be negative.

    Sums of squares between raters, between items and in total are equated to what they are
    expected to be; for a complete table this is the textbook two-way analysis of variance.
    """
    n, total = len(values), float(np.sum(values))
    cells, in_cell = np.unique(r_codes * len(n_i) + i_codes, return_counts=True)
    cell_r, cell_i = n_r[cells // len(n_i)], n_i[cells % len(n_i)]
    squares = in_cell.astype(float) ** 2
    sum_r = np.bincount(r_codes, weights=values)
    sum_i = np.bincount(i_codes, weights=values)
    correction = total**2 / n
    observed = np.array(
        [
            float(np.sum(sum_r**2 / n_r)) - correction,
            float(np.sum(sum_i**2 / n_i)) - correction,
            float(np.sum(values**2)) - correction,
        ]
    )
    k_r, k_i = float(np.sum(n_r**2)) / n, float(np.sum(n_i**2)) / n
    expected = np.array(
        [
            [n - k_r, float(np.sum(squares / cell_r)) - k_i, len(n_r) - 1],
            [float(np.sum(squares / cell_i)) - k_r, n - k_i, len(n_i) - 1],
            [n - k_r, n - k_i, n - 1],
        ]
    )
    solution, *_ = np.linalg.lstsq(expected, observed, rcond=None)
    rater, item, rest = solution
    return float(rater), float(item), float(rest)


def satterthwaite(r: float, i: float, e: float, raters: int, items: int) -> float:
    """Degrees of freedom of MS(rater) + MS(item) - MS(rest), given each one's share."""
    variance = r + i + e
    if variance == 0:
        return float(min(raters, items) - 1)
    spread = (
        (r + e) ** 2 / (raters - 1)
        + (i + e) ** 2 / (items - 1)
        + e**2 / ((raters - 1) * (items - 1))
    )
    return variance**2 / spread


def naive_mean(values: Values) -> Estimate:
    """Mean with the plain t interval's standard error: only for comparison."""
    n = len(values)
    if n < 2:
        return Estimate(float(np.mean(values)) if n else math.nan, math.nan, math.nan)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n), n - 1)


def against_margin(estimate: Estimate, margin: float | None) -> dict[str, Any]:
    """Non-inferiority of a and of b, and equivalence (two one-sided tests), at a margin.

    `p_non_inferior` is of a, one-sided; `p_equivalent` is the larger of the two one-sided ones. An
    answer is yes where the interval lies on the right side of the margin: the 95 % one for
    non-inferiority (2.5 % on its side), the 90 % one for equivalence (5 % on each, as is usual).
    """
    wide, narrow = estimate.interval(), estimate.interval(2 * CONFIDENCE - 1)
    if margin is None or wide is None or narrow is None:
        verdicts = dict.fromkeys(("non_inferior", "b_non_inferior", "equivalent"))
    else:
        verdicts = {
            "non_inferior": bool(wide[0] > -margin),
            "b_non_inferior": bool(wide[1] < margin),
            "equivalent": bool(-margin < narrow[0] and narrow[1] < margin),
        }
    p = dict.fromkeys(("p_non_inferior", "p_equivalent"))
    if margin is not None and wide is not None:
        above, below = estimate.p_above(-margin), estimate.p_below(margin)
        assert above is not None
        assert below is not None
        p = {"p_non_inferior": above, "p_equivalent": max(above, below)}
    return {"margin": margin, **p, **verdicts}


def rater_gaps(frame: pd.DataFrame, a: str, b: str) -> Values:
    """Each rater's mean score of a less that of b; raters who heard only one do not count."""
    means = frame.pivot_table(index="rater_id", columns="system", values="score", aggfunc="mean")
    gaps: Values = (means[a] - means[b]).dropna().to_numpy(dtype=float)
    return gaps


def _tied(gaps: Values) -> Values:
    """Means of integers: differences equal on paper must be tied in floating point too."""
    rounded: Values = np.round(gaps, 9)
    return rounded


def wilcoxon(gaps: Values) -> float | None:
    """Two-sided Wilcoxon signed-rank p over the raters' mean differences; None below 2 raters.

    No difference at all gives 1. Raters are the units, so it speaks of these texts: what other
    texts would do is in the interval alone.
    """
    gaps = _tied(gaps)
    if len(gaps) < 2:
        return None
    if not gaps.any():
        return 1.0
    return float(stats.wilcoxon(gaps).pvalue)


def effect_sizes(gaps: Values) -> dict[str, float | None]:
    """Effect sizes over the raters' mean differences (None = not defined).

    `cohen_dz`: mean over standard deviation (Lakens, Frontiers in Psychology 4:863, 2013, eq. 6).
    `rank_biserial`: of the Wilcoxon test, favourable less unfavourable share of the ranks (Kerby,
    Comprehensive Psychology 3, 2014), from -1 to 1.
    """
    gaps = _tied(gaps)
    spread = float(np.std(gaps, ddof=1)) if len(gaps) > 1 else 0.0
    moved = gaps[gaps != 0]
    ranks = stats.rankdata(np.abs(moved))
    return {
        "cohen_dz": float(gaps.mean()) / spread if spread > _NO_SPREAD else None,
        "rank_biserial": float(np.sum(ranks * np.sign(moved)) / ranks.sum())
        if len(moved)
        else None,
    }


def pair_entry(
    a: str, b: str, estimate: Estimate, gaps: Values, margin: float | None
) -> dict[str, Any]:
    """A difference of two systems as plain JSON values; `gaps` are the raters' own differences.

    Without an interval there is no p-value either.
    """
    interval = estimate.listed()
    return {
        "a": a,
        "b": b,
        "difference": estimate.mean,
        "ci95": interval,
        "no_spread": estimate.no_spread,
        "p_wilcoxon": None if interval is None else wilcoxon(gaps),
        **effect_sizes(gaps),
        **against_margin(estimate, margin),
    }


def holm(pairs: list[dict[str, Any]], p: str) -> list[dict[str, Any]]:
    """The pairs with `p_holm`, Holm's correction of their values of `p` over all of them."""
    tested = [pair for pair in pairs if pair[p] is not None]
    adjusted = multipletests([pair[p] for pair in tested], method="holm")[1] if tested else []
    known = {id(pair): float(value) for pair, value in zip(tested, adjusted, strict=True)}
    return [{**pair, "p_holm": known.get(id(pair))} for pair in pairs]
