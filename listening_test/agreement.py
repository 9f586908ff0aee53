"""How far raters agree, and whether the place in the session moved their scores.

Pure functions of ratings; which ratings count is decided before. Nothing here judges a system.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from listening_test.statistics import Estimate
from listening_test.study_parts import FEWEST_STIMULI

Level = Literal["nominal", "ordinal", "interval"]
Values = npt.NDArray[np.float64]
# Scores of one rater that differ less than this do not differ: no correlation is defined.
_NO_SPREAD = 1e-9


def krippendorff_alpha(
    units: npt.ArrayLike, raters: npt.ArrayLike, values: npt.ArrayLike, level: Level = "ordinal"
) -> float | None:
    """Krippendorff's alpha: 1 is perfect agreement, 0 what chance would give.

    Args:
        units, raters, values: (n,) what was rated, by whom, and the score. A rater's first score
            of a unit counts; units with a single rater tell nothing of agreement and are left out.
        level: `nominal` asks only whether two are the same, `ordinal` compares ranks, `interval`
            squared distances.

    Returns:
        None where fewer than two different scores can be compared.

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C.
    """
    table = pd.DataFrame({"unit": units, "rater": raters, "value": values}).dropna()
    table = table.drop_duplicates(["unit", "rater"])
    table = table[table.groupby("unit")["value"].transform("size") > 1]
    codes, levels = pd.factorize(table["value"], sort=True)
    if len(levels) < 2:
        return None
    counts = np.zeros((table["unit"].nunique(), len(levels)))
    np.add.at(counts, (pd.factorize(table["unit"])[0], codes), 1)
    per_unit = counts.sum(axis=1, keepdims=True)
    coincidences = (counts / (per_unit - 1)).T @ counts
    coincidences -= np.diag((counts / (per_unit - 1)).sum(axis=0))
    margins = coincidences.sum(axis=0)
    distance = _squared_distances(levels, margins, level)
    observed = float((coincidences * distance).sum())
    expected = float((np.outer(margins, margins) * distance).sum()) / (margins.sum() - 1)
    return float(1 - observed / expected)


def _squared_distances(levels: npt.ArrayLike, margins: Values, level: Level) -> Values:
    if level == "nominal":
        return 1 - np.eye(len(margins))
    if level == "interval":
        numbers = np.asarray(levels, dtype=float)
        return (numbers[:, None] - numbers[None, :]) ** 2
    # The distance of two ranks: the scores given between them, their own counted half.
    middle = np.cumsum(margins) - margins / 2
    squared: Values = (middle[:, None] - middle[None, :]) ** 2
    return squared


def rater_correlations(frame: pd.DataFrame) -> dict[str, float | None]:
    """Each rater's Pearson correlation with the mean of the others' scores of the same stimuli.

    Args:
        frame: rater_id, stimulus_id, score; one row a rating.

    None where a rater shares fewer than three stimuli with others, or never varies.
    """
    own = frame.groupby(["rater_id", "stimulus_id"])["score"].mean().rename("own").reset_index()
    by_stimulus = own.groupby("stimulus_id")["own"]
    n = by_stimulus.transform("size")
    own["others"] = (by_stimulus.transform("sum") - own["own"]) / (n - 1).where(n > 1)
    return {
        str(rater): _correlation(rows.dropna(subset=["others"]))
        for rater, rows in own.groupby("rater_id")
    }


def _correlation(rows: pd.DataFrame) -> float | None:
    spread = rows[["own", "others"]].std(ddof=0)
    if len(rows) < FEWEST_STIMULI or not (spread > _NO_SPREAD).all():
        return None
    return float(np.corrcoef(rows["own"], rows["others"])[0, 1])


def order_effect(frame: pd.DataFrame) -> Estimate | None:
    """Change of the score from the first to the last trial of a session, in points of the scale.

    Each score less its stimulus's mean and its rater's mean, against the place in the session from
    0 to 1: one slope for all raters by least squares, with the variance of Liang and Zeger (1986)
    clustered by rater. So a rater counts by the spread of their places: whoever quit after three
    trials tells little of a slope. None without `trial_index`, or with fewer than two raters whose
    places differ.
    """
    if "trial_index" not in frame:
        return None
    place = pd.to_numeric(frame["trial_index"], errors="coerce")
    rows = frame.assign(place=place).dropna(subset=["place"])
    if rows.empty:
        return None
    first, last = rows["place"].min(), rows["place"].max()
    if first == last:
        return None
    rest = rows["score"] - rows.groupby("stimulus_id")["score"].transform("mean")
    rows = rows.assign(place=(rows["place"] - first) / (last - first), rest=rest)
    center = rows.groupby("rater_id")["place"].transform("mean")
    place = rows["place"] - center
    spread = (place**2).groupby(rows["rater_id"]).sum()
    moved = (place * rows["rest"]).groupby(rows["rater_id"]).sum()
    raters = int((spread > 0).sum())
    if raters < 2:
        return None
    slope = float(moved.sum() / spread.sum())
    squares = float(((moved - slope * spread) ** 2).sum()) * raters / (raters - 1)
    return Estimate(slope, squares**0.5 / float(spread.sum()), raters - 1)


def choice_agreement(frame: pd.DataFrame) -> dict[str, Any]:
    """Alpha of choices: whether raters of the same text and pair preferred the same system.

    An answer is the pair's first system by name, its second, or a tie, whichever was heard first.

    Args:
        frame: rater_id, item_id, system, system_b, choice; one row a vote.
    """
    one, two = frame["system"].astype(str), frame["system_b"].astype(str)
    turned = one > two
    unit = frame["item_id"] + "\0" + one.where(~turned, two) + "\0" + two.where(~turned, one)
    other = frame["choice"].replace({"a": "b", "b": "a"})
    answer = frame["choice"].where(~turned, other)
    alpha = krippendorff_alpha(unit, frame["rater_id"], answer, "nominal")
    return {"krippendorff_alpha": alpha, "level": "nominal"}


def agreement(frame: pd.DataFrame, level: Level = "ordinal") -> dict[str, Any]:
    """All of the above as plain JSON values (None = not estimable)."""
    correlations = rater_correlations(frame)
    known = [r for r in correlations.values() if r is not None]
    order = order_effect(frame)
    return {
        "krippendorff_alpha": krippendorff_alpha(
            frame["stimulus_id"], frame["rater_id"], frame["score"], level
        ),
        "level": level,
        "mean_rater_correlation": float(np.mean(known)) if known else None,
        "rater_correlations": correlations,
        "order_effect": None if order is None else order.as_json(),
    }
