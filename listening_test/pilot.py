"""The spreads of a score's parts, estimated from a pilot's ratings.

Variance components of each system's scores and of each pair's paired differences (Henderson's
method I): what is in a difference is the system's own, the remainder is common to all. Where each
text was heard once by a rater, differences are taken apart as `differences.py` does. Estimates
are averaged over systems and pairs before negative ones are set to 0, so that chance does not add
up. Knows ratings; reads no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from listening_test.analysis import FIRST_DIMENSIONS
from listening_test.differences import Layout
from listening_test.methods import CHOICE_METHODS
from listening_test.simulation import Spreads
from listening_test.statistics import variance_components

# With fewer the spread of raters, or of texts, is a guess.
_FEWEST = 3


class NoPilot(ValueError):
    """The ratings tell too little to plan with; the message says what is needed."""


@dataclass(frozen=True)
class Pilot:
    """What a pilot tells.

    Attributes:
        spreads: of observed scores.
        systems, raters, texts, ratings: how much it rests on.
        rater_factor, text_factor: how far, with 95 % confidence, the true spread of raters' (and
            of texts') means can lie above the estimate, as a factor; from the chi-square
            distribution of a variance.
    """

    spreads: Spreads
    systems: int
    raters: int
    texts: int
    ratings: int
    rater_factor: float
    text_factor: float


def pilot_spreads(
    scored: pd.DataFrame, reference: str | None = None, anchors: Sequence[str] = ()
) -> Pilot:
    """Estimate the spreads from ratings that count.

    Args:
        scored: rater_id, item_id, system, score, as `analysis.counted` gives them.
        reference: left out of a MUSHRA test, where it is at the scale's end.
        anchors: left out of all.

    Raises:
        NoPilot: no two systems were scored by the same raters and on the same texts, or by too few.
    """
    table = _table(scored[~scored["system"].isin(anchors)], reference)
    pairs = [table[list(pair)] for pair in combinations(table.columns, 2)]
    gaps = [(pair.iloc[:, 0] - pair.iloc[:, 1]).dropna() for pair in pairs]
    own = _mean([(len(gap), _components(gap)) for gap in gaps]) / 2
    if not np.isfinite(own).all():  # `same_text: once`: no rater heard a text under both
        own = _mean([(int(pair.count().sum()), _apart(pair)) for pair in pairs]) / 2
    singles = [table[name].dropna() for name in table.columns]
    single = _mean([(len(part), _components(part)) for part in singles])
    raters, texts = (table.index.get_level_values(level).nunique() for level in (0, 1))
    if not np.isfinite([*own, *single]).all():
        raise NoPilot(
            f"The pilot must have two systems that the same raters ({_FEWEST} or more) scored on "
            f"the same texts ({_FEWEST} or more); it has {len(table.columns)} systems, {raters} "
            f"raters and {texts} texts. Rate more, or plan without --pilot."
        )
    common = single - own
    rater, item, rater_item, rater_system, item_system, rest = (
        math.sqrt(max(variance, 0.0)) for variance in (*common, *own)
    )
    return Pilot(
        Spreads(rater, item, rater_system, item_system, rest, rater_item),
        len(table.columns), raters, texts, int(table.notna().sum().sum()),
        _factor(raters), _factor(texts),
    )  # fmt: skip


def _table(scored: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Scores by (rater, text) and system; of several questions the overall one."""
    if "method" in scored:
        scored = scored[~scored["method"].isin(("ccr", *CHOICE_METHODS))]
        if (scored["method"] == "mushra").any():
            scored = scored[scored["system"] != reference]
    if scored.empty:
        raise NoPilot(
            "The pilot has no scores of single systems: comparisons and choices do not tell how "
            "scores spread. Give the ratings of an ACR, DCR, P.835 or MUSHRA test."
        )
    if "dimension" in scored and scored["dimension"].nunique() > 1:
        known = sorted(set(scored["dimension"]), key=lambda d: (d not in FIRST_DIMENSIONS, d))
        scored = scored[scored["dimension"] == known[0]]
    return scored.pivot_table(
        index=["rater_id", "item_id"], columns="system", values="score", aggfunc="mean"
    )


def _mean(found: list[tuple[int, tuple[float, float, float] | None]]) -> np.ndarray:
    """Variances (rater, text, rest), each counting by its ratings; nan where none tells."""
    known = [(n, np.array(components)) for n, components in found if components is not None]
    if not known:
        return np.full(3, math.nan)
    mean: np.ndarray = np.average(
        [components for _, components in known], axis=0, weights=[n for n, _ in known]
    )
    return mean


def _components(part: pd.Series) -> tuple[float, float, float] | None:
    raters, items = (part.index.get_level_values(level) for level in (0, 1))
    if min(raters.nunique(), items.nunique()) < _FEWEST:
        return None
    return variance_components(part.to_numpy(dtype=float), raters, items)


def _apart(pair: pd.DataFrame) -> tuple[float, float, float] | None:
    """Of the differences of two systems that raters scored on different texts."""
    scores = pair.melt(ignore_index=False, var_name="system", value_name="score").dropna()
    raters, items = (scores.index.get_level_values(level) for level in (0, 1))
    heard = scores["system"] == pair.columns[0]
    for ids in (raters, items):  # who, or what, was heard under both
        if (heard.groupby(np.asarray(ids)).nunique() > 1).sum() < _FEWEST:
            return None
    layout = Layout.of(raters, items, heard)
    if not layout.tells:
        return None
    centred = scores["score"] - scores.groupby("system")["score"].transform("mean")
    parts = layout.parts(centred.to_numpy(dtype=float))
    return parts.rater_gap, parts.item_gap, 2 * parts.rest


def _factor(units: int) -> float:
    return (
        math.sqrt((units - 1) / float(stats.chi2.ppf(0.05, units - 1))) if units > 1 else math.inf
    )


def told(pilot: Pilot) -> Iterator[str]:
    """What a person should know of the pilot, as sentences."""
    spreads = pilot.spreads
    yield (
        f"from a pilot of {pilot.raters} raters, {pilot.texts} texts and {pilot.systems} systems "
        f"({pilot.ratings} scores): SD rater {spreads.rater:.2f}, text {spreads.item:.2f}, rater x "
        f"text {spreads.rater_item:.2f}, rater x system {spreads.rater_system:.2f}, text x system "
        f"{spreads.item_system:.2f}, rest {spreads.rest:.2f}"
    )
    yield (
        f"so small a pilot knows the raters' spread up to a factor of {pilot.rater_factor:.1f}, "
        f"the texts' up to {pilot.text_factor:.1f} (95 %): plan for more than these numbers"
    )
