"""An analysis as rows for a table, and in words.

Every p-value stands beside an interval. What was not estimable is said so, and never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from listening_test.statistics import CONFIDENCE

Row = dict[str, Any]
_SMALLEST_P = 1e-4
_ALPHA = 1 - CONFIDENCE
# What a method's standard calls a mean score, where that is not MOS.
_MEANS = {"mushra": "mean", "dcr": "DMOS"}
_ANSWERS = {True: "yes", False: "not shown", None: "not measured"}


def means(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What has a mean, by its name in tables and figures: the systems, then the anchors."""
    return {
        **result["systems"],
        **{f"{name} (anchor)": values for name, values in result["anchors"].items()},
    }


def system_rows(result: Mapping[str, Any]) -> list[Row]:
    """The systems and anchors of an analysis as rows for a table; quartiles in a MUSHRA test.

    A mean is called what the method's standard calls it.
    """
    methods = result.get("methods") or []
    slider = methods == ["mushra"]
    mean = _MEANS.get(methods[0], "MOS") if len(methods) == 1 else "MOS"
    return [
        {
            "system": name,
            mean: round(values["mos"], 2),
            "95 % interval": span(values),
            "naive interval, for comparison": span({**values, "ci95": values["ci95_naive"]}),
            "ratings": values["n"],
            "raters": values["raters"],
            "texts": values["items"],
            **({"quartiles": " / ".join(f"{q:g}" for q in values["quartiles"])} if slider else {}),
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
            "p (Wilcoxon, Holm)": _p_cell(pair["p_holm"]),
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
            "prefer the first": pair["wins_a"],
            "prefer the second": pair["wins_b"],
            "ties": pair["ties"],
            "share of the first": rounded(pair["share_a"], 3),
            "95 % interval": _listed(pair["share_ci95"]),
            "naive interval, for comparison": _listed(pair["share_ci95_naive"]),
            "p (binomial, Holm)": _p_cell(pair["p_holm"]),
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
            "95 % interval": span(values),
        }
        for name, values in sorted(strengths.items(), key=lambda entry: -entry[1]["strength"])
    ]


def as_table(rows: list[Row]) -> pd.DataFrame:
    """Rows for a person's eye: what is None is an empty cell."""
    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), "")


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Sentences fit for a paper, one a pair: what the data show, and what they do not.

    A difference is shown where the interval leaves nought out, which speaks for other raters and
    other texts, and Holm's correction over all pairs leaves the Wilcoxon test below 5 %.
    """
    found = [_verdict(pair) for pair in result["pairs"] if pair["ci95"] is not None]
    found += [_preferred(p) for p in result.get("preferences", []) if p["share_a"] is not None]
    told = result.get("identification")
    return found + ([_identified(told)] if told else [])


def _verdict(pair: Mapping[str, Any]) -> str:
    low, high = pair["ci95"]
    p = pair["p_holm"]
    tested = "" if p is None else f"; Wilcoxon test, Holm's correction, p {p_text(p)}"
    found = (
        f"{pair['a']} minus {pair['b']}: {pair['difference']:+.2f} "
        f"(95 % interval {low:+.2f} to {high:+.2f}{tested})."
    )
    return f"{found} {_shown(pair)}{_against_margin(pair)}."


def _preferred(pair: Mapping[str, Any]) -> str:
    """AB: how often one system was preferred to the other."""
    a, b, n = pair["a"], pair["b"], pair["wins_a"] + pair["wins_b"]
    low, high = pair["share_ci95"] or pair["share_ci95_naive"]
    kind = "two-way clustered" if pair["share_ci95"] else "Clopper-Pearson, votes as independent"
    shown = "no preference is shown"
    if pair["share_ci95"] and pair["p_holm"] < _ALPHA and (low > 0.5 or high < 0.5):
        shown = f"{a if low > 0.5 else b} is preferred"
    return (
        f"{a} was preferred to {b} in {pair['wins_a']} of {n} untied votes ({pair['ties']} ties): "
        f"share {pair['share_a']:.2f} (95 % interval {low:.2f} to {high:.2f}, {kind}; exact "
        f"binomial test, Holm's correction, p {p_text(pair['p_holm'])}); {shown}."
    )


def _identified(told: Mapping[str, Any]) -> str:
    """ABX: how often X was told right."""
    low, high = told["share_ci95"] or told["share_ci95_naive"]
    kind = "two-way clustered" if told["share_ci95"] else "Clopper-Pearson, votes as independent"
    return (
        f"X was told right in {told['right']} of {told['n']} answers ({told['ties']} without a "
        f"choice left out): share {told['share']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        f"({kind}), guessing is 0.5; exact binomial test, p {p_text(told['p_binomial'])}."
    )


def is_shown(pair: Mapping[str, Any]) -> bool:
    """Whether interval and corrected test together show a difference."""
    if pair["ci95"] is None:
        return False
    low, high = pair["ci95"]
    return (low > 0 or high < 0) and (pair["p_holm"] is None or pair["p_holm"] < _ALPHA)


def _shown(pair: Mapping[str, Any]) -> str:
    a, b, p = pair["a"], pair["b"], pair["p_holm"]
    low, high = pair["ci95"]
    if is_shown(pair):
        return f"{a} is rated above {b}" if low > 0 else f"{b} is rated above {a}"
    if low > 0 or high < 0:
        return (
            "No difference is shown: the interval leaves nought out, but the test that is "
            "corrected over all pairs does not reach 5 %"
        )
    if p is not None and p < _ALPHA:
        return (
            "A difference is shown for these texts, but none for others: the interval, in which "
            "texts are random too, holds nought"
        )
    return "No difference is shown, which is no proof that there is none"


def _against_margin(pair: Mapping[str, Any]) -> str:
    """What the interval says of the margin of non-inferiority, to follow a sentence."""
    a, b, margin = pair["a"], pair["b"], pair["margin"]
    if margin is None:
        return ""
    if pair["equivalent"]:
        return (
            f"; within the margin of {margin:g} the two are equivalent (two one-sided tests, "
            f"p {p_text(pair['p_equivalent'])})"
        )
    if pair["non_inferior"]:
        return (
            f"; {a} is not worse than {b} by {margin:g} or more (non-inferiority, one-sided "
            f"p {p_text(pair['p_non_inferior'])})"
        )
    if pair["ci95"][1] < -margin and is_shown(pair):
        return f"; {a} is worse by more than the margin of {margin:g}"
    return f"; that {a} is not worse by {margin:g} or more is not shown"


def p_text(p: float) -> str:
    """A p-value to follow the letter p: `= 0.0312`, and never 0."""
    return f"< {_SMALLEST_P}" if p < _SMALLEST_P else f"= {p:.4f}"


def _p_cell(p: float | None) -> str | None:
    return None if p is None else p_text(p).removeprefix("= ")


def notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences on what else an analysis tells: agreement, order, exclusions, no spread."""
    found = []
    agreement = result.get("agreement") or {}
    if (alpha := rounded(agreement.get("krippendorff_alpha"), 2)) is not None:
        alpha += 0.0  # no minus nought
        found.append(f"Agreement: Krippendorff's alpha ({agreement['level']}) {alpha:.2f}.")
    if (r := agreement.get("mean_rater_correlation")) is not None:
        found.append(f"Raters against the mean of the others: mean correlation {r:.2f}.")
    if told := _too_few(result):
        found.append(told)
    if told := order_note(result):
        found.append(told)
    found += [
        f"Of {pair['a']} and {pair['b']} the clip heard second was rated "
        f"{pair['order_bias']['mean']:+.2f} against the first, whichever it was (95 % interval "
        f"{span(pair['order_bias'])})."
        for pair in result["pairs"]
        if pair.get("order_bias")
    ]
    if bias := result.get("null_pair_bias"):
        found.append(
            f"Null pairs, the same sound twice, got {bias['mean']:+.2f} on the comparison scale "
            f"(95 % interval {span(bias)})."
        )
    found += [f"Not counted: {n} rows ({rule})." for rule, n in result["excluded"].items()]
    found += _model_notes(result)
    return found + ([note] if (note := spread_note(result)) else [])


def _too_few(result: Mapping[str, Any]) -> str:
    """That so few raters cannot show a difference, however large; empty where they can."""
    tested = [pair for pair in result["pairs"] if pair["p_holm"] is not None]
    raters = result["raters"]
    least = 2.0 ** (1 - raters)  # all raters' differences of one sign
    if not tested or least * len(tested) < _ALPHA:
        return ""
    corrected = min(1.0, least * len(tested))
    pairs = f", after Holm's correction over {len(tested)} pairs below {corrected:.4f}"
    return (
        f"With {raters} raters the Wilcoxon test cannot fall below {least:.4f}"
        f"{pairs if len(tested) > 1 else ''}: no difference can be shown, however large. More "
        "raters are needed."
    )


def order_note(result: Mapping[str, Any]) -> str:
    """How scores moved over a session; empty where that was not estimable."""
    order = (result.get("agreement") or {}).get("order_effect")
    if not order or order["ci95"] is None:
        return ""
    low, high = order["ci95"]
    drift = "no drift is shown"
    if not low <= 0 <= high:
        drift = "they drift, which a balanced order keeps out of the differences"
    return (
        f"From the first to the last trial scores moved by {order['mean']:+.2f} (95 % interval "
        f"{span(order)}): {drift}."
    )


def _model_notes(result: Mapping[str, Any]) -> list[str]:
    """The mixed model's differences, which should agree with the others, or why there are none."""
    if why := result.get("mixed_model_note"):
        return [f"The mixed model, a check on the differences, was not fitted: {why}."]
    model = result.get("mixed_model")
    if model is None:
        return []
    gaps = [
        f"{name} minus {model['reference']} {gap['difference']:+.2f} "
        f"({gap['ci95'][0]:+.2f} to {gap['ci95'][1]:+.2f})"
        for name, gap in model["differences"].items()
        if gap["difference"] is not None and gap["ci95"] is not None
    ]
    doubt = "; one of its variances is nearly nought" if model["boundary"] else ""
    if not model["converged"]:
        doubt = "; its fit did not converge, so do not lean on it"
    if not gaps:
        return [f"As a check, a mixed model (rater and text random): no interval{doubt}."]
    return [
        "As a check, a mixed model (rater and text random) with 95 % intervals: "
        f"{', '.join(gaps)}{doubt}."
    ]


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
