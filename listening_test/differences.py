"""The difference of two systems' mean scores, whether or not raters heard a text under both.

Where every rater scored each of their texts under both systems, the differences within (rater,
text) are what is analysed. Otherwise (balanced incomplete blocks, or ratings that are missing) a
score is the mean of its system, plus parts of rater and text that both systems share, parts of
rater and text that are the difference's own, and a rest. Shared parts cancel in the difference as
far as raters and texts stand equally often under both systems. The variances are estimated by
sums of squares that are equated to what they are expected to be; the ratings are adjusted for
raters and texts before, so that the shared parts do not blur the own ones (minimum norm quadratic
unbiased estimation: C. R. Rao, J. Multivariate Analysis 1, 1971; Searle, Casella & McCulloch,
Variance Components, 1992, ch. 11).

Knows a frame of ratings; intervals are `statistics.Estimate`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from listening_test.statistics import (
    Estimate,
    Values,
    crossed_mean,
    satterthwaite,
    variance_components,
)

Codes = npt.NDArray[np.int64]
# Variance of the rest over that of raters, and of texts, for which the adjustment is best: about
# that of the survey in `simulation.Spreads`. It is free of bias whatever they are.
_RATER_SHARE, _ITEM_SHARE = 3.0, 5.0
# A variance is no less than what the rest alone gives. But to cut all there that falls below by
# chance makes intervals too wide: by simulation (`benchmarks.listening_intervals`) this holds best.
_LEAST = 0.8
# Parts whose sums of squares are nearer to one another than this are not told apart.
_TELLING = 1e-3
# Singular values below this share of the largest are nought but for rounding.
_RANK = 1e-10
# With this share of the ratings in pairs, the pairs tell best what is a system's own.
_MOSTLY_PAIRED = 0.5


def difference(frame: pd.DataFrame, a: str, b: str) -> Estimate:
    """MOS(a) - MOS(b), with the standard error of paired ratings where they are paired.

    Args:
        frame: rater_id, item_id, system, score.
    """
    both = frame[frame["system"].isin([a, b])]
    cells = both.groupby(["rater_id", "item_id", "system"])["score"].agg(["mean", "size"])
    table = cells["mean"].unstack("system")
    if not table.isna().any(axis=None) and (cells["size"] == 1).all():
        ids = table.index
        gaps = (table[a] - table[b]).to_numpy(dtype=float)
        return crossed_mean(gaps, ids.get_level_values(0), ids.get_level_values(1))
    is_a = (both["system"] == a).to_numpy()
    return Layout.of(both["rater_id"], both["item_id"], is_a).difference(
        both["score"].to_numpy(dtype=float)
    )


@dataclass(frozen=True)
class Parts:
    """Variances of a score's parts, free of bias: one near nought can be below it.

    Attributes:
        rater, item: of what both systems share.
        rater_gap, item_gap: of the difference of a rater's, or a text's, two systems.
        rest: of a rating.
        both: of what a rater makes of a text under both systems; in `rest` where it is not known.
    """

    rater: float
    item: float
    rater_gap: float
    item_gap: float
    rest: float
    both: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Who scored what under which of two systems: one place a rating, (n,) each.

    What depends on it alone is worked out once, for as many sets of scores as there are.

    Attributes:
        raters, items: codes from 0 on.
        is_a: whether the rating is of the first system.
    """

    raters: Codes
    items: Codes
    is_a: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, raters: npt.ArrayLike, items: npt.ArrayLike, is_a: npt.ArrayLike) -> Layout:
        """From any ids."""
        who, what = (pd.factorize(np.asarray(ids))[0] for ids in (raters, items))
        return cls(who, what, np.asarray(is_a, dtype=bool))

    def difference(self, scores: Values) -> Estimate:
        """Mean score of the first system less that of the second.

        Two ratings a system and two raters at least, or there is no standard error. One text
        counts as fixed.
        """
        a, b = scores[self.is_a], scores[~self.is_a]
        gap = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
        if min(len(a), len(b)) < 2 or self.raters.max() < 1:
            return Estimate(gap, math.nan, math.nan)
        centred = np.where(self.is_a, scores - a.mean(), scores - b.mean())
        k_r, k_i = int(self.raters.max()) + 1, int(self.items.max()) + 1
        weights = np.where(self.is_a, 1 / len(a), -1 / len(b))
        if k_i < 2:
            variance = k_r / (k_r - 1) * _squares(self.raters, weights * centred)
            return Estimate(gap, math.sqrt(variance), k_r - 1)
        parts = self.parts(centred)
        rest = max(parts.rest, 0.0) * float(np.sum(weights**2))
        rest += max(parts.both, 0.0) * _squares(self._cells, weights)
        from_raters, from_items = (
            own * _squares(codes, weights * self._sign)
            + max(shared, 0.0) * _squares(codes, weights)
            for own, shared, codes in (
                (parts.rater_gap, parts.rater, self.raters),
                (parts.item_gap, parts.item, self.items),
            )
        )
        # What raters and texts add is no less than nought, though its estimate can be.
        variance = max(from_raters + from_items + rest, _LEAST * rest)
        df = satterthwaite(max(from_raters, -rest), max(from_items, -rest), rest, k_r, k_i)
        return Estimate(gap, math.sqrt(variance), max(df, float(min(k_r, k_i) - 1)))

    def parts(self, scores: Values) -> Parts:
        """The variances of the parts of (n,) scores; raters and texts must be two at least."""
        if self._pairs is None:
            return self._adjusted.parts(scores)
        of_a, of_b = self._pairs
        gaps = scores[of_a] - scores[of_b]
        rater, item, rest = variance_components(gaps, self.raters[of_a], self.items[of_a])
        found = [
            variance_components(scores[places], self.raters[places], self.items[places])
            for places in (of_a, of_b)
        ]
        own = np.array([rater / 4, item / 4, rest / 2])
        shared = np.mean(found, axis=0) - own
        return Parts(float(shared[0]), float(shared[1]), rater, item, rest / 2, float(shared[2]))

    @property
    def tells(self) -> bool:
        """Whether each of the parts can be told from the others, where ratings have no pairs."""
        expected = self._adjusted.expected
        scaled = expected / expected.max(axis=0, initial=_RANK)
        return bool(np.linalg.matrix_rank(scaled, tol=_TELLING) == len(expected))

    @cached_property
    def _cells(self) -> Codes:
        cells: Codes = self.raters * (self.items.max() + 1) + self.items
        return cells

    @cached_property
    def _pairs(self) -> tuple[Codes, Codes] | None:
        """Places of the ratings of a cell under either system; None where they are too few."""
        first_a, first_b = (
            dict(zip(self._cells[places][::-1], places[::-1], strict=True))
            for places in (np.flatnonzero(self.is_a), np.flatnonzero(~self.is_a))
        )
        cells = sorted(first_a.keys() & first_b.keys())
        if not cells or 2 * len(cells) < _MOSTLY_PAIRED * len(self.is_a):
            return None
        of_a, of_b = (np.array([at[cell] for cell in cells]) for at in (first_a, first_b))
        many = min(len(np.unique(codes[of_a])) for codes in (self.raters, self.items))
        return (of_a, of_b) if many > 1 else None

    @cached_property
    def _sign(self) -> Values:
        sign: Values = np.where(self.is_a, 0.5, -0.5)
        return sign

    @cached_property
    def _adjusted(self) -> _Adjusted:
        return _Adjusted.of(self.raters, self.items, self._sign)


@dataclass(frozen=True)
class _Adjusted:
    """Sums of squares of ratings adjusted for their systems' means, and for raters and texts.

    With M the adjustment, they are of (parts' indicators)' M (scores) over the ratings of each
    rater or text, for the four parts of `Parts` in turn, and (scores)' M (scores).

    Attributes:
        fixed: (n, f) indicators of raters and texts, the system's +-1/2, and 1.
        parts_of: (n, k) indicators of the four parts.
        solve: (f, f) inverse of fixed' fixed, raters and texts shrunk.
        left: (k, f) parts_of' fixed, times `solve`.
        counts: (k,) ratings of each rater or text.
        starts: where in k each of the four begins.
        expected: (5, 5) what each sum of squares holds of each part.
    """

    fixed: sparse.csr_array
    parts_of: sparse.csr_array
    solve: Values
    left: Values
    counts: Values
    starts: tuple[int, ...]
    expected: Values

    @classmethod
    def of(cls, raters: Codes, items: Codes, sign: Values) -> _Adjusted:
        """For a layout; `sign` is +-1/2, by the system."""
        who, what, one = _indicators(raters), _indicators(items), sparse.csr_array(sign[:, None])
        k_r, k_i, n = who.shape[1], what.shape[1], len(sign)
        fixed = sparse.hstack([who, what, one, np.ones((n, 1))], format="csr")
        parts_of = sparse.hstack([who, what, who * one, what * one], format="csr")
        shrunk = np.concatenate([np.full(k_r, _RATER_SHARE), np.full(k_i, _ITEM_SHARE), [0, 0]])
        squared = (fixed.T @ fixed).toarray()
        solve = np.linalg.inv(squared + np.diag(shrunk))
        across = (parts_of.T @ fixed).toarray()
        left = across @ solve
        rest = (parts_of.T @ parts_of).toarray() - left @ across.T
        twice = np.diag(rest) - np.sum((across - left @ squared) * left, axis=1)
        counts = np.tile(np.concatenate([np.bincount(raters), np.bincount(items)]), 2)
        starts = (0, k_r, k_r + k_i, 2 * k_r + k_i)
        by_part = np.add.reduceat(rest**2 / counts[:, None], starts, axis=0)
        expected = np.zeros((5, 5))
        expected[:4, :4] = np.add.reduceat(by_part, starts, axis=1)
        expected[:4, 4] = np.add.reduceat(twice / counts, starts)
        expected[4, :4] = np.add.reduceat(np.diag(rest), starts)
        expected[4, 4] = n - float(np.sum(solve * squared))
        return cls(fixed, parts_of, solve, left, counts, starts, expected)

    def parts(self, scores: Values) -> Parts:
        """The variances of the parts of (n,) scores."""
        sums = self.fixed.T @ scores
        squares = (self.parts_of.T @ scores - self.left @ sums) ** 2 / self.counts
        observed = np.append(
            np.add.reduceat(squares, self.starts), scores @ scores - sums @ self.solve @ sums
        )
        found, *_ = np.linalg.lstsq(self.expected, observed, rcond=_RANK)
        return Parts(*found.tolist())


def _indicators(codes: Codes) -> sparse.csr_array:
    n = len(codes)
    return sparse.csr_array((np.ones(n), (np.arange(n), codes)), shape=(n, int(codes.max()) + 1))


def _squares(codes: Codes, values: Values) -> float:
    """Sum of the squared sums of `values` by code."""
    return float(np.sum(np.bincount(codes, weights=values) ** 2))
