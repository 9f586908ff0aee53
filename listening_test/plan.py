"""How many raters and texts: `python -m listening_test.plan --half-width 0.1 | --gap 0.2 [--json]`.

Tests of growing size are simulated with the spreads of the literature, or of a pilot's ratings
(`--pilot DIR`), and analysed with the very interval that `analyse` prints. The smallest number of
raters that reaches the wish is reported for several numbers of texts: with few texts no number of
raters is enough. `--same-text once` is for a study in which a rater hears each text under one
system only: two systems are simulated, and with more of them a rater needs as many more texts.
Plan for a margin of non-inferiority as for a gap of its size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from listening_test.analyse import RatingsError, load_incomplete, load_plan, load_ratings
from listening_test.analysis import counted
from listening_test.pilot import NoPilot, Pilot, pilot_spreads, told
from listening_test.power import (
    MOST_RATERS,
    RUNS,
    GapPlan,
    raters_for_gap,
    simulated_tests,
    texts_for,
)
from listening_test.simulation import Scores, Spreads
from listening_test.statistics import crossed_mean
from listening_test.study_parts import SameText

TEXTS = (8, 16, 32, 64, 128, 256)
_RUNS = 40
# What can be wished for on a scale from 1 to 5, and on one from 0 to 100.
_WIDEST = {True: 2.0, False: 50.0}
_NARROWEST = 0.02


class BadWish(ValueError):
    """An option that cannot be planned for; the message says what can."""


@dataclass(frozen=True)
class Plan:
    """One size of test. Half-widths of 95 % intervals, in MOS; None where it is out of reach."""

    texts: int
    texts_per_rater: int
    raters: int | None
    ratings_per_system: int | None
    half_width: float | None
    half_width_difference: float | None


def simulated_half_widths(
    raters: int, texts: int, per_rater: int, scores: Scores, runs: int, seed: int,
    once: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """Mean half-widths of a system's MOS and of a difference, over `runs` tests.

    Every rater hears `per_rater` of the texts (taken in turn) under both systems, or, `once`, each
    under one of them.
    """
    found = []
    for single, gap in simulated_tests(raters, texts, per_rater, scores, runs, seed, once):
        intervals = [crossed_mean(*single).interval(), gap.interval()]
        found.append([math.inf if i is None else (i[1] - i[0]) / 2 for i in intervals])
    mean = np.mean(found, axis=0)
    return float(mean[0]), float(mean[1])


def smallest(
    wanted: float, texts: int, most_texts_per_rater: int, scores: Scores, seed: int,
    once: bool = False,
) -> Plan:  # fmt: skip
    """The fewest raters whose mean half-width of a MOS is at most `wanted`, by bisection."""
    per_rater = texts_for(texts, most_texts_per_rater, once)

    def widths(raters: int) -> tuple[float, float]:
        return simulated_half_widths(raters, texts, per_rater, scores, _RUNS, seed, once)

    low, high = 1, 4
    while widths(high)[0] > wanted:
        low, high = high, high * 2
        if high > MOST_RATERS:
            return Plan(texts, per_rater, None, None, None, None)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if widths(middle)[0] <= wanted else (middle, high)
    mos, gap = widths(high)
    per_system = high * per_rater // (2 if once else 1)
    return Plan(texts, per_rater, high, per_system, round(mos, 4), round(gap, 4))


def load_pilot(folder: Path) -> Pilot:
    """The spreads of the ratings in `folder`, its study's rules of exclusion applied.

    Raises:
        RatingsError, NoPilot: they cannot be read, or tell too little.
    """
    frame, plan = load_ratings(folder / "ratings.csv"), load_plan(folder)
    scored, _ = counted(frame, plan, load_incomplete(folder))
    return pilot_spreads(scored, plan.ends.reference, plan.anchors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m listening_test.plan", description=__doc__)
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument("--half-width", type=float, help="of a 95 %% interval, in MOS")
    wish.add_argument("--gap", type=float, help="of two systems, to be shown, in MOS")
    parser.add_argument("--power", type=float, help="probability to show the gap (default 0.8)")
    parser.add_argument("--pilot", type=Path, metavar="DIR", help="holds a pilot's ratings.csv")
    parser.add_argument("--texts-per-rater", type=int, default=16, help="at most (default 16)")
    parser.add_argument(
        "--same-text", choices=get_args(SameText), default="apart",
        help="as in the study file; once: a rater hears each text under one system only",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("half_width", "gap"):
        value, widest = getattr(options, name), _WIDEST[options.pilot is None]
        if value is not None and not _NARROWEST <= value <= widest:
            option = name.replace("_", "-")
            raise BadWish(f"--{option} must be {_NARROWEST} to {widest:g} MOS, for example 0.1.")
    if options.power is not None and options.gap is None:
        raise BadWish("--power belongs to --gap; leave it out.")
    if options.power is not None and not 0.5 <= options.power <= 0.99:
        raise BadWish("--power must be 0.5 to 0.99, for example 0.8.")
    if not 2 <= options.texts_per_rater <= 256:
        raise BadWish("--texts-per-rater must be 2 to 256.")
    if options.same_text == "once" and options.texts_per_rater % 2:
        raise BadWish("--texts-per-rater must be even, half of them under either system.")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        pilot = None if options.pilot is None else load_pilot(options.pilot)
        scores = Scores(Spreads()) if pilot is None else Scores(pilot.spreads, rounded=False)
        result, lines = (_by_width if options.gap is None else _by_gap)(options, scores)
    except (BadWish, RatingsError, NoPilot) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        result |= {"same_text": options.same_text, "spreads": asdict(scores.spreads)}
        result |= {"pilot": pilot and asdict(pilot)}
        print(json.dumps(result, allow_nan=False))
        return 0
    print("\n".join([*lines, *(told(pilot) if pilot else ())]))
    return 0


def _by_width(options: argparse.Namespace, scores: Scores) -> tuple[dict[str, Any], list[str]]:
    wanted, once = options.half_width, options.same_text == "once"
    plans = [
        smallest(wanted, texts, options.texts_per_rater, scores, options.seed, once)
        for texts in TEXTS
    ]
    lines = [f"for a half-width of {wanted:g} MOS (95 %, two-way clustered):"]
    for plan in plans:
        more = f"; a difference then has +-{plan.half_width_difference or 0:.2f}"
        lines.append(_line(plan, once, more))
    return {"half_width": wanted, "runs": _RUNS, "plans": [asdict(plan) for plan in plans]}, lines


def _by_gap(options: argparse.Namespace, scores: Scores) -> tuple[dict[str, Any], list[str]]:
    gap, power, once = options.gap, options.power or 0.8, options.same_text == "once"
    try:
        scores.shift(gap)
    except ValueError as error:
        raise BadWish(f"--gap: {error}; ask for less.") from None
    plans = [
        raters_for_gap(gap, power, texts, options.texts_per_rater, scores, options.seed, once)
        for texts in TEXTS
    ]
    lines = [f"to show a gap of {gap:g} MOS in {100 * power:g} % of all tests (95 % interval):"]
    for plan in plans:
        more = f"; shown in {100 * (plan.power or 0):.0f} % of {RUNS} simulated tests"
        lines.append(_line(plan, once, more))
    result = {"gap": gap, "power": power, "runs": RUNS, "plans": [asdict(plan) for plan in plans]}
    return result, lines


def _line(plan: Plan | GapPlan, once: bool, more: str) -> str:
    if plan.raters is None:
        return f"{plan.texts:4d} texts: out of reach with up to {MOST_RATERS} raters"
    heard = "each under one of two systems" if once else "each under every system"
    return (
        f"{plan.texts:4d} texts: {plan.raters} raters, {plan.texts_per_rater} texts a rater, "
        f"{heard} ({plan.ratings_per_system} ratings a system){more}"
    )


if __name__ == "__main__":
    sys.exit(main())
