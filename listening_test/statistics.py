"""From ratings to evidence: means with honest intervals, differences, tests, non-inferiority.

Ratings are crossed: each rater scores many texts and each text is scored by many raters, so
votes are not independent and the plain t interval is far too narrow (about 65 % coverage for a
nominal 95 %). Here the variance of a mean is the sum of a rater part, a text part and a
rest, estimated by the analysis of variance for unbalanced crossed random effects (Henderson's
method I, Biometrics 9, 1953; Searle, Casella & McCulloch, Variance Components, 1992, ch. 5), with
Satterthwaite's degrees of freedom as the small-sample correction. A system's difference is taken
within rater and text, where possible.

Pure functions of a data frame; files are read in `analyse.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

Values = npt.NDArray[np.float64]

# Kinds of trial whose scores speak for a system. A null pair is the same sound under two
# systems: leaving it out would overstate their difference.
SCORED_TRIALS = ("rating", "null_pair")
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

    def p_above(self, bound: float) -> float | None:
        """One-sided p of the hypothesis that the mean is at most `bound`."""
        if not self._testable:
            return None
        return float(stats.t.sf((self.mean - bound) / self.se, self.df))


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
    rater, item, rest = _components(values - mean, r_codes, i_codes, n_r, n_i)
    from_raters = rater * float(np.sum((n_r / n) ** 2))
    from_items = item * float(np.sum((n_i / n) ** 2))
    from_rest = rest / n
    variance = from_raters + from_items + from_rest
    df = _satterthwaite(from_raters, from_items, from_rest, len(n_r), len(n_i))
    return Estimate(mean, math.sqrt(variance), df)


def _components(
    values: Values,
    r_codes: npt.NDArray[np.int64],
    i_codes: npt.NDArray[np.int64],
    n_r: npt.NDArray[np.int64],
    n_i: npt.NDArray[np.int64],
) -> tuple[float, float, float]:
    """Variance components (rater, item, rest) by Henderson's method I, negatives set to 0.

    Sums of squares between raters, between items and in total are equated to what they are
    expected to be; for a complete table this is the textbook two-way analysis of variance.
    """
    n, total = len(values), float(np.sum(values))
    cells = pd.Series(1.0, index=range(n)).groupby([r_codes, i_codes]).sum()
    cell_r = n_r[cells.index.get_level_values(0)]
    cell_i = n_i[cells.index.get_level_values(1)]
    squares = cells.to_numpy() ** 2
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
    rater, item, rest = np.maximum(solution, 0.0)
    return float(rater), float(item), float(rest)


def _satterthwaite(r: float, i: float, e: float, raters: int, items: int) -> float:
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


def difference(frame: pd.DataFrame, a: str, b: str) -> Estimate:
    """MOS(a) - MOS(b), with the standard error of paired ratings where they are paired.

    If every rater heard each text under both systems, the differences within (rater, text) are
    analysed as `crossed_mean` does. If some ratings lack their partner, the error comes from
    residuals summed by rater, by text and by cell (Cameron, Gelbach & Miller 2011), which needs
    no pairs.
    """
    both = frame[frame["system"].isin([a, b])]
    cells = both.groupby(["rater_id", "item_id", "system"])["score"].agg(["mean", "size"])
    table = cells["mean"].unstack("system")
    if not table.isna().any(axis=None) and (cells["size"] == 1).all():
        ids = table.index
        gaps = (table[a] - table[b]).to_numpy(dtype=float)
        return crossed_mean(gaps, ids.get_level_values(0), ids.get_level_values(1))
    return _unpaired_difference(both, a, b)


def _unpaired_difference(both: pd.DataFrame, a: str, b: str) -> Estimate:
    scores = both["score"].to_numpy(dtype=float)
    is_a = (both["system"] == a).to_numpy()
    gap = float(scores[is_a].mean() - scores[~is_a].mean())
    influence = np.where(
        is_a,
        (scores - scores[is_a].mean()) / is_a.sum(),
        -(scores - scores[~is_a].mean()) / (~is_a).sum(),
    )
    raters = pd.factorize(both["rater_id"])[0]
    items = pd.factorize(both["item_id"])[0]
    # Two ratings a system and two raters at least, or residuals are zero for want of data.
    if min(is_a.sum(), (~is_a).sum()) < 2 or raters.max() < 1:
        return Estimate(gap, math.nan, math.nan)
    by_rater = _cluster_variance(influence, raters)
    if items.max() < 1:
        return Estimate(gap, math.sqrt(by_rater), float(raters.max()))
    by_item = _cluster_variance(influence, items)
    cells = both.groupby(["rater_id", "item_id"]).ngroup().to_numpy()
    by_cell = float(np.sum(np.bincount(cells, weights=influence) ** 2))
    # The difference of estimates can fall below its parts by chance; the truth cannot.
    variance = max(by_rater + by_item - by_cell, by_rater, by_item)
    return Estimate(gap, math.sqrt(variance), float(min(raters.max(), items.max())))


def _cluster_variance(influence: Values, codes: npt.NDArray[np.int64]) -> float:
    k = int(codes.max()) + 1
    return k / (k - 1) * float(np.sum(np.bincount(codes, weights=influence) ** 2))


def wilcoxon_over_raters(frame: pd.DataFrame, a: str, b: str) -> float | None:
    """Two-sided Wilcoxon signed-rank p over the raters' mean differences; None below 2 raters.

    Raters who heard only one of the two systems cannot count. No difference at all gives 1.
    """
    means = frame.pivot_table(index="rater_id", columns="system", values="score", aggfunc="mean")
    gaps = (means[a] - means[b]).dropna().to_numpy()
    # Means of integers: differences that are equal on paper must be tied in floating point too.
    gaps = np.round(gaps, 9)
    if len(gaps) < 2:
        return None
    if not gaps.any():
        return 1.0
    return float(stats.wilcoxon(gaps).pvalue)


def analyse(
    frame: pd.DataFrame, margin: float | None = None, order: list[str] | None = None
) -> dict[str, Any]:
    """Everything the contract asks of ratings, as plain JSON values (None = not estimable).

    Args:
        frame: the columns rater_id, item_id, system, score, trial_type, status; one row a rating.
        margin: non-inferiority margin in MOS; None leaves those answers null.
        order: systems, the reference first; a pair's `b` is the earlier one. Alphabetical, with
            the pair (a, b) in that order, where it is not known.
    """
    scored, excluded = _exclude(frame)
    names = sorted(scored["system"].unique())
    if order:
        names.sort(key=lambda name: order.index(name) if name in order else len(order))
    result: dict[str, Any] = {
        "systems": {name: _system(scored[scored["system"] == name]) for name in names},
        "pairs": _pairs(scored, names, margin, reference_first=bool(order)),
        "excluded": excluded,
        "margin": margin,
        "confidence": CONFIDENCE,
        "interval": "two-way crossed random effects (rater, item), Satterthwaite t",
        "n": len(scored),
        "raters": int(scored["rater_id"].nunique()),
        "items": int(scored["item_id"].nunique()),
        "null_pair_gap": _null_pair_gap(scored),
    }
    return result


def _exclude(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Ratings that count, and how many rows each rule took out (a row falls to one rule)."""
    reason = pd.Series("", index=frame.index, dtype=object)
    other = ~frame["trial_type"].isin(SCORED_TRIALS)
    reason[other] = "trial_type: " + frame.loc[other, "trial_type"].astype(str)
    out = (frame["status"] != "use") & ~other
    why = frame["status"].astype(str)
    if "status_reason" in frame:
        given = frame["status_reason"].notna() & (frame["status_reason"] != "")
        why = why.where(~given, frame["status_reason"].astype(str))
    reason[out] = why[out]
    missing = (reason == "") & frame["score"].isna()
    reason[missing] = "no score"
    counts = reason[reason != ""].value_counts().sort_index()
    return frame[reason == ""], {str(rule): int(n) for rule, n in counts.items()}


def _system(rows: pd.DataFrame) -> dict[str, Any]:
    scores = rows["score"].to_numpy(dtype=float)
    estimate = crossed_mean(scores, rows["rater_id"], rows["item_id"])
    return {
        "mos": estimate.mean,
        "ci95": _listed(estimate.interval()),
        "no_spread": estimate.no_spread,
        "ci95_naive": _listed(naive_mean(scores).interval()),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "n": len(scores),
        "raters": int(rows["rater_id"].nunique()),
        "items": int(rows["item_id"].nunique()),
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _pairs(
    scored: pd.DataFrame, names: list[str], margin: float | None, reference_first: bool
) -> list[dict[str, Any]]:
    pairs = []
    for first, second in combinations(names, 2):
        a, b = (second, first) if reference_first else (first, second)
        estimate = difference(scored, a, b)
        interval = estimate.interval()
        equivalence = estimate.interval(2 * CONFIDENCE - 1)
        pairs.append(
            {
                "a": a,
                "b": b,
                "difference": estimate.mean,
                "ci95": _listed(interval),
                "no_spread": estimate.no_spread,
                "p_wilcoxon": wilcoxon_over_raters(scored, a, b),
                "p_holm": None,
                "margin": margin,
                "non_inferior": _beyond(interval, margin, 0),
                "p_non_inferior": None if margin is None else estimate.p_above(-margin),
                "b_non_inferior": _beyond(interval, margin, 1),
                "equivalent": None
                if margin is None or equivalence is None
                else bool(-margin < equivalence[0] and equivalence[1] < margin),
            }
        )
    tested = [pair for pair in pairs if pair["p_wilcoxon"] is not None]
    if tested:
        adjusted = multipletests([pair["p_wilcoxon"] for pair in tested], method="holm")[1]
        for pair, p in zip(tested, adjusted, strict=True):
            pair["p_holm"] = float(p)
    return pairs


def _beyond(interval: tuple[float, float] | None, margin: float | None, side: int) -> bool | None:
    """Whether a (side 0) or b (side 1) is non-inferior: its end of the interval is inside."""
    if interval is None or margin is None:
        return None
    return bool(interval[0] > -margin) if side == 0 else bool(interval[1] < margin)


def _null_pair_gap(scored: pd.DataFrame) -> float | None:
    """Mean absolute gap of one rater's scores of the same sound: the raters' own noise."""
    twins = scored[scored["trial_type"] == "null_pair"]
    grouped = twins.groupby(["rater_id", "item_id"])["score"]
    spans = (grouped.max() - grouped.min())[grouped.size() > 1]
    return float(spans.mean()) if len(spans) else None


def system_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The systems of an analysis as rows for a table."""
    return [
        {
            "system": name,
            "MOS": round(values["mos"], 2),
            "95 % interval": _span(values["ci95"], values["no_spread"]),
            "naive interval, for comparison": _span(values["ci95_naive"], values["no_spread"]),
            "ratings": values["n"],
            "raters": values["raters"],
            "texts": values["items"],
        }
        for name, values in result["systems"].items()
    ]


def pair_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of an analysis as rows for a table."""
    words = {True: "yes", False: "not shown", None: "not measured"}
    return [
        {
            "pair": f"{pair['a']} - {pair['b']}",
            "difference": round(pair["difference"], 2),
            "95 % interval": _span(pair["ci95"], pair["no_spread"]),
            "p (Wilcoxon, Holm)": None if pair["p_holm"] is None else round(pair["p_holm"], 4),
            f"{pair['a']} non-inferior": words[pair["non_inferior"]],
            "equivalent": words[pair["equivalent"]],
        }
        for pair in result["pairs"]
    ]


def spread_note(result: dict[str, Any]) -> str:
    """What “no spread” in the tables of an analysis means; empty where none is printed."""
    parts = [*result["systems"].values(), *result["pairs"]]
    if not any(part["no_spread"] for part in parts):
        return ""
    return (
        "no spread: the scores, or the differences, are all the same, so that nothing tells how "
        "sure their mean is; there is no interval and no verdict until there are more ratings."
    )


def _span(interval: list[float] | None, no_spread: bool) -> str:
    if interval is None:
        return "none: no spread" if no_spread else "not measured"
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
