"""An analysis as rows for a table, and in words.

Every p-value stands beside an interval. What was not estimable is said so, and never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from listening_test.decisions import BY_HAND

Row = dict[str, Any]
_ANSWERS = {True: "yes", False: "not shown", None: "not measured"}


def means(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What has a mean, by its name in tables and figures: the systems, then the anchors."""
    return {
        **result["systems"],
        **{f"{name} (anchor)": values for name, values in result["anchors"].items()},
    }


def system_rows(result: Mapping[str, Any]) -> list[Row]:
    """The systems and anchors of an analysis as rows for a table."""
    return [
        {
            "system": name,
            "MOS": round(values["mos"], 2),
            "95 % interval": span(values),
            "naive interval, for comparison": span({**values, "ci95": values["ci95_naive"]}),
            "ratings": values["n"],
            "raters": values["raters"],
            "texts": values["items"],
        }
        for name, values in means(result).items()
    ]


def pair_rows(result: Mapping[str, Any]) -> list[Row]:
    """The differences of an analysis (MOS or CMOS) as rows for a table."""
    return [
        {
            "pair": f"{pair['a']} - {pair['b']}",
            "difference": round(pair["difference"], 2),
            "95 % interval": span(pair),
            # Never a p-value without an interval.
            "p (Wilcoxon, Holm)": rounded(pair["p_holm"], 4) if pair["ci95"] else None,
            "dz": rounded(pair["cohen_dz"], 2),
            "first non-inferior": _ANSWERS[pair["non_inferior"]],
            "equivalent": _ANSWERS[pair["equivalent"]],
        }
        for pair in result["pairs"]
    ]


def preference_rows(result: Mapping[str, Any]) -> list[Row]:
    """The preferences of an analysis as rows for a table."""
    return [
        {
            "pair": f"{pair['a']} or {pair['b']}",
            f"prefer {pair['a']}": pair["wins_a"],
            f"prefer {pair['b']}": pair["wins_b"],
            "ties": pair["ties"],
            "share": rounded(pair["share_a"], 3),
            "95 % interval": _listed(pair["share_ci95"]),
            "naive interval, for comparison": _listed(pair["share_ci95_naive"]),
            "p (binomial, Holm)": rounded(pair["p_holm"], 4),
            "first heard won": rounded(pair["first_share"], 3),
        }
        for pair in result.get("preferences", [])
    ]


def strength_rows(result: Mapping[str, Any]) -> list[Row]:
    """Bradley-Terry strengths as rows for a table, strongest first."""
    strengths = result.get("bradley_terry") or {}
    return [
        {
            "system": name,
            "strength (log-odds)": round(values["strength"], 2),
            "95 % interval": _listed(values["ci95"]),
        }
        for name, values in sorted(strengths.items(), key=lambda entry: -entry[1]["strength"])
    ]


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """One sentence a pair, fit for a paper: what the data show, and what they do not."""
    return [_verdict(pair) for pair in result["pairs"] if pair["ci95"] is not None]


def _verdict(pair: Mapping[str, Any]) -> str:
    a, b, margin = pair["a"], pair["b"], pair["margin"]
    low, high = pair["ci95"]
    found = f"{a} minus {b}: {pair['difference']:+.2f} (95 % interval {low:+.2f} to {high:+.2f})"
    if low > 0 or high < 0:
        better, worse = (a, b) if low > 0 else (b, a)
        text = f"{found}. {better} is rated above {worse}"
    else:
        text = f"{found}. No difference is shown, which is no proof that there is none"
    if margin is None:
        return f"{text}."
    if pair["equivalent"]:
        return f"{text}; within the margin of {margin:g} the two are equivalent."
    if pair["non_inferior"]:
        return f"{text}; {a} is not worse than {b} by {margin:g} or more."
    if high < -margin:
        return f"{text}; {a} is worse by more than the margin of {margin:g}."
    return f"{text}; that {a} is not worse by {margin:g} or more is not shown."


def notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences on what else an analysis tells: agreement, order, exclusions, no spread."""
    found = []
    agreement = result.get("agreement") or {}
    if (alpha := agreement.get("krippendorff_alpha")) is not None:
        found.append(f"Agreement: Krippendorff's alpha ({agreement['level']}) {alpha:.2f}.")
    if (r := agreement.get("mean_rater_correlation")) is not None:
        found.append(f"Raters against the mean of the others: mean correlation {r:.2f}.")
    order = agreement.get("order_effect")
    if order and order["ci95"] is not None:
        found.append(
            f"From the first to the last trial scores moved by {order['mean']:+.2f} "
            f"(95 % interval {span(order)})."
        )
    if bias := result.get("null_pair_bias"):
        found.append(
            f"Null pairs, the same sound twice, got {bias['mean']:+.2f} on the comparison scale "
            f"(95 % interval {span(bias)})."
        )
    found += [
        f"Excluded: {n} {rule if rule.startswith(BY_HAND) else f'by {rule}'}."
        for rule, n in result["excluded"].items()
    ]
    return found + ([note] if (note := spread_note(result)) else [])


def spread_note(result: Mapping[str, Any]) -> str:
    """What “no spread” in the tables of an analysis means; empty where none is printed."""
    parts = [*means(result).values(), *result["pairs"]]
    if not any(part["no_spread"] for part in parts):
        return ""
    return (
        "No spread: the scores, or the differences, are all the same, so that nothing tells how "
        "sure their mean is; there is no interval and no verdict until there are more ratings."
    )


def span(part: Mapping[str, Any]) -> str:
    """The interval of a part of an analysis as text, or why there is none."""
    if part["ci95"] is None:
        return "none: no spread" if part["no_spread"] else "not measured"
    return _listed(part["ci95"])


def _listed(interval: list[float] | None) -> str:
    return "not measured" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def rounded(value: float | None, digits: int) -> float | None:
    """Rounded for a table; None stays None."""
    return None if value is None else round(value, digits)
