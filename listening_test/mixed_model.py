"""A mixed model of the same ratings, as a check on the intervals of `statistics.py`.

Score = system + rater + text + rest, raters and texts crossed and random, fitted by statsmodels
(REML). It knows nothing of rater-by-system or text-by-system parts, so its differences are somewhat
too sure; means and order should agree. It is slow: tests with many ratings are left out.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.tools.sm_exceptions import ConvergenceWarning

# Seconds grow with the square of the ratings: about 4 s at 1,800.
MOST_RATINGS = 2000


class NotFitted(ValueError):
    """The model says nothing here; the message says why, as part of a sentence."""


def mixed_model(frame: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """Differences to the first of `names` by the mixed model, with 95 % Wald intervals.

    Raises:
        NotFitted: a single system, fewer than two raters or texts, scores that never differ, more
            than MOST_RATINGS ratings, or a fit that broke down.
    """
    if min(len(names), frame["rater_id"].nunique(), frame["item_id"].nunique()) < 2:
        raise NotFitted("it needs two systems, two raters and two texts")
    if frame["score"].nunique() < 2:
        raise NotFitted("all scores are the same")
    if len(frame) > MOST_RATINGS:
        raise NotFitted(f"it would take too long with more than {MOST_RATINGS:,} ratings")
    columns = ["score", "system", "rater_id", "item_id"]
    rows = pd.DataFrame({name: frame[name].to_numpy() for name in columns})
    rows["system"] = pd.Categorical(rows["system"], names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fitted = MixedLM.from_formula(
                "score ~ C(system)",
                rows,
                groups=np.ones(len(rows)),
                vc_formula={"rater": "0 + C(rater_id)", "item": "0 + C(item_id)"},
            ).fit(reml=True)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise NotFitted(f"its fit broke down ({error})") from None
    spans = fitted.conf_int()
    # A search that failed at first and was told again with another method has converged; a variance
    # of nearly nought is no failure.
    edge = any("boundary" in str(w.message) for w in caught if w.category is ConvergenceWarning)
    return {
        "reference": names[0],
        "converged": bool(fitted.converged),
        "boundary": edge,
        "differences": {
            name: {
                "difference": _number(fitted.params[f"C(system)[T.{name}]"]),
                "ci95": _interval(spans.loc[f"C(system)[T.{name}]"]),
            }
            for name in names[1:]
        },
        "sd": {
            "rater": _number(fitted.vcomp[list(fitted.model.exog_vc.names).index("rater")] ** 0.5),
            "item": _number(fitted.vcomp[list(fitted.model.exog_vc.names).index("item")] ** 0.5),
            "rest": _number(fitted.scale**0.5),
        },
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(span: pd.Series) -> list[float] | None:
    low, high = (float(value) for value in span)
    return [low, high] if np.isfinite([low, high]).all() else None
