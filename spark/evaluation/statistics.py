"""Shares, word error rates and means with their intervals, alone and paired over items.

Wilson's interval for a share, Newcombe's paired score interval for the difference of two, the
percentile bootstrap over items (2,000 draws, fixed seed) for the rest. p-values are of the paired
bootstrap over items: twice the smaller share of draws on either side of nought. What was not
measured is None. Knows lines only, no model and no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

Line = dict[str, Any]
_DRAWS = 2000


def share(lines: Sequence[Line], field: str) -> dict[str, Any] | None:
    """A share of the lines where the field was measured, with its Wilson 95 % interval."""
    lines = [line for line in lines if line.get(field) is not None]
    if not lines:
        return None
    hits = sum(bool(line[field]) for line in lines)
    low, high = proportion_confint(hits, len(lines), method="wilson")
    return {"value": hits / len(lines), "ci95": [float(low), float(high)], "n": len(lines)}


def mean(lines: Sequence[Line], field: str) -> float | None:
    """Mean over the lines where the field was measured."""
    values = [line[field] for line in lines if line.get(field) is not None]
    return float(np.mean(values)) if values else None


def corpus_wer(lines: Sequence[Line], edits: str = "edits", words: str = "words") -> Any:
    """All edits over all reference words, with a bootstrap interval over items."""
    lines = [line for line in lines if line[edits] is not None]
    if not lines or not sum(line[words] for line in lines):
        return None
    e, w = _column(lines, edits), _column(lines, words)
    index = _draws(len(lines))
    above = sum(1 for a, b in zip(e, w, strict=True) if b and a / b > 0.5)
    spread = _interval(_rate(e[index], w[index]))
    return {
        "value": float(_rate(e, w)), "ci95": spread, "n": len(lines),
        "above_half": above / len(lines),
    }  # fmt: skip


def paired_mean(lines: Sequence[Line], base: Sequence[Line], field: str) -> dict[str, Any] | None:
    """Mean of `field` minus the base's over the items where both were measured."""
    pairs = [
        (float(line[field]), float(other[field]))
        for line, other in _pairs(lines, base)
        if line.get(field) is not None and other.get(field) is not None
    ]
    if not pairs:
        return None
    gaps = np.array([ours - theirs for ours, theirs in pairs])
    drawn = gaps[_draws(len(gaps))].mean(1)
    return _gap(float(gaps.mean()), _interval(drawn), len(gaps), drawn)


def paired_wer(lines: Sequence[Line], base: Sequence[Line]) -> dict[str, Any] | None:
    """Difference of two corpus word error rates over the same items, resampled together.

    An item whose reply has no words adds no reference words, but its edits count.
    """
    lines = [line for line in lines if line["edits"] is not None]
    pairs = _pairs(lines, [line for line in base if line["edits"] is not None])
    ours, theirs = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
    e, w = _column(ours, "edits"), _column(ours, "words")
    e_base, w_base = _column(theirs, "edits"), _column(theirs, "words")
    if not w.sum() or not w_base.sum():
        return None
    index = _draws(len(pairs))
    spread = _rate(e[index], w[index]) - _rate(e_base[index], w_base[index])
    value = float(_rate(e, w) - _rate(e_base, w_base))
    return _gap(value, _interval(spread), len(pairs), spread)


def paired_share(lines: Sequence[Line], base: Sequence[Line], field: str) -> dict[str, Any] | None:
    """Difference of two shares over the same items, with Newcombe's interval."""
    pairs = [
        (bool(line[field]), bool(other[field]))
        for line, other in _pairs(lines, base)
        if line.get(field) is not None and other.get(field) is not None
    ]
    if not pairs:
        return None
    cells = [pairs.count(cell) for cell in ((True, True), (True, False), (False, True))]
    both, ours, theirs = cells
    value = (ours - theirs) / len(pairs)
    gaps = np.array([float(a) - float(b) for a, b in pairs])
    interval = newcombe(both, ours, theirs, len(pairs))
    return _gap(value, interval, len(pairs), gaps[_draws(len(gaps))].mean(1))


def mean_of_sets(sets: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Mean over sets of each set's mean; items are drawn anew within each set.

    Args:
        sets: values by item, by the set's name; sets without values are left out.
    """
    filled = [np.array(values, float) for values in sets.values() if len(values)]
    if not filled:
        return None
    value = float(np.mean([values.mean() for values in filled]))
    return {"value": value, "ci95": _interval(_drawn(filled)), "n": sum(map(len, filled))}


def paired_sets(
    lines: Sequence[Line], base: Sequence[Line], points: Callable[[Line], float | None]
) -> dict[str, Any] | None:
    """Mean over sets of the mean difference in points on the same items of a set."""
    gaps: dict[str, list[float]] = {}
    for line, other in _pairs(lines, base):
        ours, theirs = points(line), points(other)
        if ours is not None and theirs is not None:
            gaps.setdefault(line["family"], []).append(ours - theirs)
    found = mean_of_sets(gaps)
    if found is None:
        return None
    drawn = _drawn([np.array(values) for values in gaps.values()])
    return _gap(found["value"], found["ci95"], found["n"], drawn)


def _drawn(sets: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Draws of the mean over sets; each set has draws of its own."""
    means = [values[_draws(len(values), number)].mean(1) for number, values in enumerate(sets)]
    return np.asarray(np.mean(means, axis=0))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of one family of comparisons, corrected by Holm's method, in their order."""
    if not values:
        return []
    return [float(p) for p in multipletests(list(values), method="holm")[1]]


def _gap(value: float, interval: list[float], n: int, drawn: NDArray[np.float64]) -> dict[str, Any]:
    """A difference with its interval and its p-value.

    One is added to both counts: with 2,000 draws nothing smaller than 0.001 can be told.
    """
    sides = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    return {"value": value, "ci95": interval, "n": n, "p": min(1.0, 2 * sides / (len(drawn) + 1))}


def newcombe(both: int, first: int, second: int, n: int) -> list[float]:
    """95 % interval of the difference of two shares of the same items.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635: each share's Wilson interval,
    joined with their correlation. Unlike a bootstrap or the usual normal interval it keeps a
    width where no item tells the two apart. statsmodels and scipy have it for independent shares
    only.

    Args:
        both: items that both have.
        first: items that only the first has.
        second: items that only the second has.
        n: all items.
    """
    neither = n - both - first - second
    have, have_base = both + first, both + second
    p, p_base = have / n, have_base / n
    low, high = proportion_confint(have, n, method="wilson")
    low_base, high_base = proportion_confint(have_base, n, method="wilson")
    product = float(both * neither - first * second)
    if product > 0:  # a continuity correction, for positive correlation only
        product = max(product - n / 2, 0.0)
    scale = sqrt(have * (n - have) * have_base * (n - have_base))
    phi = product / scale if scale else 0.0

    def width(a: float, b: float) -> float:
        return sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    below, above = width(p - low, high_base - p_base), width(high - p, p_base - low_base)
    return [float(p - p_base - below), float(p - p_base + above)]


def _pairs(lines: Sequence[Line], base: Sequence[Line]) -> list[tuple[Line, Line]]:
    theirs = {line["item_id"]: line for line in base}
    return [(line, theirs[line["item_id"]]) for line in lines if line["item_id"] in theirs]


def _column(lines: Sequence[Line], field: str) -> NDArray[np.float64]:
    return np.array([line[field] for line in lines], float)


def _rate(edits: NDArray[np.float64], words: NDArray[np.float64]) -> Any:
    """Edits over words along the last axis; a draw without any word counts as one word."""
    return edits.sum(-1) / np.maximum(words.sum(-1), 1)


def _draws(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Items of each draw; sets that are drawn apart have a seed each."""
    return np.random.default_rng(seed).integers(n, size=(_DRAWS, n))


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]
