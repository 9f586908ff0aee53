"""Each rater by themselves, and each part of the session: what two of the figures are drawn from.

Knows ratings that count and their analysis; draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from listening_test.comparison_rating import signed
from listening_test.preference import votes_of
from listening_test.statistics import Estimate, naive_mean
from listening_test.tables import means

# Parts of a session, at most: more would hold too few ratings each.
_PARTS = 8


@dataclass(frozen=True)
class RaterValues:
    """What each rater alone says.

    Attributes:
        axis: what the values are.
        values: of every rater, by the name of the system or pair they are about.
        centre: where a rater who tells nothing apart stands; None on a scale without such a place.
    """

    axis: str
    values: Mapping[str, list[float]]
    centre: float | None = None


def rater_values(used: pd.DataFrame, result: Mapping[str, Any]) -> RaterValues | None:
    """Each rater's mean of a system, difference of a pair or share of choices; None without any."""
    if result["systems"]:
        by_rater = used.groupby(["system", "rater_id"])["score"].mean()
        named = zip((*result["systems"], *result["anchors"]), means(result), strict=True)
        return RaterValues(
            "each rater's mean score", {name: by_rater[system].tolist() for system, name in named}
        )
    if result["pairs"]:
        gaps = {
            f"{p['a']} − {p['b']}": signed(used, p["a"], p["b"]).groupby("rater_id")["gap"].mean()
            for p in result["pairs"]
        }
        found = {name: own.tolist() for name, own in gaps.items()}
        return RaterValues("each rater's mean comparison", found, 0.0)
    shares = {}
    for p in result.get("preferences", []):
        votes = votes_of(used, p["a"], p["b"])
        votes = votes[votes["choice"] != "tie"]
        won = (votes["winner"] == p["a"]).groupby(votes["rater_id"]).mean()
        if len(won):
            shares[f"{p['a']} over {p['b']}"] = won.tolist()
    return RaterValues("each rater's share of choices", shares, 0.5) if shares else None


def session_parts(used: pd.DataFrame) -> dict[str, Estimate]:
    """How scores move over a session: by the trials' numbers, the mean of what is left of them.

    Left is what a score is above its stimulus's mean and its rater's mean of the same. Raters are
    the units of the interval. Empty without `trial_index`, or with one place only.
    """
    if "trial_index" not in used or not used["score"].notna().any():
        return {}
    place = pd.to_numeric(used["trial_index"], errors="coerce")
    rows = used.assign(place=place).dropna(subset=["place", "score"])
    if rows["place"].nunique() < 2:
        return {}
    left = rows["score"] - rows.groupby("stimulus_id")["score"].transform("mean")
    rows = rows.assign(left=left - left.groupby(rows["rater_id"]).transform("mean"))
    first, last = int(rows["place"].min()), int(rows["place"].max())
    edges = np.linspace(first, last + 1, min(_PARTS, last + 1 - first) + 1)
    part = np.searchsorted(edges, rows["place"], side="right") - 1
    found = {}
    for number, own in rows.groupby(part):
        low, high = int(own["place"].min()), int(own["place"].max())
        by_rater = own.groupby("rater_id")["left"].mean().to_numpy(dtype=float)
        assert isinstance(number, int | np.integer)
        found[str(low) if low == high else f"{low} to {high}"] = naive_mean(by_rater)
    return found
