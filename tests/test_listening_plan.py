"""The planner: simulated half-widths and power against closed forms, a pilot against ANOVA."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestPower

from listening_test import plan
from listening_test.pilot import NoPilot, pilot_spreads
from listening_test.plan import simulated_half_widths, smallest
from listening_test.power import formula_raters, raters_for_gap, simulated_power
from listening_test.simulation import (
    Scores,
    Spreads,
    design_once,
    simulated_once,
    simulated_test,
    true_mean,
)
from listening_test.statistics import wilcoxon
from tests.test_listening_statistics import crossed, write

LITERATURE = Scores(Spreads())


def test_simulated_half_widths_are_near_the_formulas() -> None:
    raters, texts = 60, 40
    spreads = Spreads()
    mos, gap = simulated_half_widths(raters, texts, texts, LITERATURE, runs=30, seed=1)
    # Rounding to whole scores adds the variance of a uniform step, 1/12, to the rest.
    rest = spreads.rest**2 + 1 / 12
    expected = math.sqrt(
        (spreads.rater**2 + spreads.rater_system**2) / raters
        + (spreads.item**2 + spreads.item_system**2) / texts
        + rest / (raters * texts)
    )
    assert mos == pytest.approx(1.99 * expected, rel=0.12)
    expected = math.sqrt(
        2 * (spreads.rater_system**2 / raters + spreads.item_system**2 / texts)
        + 2 * rest / (raters * texts)
    )
    assert gap == pytest.approx(1.99 * expected, rel=0.12)


def test_the_smallest_test_reaches_the_wish_and_a_smaller_one_does_not() -> None:
    found = smallest(0.3, 32, 16, LITERATURE, seed=1)
    assert found.raters is not None
    assert found.half_width is not None
    assert found.half_width <= 0.3
    fewer = simulated_half_widths(found.raters - 2, 32, 16, LITERATURE, 40, 1)
    assert fewer[0] > 0.3
    assert found.ratings_per_system == found.raters * 16


def test_few_texts_are_out_of_reach_however_many_raters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_RATERS", 200)
    assert smallest(0.1, 8, 8, LITERATURE, seed=1).raters is None


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TEXTS", (32,))
    assert plan.main(["--half-width", "0.4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["texts"] for entry in result["plans"]] == [32]
    assert plan.main(["--half-width", "0.4"]) == 0
    assert "raters" in capsys.readouterr().out
    assert plan.main(["--half-width", "0"]) == 2
    assert "0.1" in capsys.readouterr().err


def test_power_with_one_text_is_the_paired_t_tests() -> None:
    """One text is fixed: the raters' differences are the units, and statsmodels knows the rest."""
    scores = Scores(Spreads(rater_system=0.4, item_system=0, rest=0.6), rounded=False)
    effect = 0.35 / math.sqrt(2 * (0.4**2 + 0.6**2))
    wanted = TTestPower().solve_power(effect, power=0.8, alpha=0.05)
    found = raters_for_gap(0.35, 0.8, 1, 16, scores, seed=1)
    assert found.raters == pytest.approx(wanted, rel=0.12)
    for raters in (10, 40):
        power = simulated_power(0.35, raters, 1, 1, scores, 800, 2)
        closed = TTestPower().power(effect, raters, 0.05)
        assert power == pytest.approx(closed, abs=3.5 * math.sqrt(closed * (1 - closed) / 800))


@pytest.mark.parametrize("scores", [LITERATURE, Scores(Spreads(), rounded=False)])
def test_power_with_many_texts_is_the_normal_distributions(scores: Scores) -> None:
    raters, texts, spreads = 60, 60, scores.spreads
    rest = spreads.rest**2 + scores.rounded / 12
    error = math.sqrt(
        2 * (spreads.rater_system**2 / raters + spreads.item_system**2 / texts)
        + 2 * rest / (raters * texts)
    )
    for gap in (0.08, 0.13):
        closed = float(stats.norm.sf(1.98 - gap / error))
        power = simulated_power(gap, raters, texts, texts, scores, 250, 1)
        assert power == pytest.approx(closed, abs=0.1)


def test_no_plan_has_so_few_raters_that_the_test_could_show_nothing() -> None:
    assert simulated_power(1.5, 5, 16, 16, LITERATURE, 100, 1) > 0.9  # by the interval alone
    found = raters_for_gap(1.5, 0.8, 16, 16, LITERATURE, seed=1)
    assert found.raters == 6
    one_sign = [np.arange(1.0, raters + 1) for raters in (5, found.raters)]
    assert [wilcoxon(gaps) < 0.05 for gaps in one_sign] == [False, True]


def test_the_simulated_gap_is_the_wanted_one_in_scores() -> None:
    shift = LITERATURE.shift(0.5)
    assert true_mean(Spreads(), shift) - true_mean(Spreads()) == pytest.approx(0.5)
    assert shift > 0.5  # the scale's end eats some of it
    rng = np.random.default_rng(1)
    tests = [simulated_test(rng, 100, 100, 20, LITERATURE, shift) for _ in range(40)]
    gaps = [(b - a).mean() for _, _, a, b in tests]
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.999)
    assert low < 0.5 < high


def test_more_power_and_smaller_gaps_need_more_raters_and_few_texts_never_do() -> None:
    few, more, small = (
        formula_raters(gap, power, 64, 16, LITERATURE)
        for gap, power in ((0.2, 0.8), (0.2, 0.95), (0.1, 0.8))
    )
    assert few is not None
    assert more is not None
    assert small is not None
    assert few < more < small
    assert raters_for_gap(0.1, 0.8, 8, 8, LITERATURE, seed=1).raters is None
    found = raters_for_gap(0.4, 0.8, 32, 16, LITERATURE, seed=1)
    assert found.raters == pytest.approx(formula_raters(0.4, 0.8, 32, 16, LITERATURE), rel=0.35)
    assert found.power is not None
    assert found.power >= 0.8
    assert found.ratings_per_system == found.raters * 16


def three_way(frame: pd.DataFrame) -> dict[str, float]:
    """Variances by the expected mean squares of a complete table with one score a cell."""
    table = anova_lm(ols("score ~ (C(rater_id) + C(item_id) + C(system)) ** 2", frame).fit())
    squares = {name.replace("C(", "").replace(")", ""): v for name, v in table["mean_sq"].items()}
    r, i, s = (frame[name].nunique() for name in ("rater_id", "item_id", "system"))
    rest = squares["Residual"]
    return {
        "rest": rest,
        "rater_system": (squares["rater_id:system"] - rest) / i,
        "item_system": (squares["item_id:system"] - rest) / r,
        "rater_item": (squares["rater_id:item_id"] - rest) / s,
        # The systems are fixed: the interactions with them are not in these mean squares.
        "rater": (squares["rater_id"] - squares["rater_id:item_id"]) / (i * s)
        - (squares["rater_id:system"] - rest) / (i * s),
        "item": (squares["item_id"] - squares["rater_id:item_id"]) / (r * s)
        - (squares["item_id:system"] - rest) / (r * s),
    }


def test_a_pilots_spreads_are_the_analysis_of_variances() -> None:
    frame = crossed(np.random.default_rng(5), 14, 9, ("a", "b", "c"))
    found = asdict(pilot_spreads(frame).spreads)
    expected = three_way(frame)
    assert sum(value > 0 for value in expected.values()) >= 5
    for name, variance in expected.items():
        assert found[name] ** 2 == pytest.approx(max(variance, 0), abs=1e-9), name


def test_a_pilots_spreads_are_those_it_was_made_with() -> None:
    rng = np.random.default_rng(3)
    truth = Spreads(0.5, 0.3, 0.25, 0.2, 0.6, 0.35)
    who, what, a, b = simulated_test(rng, 200, 150, 60, Scores(truth, rounded=False), 0.4)
    one = pd.DataFrame({"rater_id": who.astype(str), "item_id": what.astype(str)})
    frame = pd.concat([one.assign(system="a", score=a), one.assign(system="b", score=b)])
    pilot = pilot_spreads(frame)
    for name, value in asdict(truth).items():
        assert asdict(pilot.spreads)[name] == pytest.approx(value, rel=0.12), name
    assert (pilot.systems, pilot.raters, pilot.texts, pilot.ratings) == (2, 200, 150, 24_000)


def test_a_pilot_whose_texts_were_heard_once_tells_the_spreads_too() -> None:
    rng = np.random.default_rng(4)
    truth = Spreads(0.5, 0.4, 0.35, 0.3, 0.6)
    who, what, which = design = design_once(200, 100, 40, 1)
    scores = simulated_once(rng, design, Scores(truth, rounded=False), 0.4)
    frame = pd.DataFrame(
        {"rater_id": who.astype(str), "item_id": what.astype(str),
         "system": np.array(["a", "b"])[which], "score": scores}
    )  # fmt: skip
    found = asdict(pilot_spreads(frame).spreads)
    # What a rater makes of a text cannot be told from the rest here.
    assert math.hypot(found.pop("rest"), found.pop("rater_item")) == pytest.approx(0.6, rel=0.05)
    for name, value in found.items():
        assert value == pytest.approx(asdict(truth)[name], rel=0.2), name


def test_power_with_texts_heard_once_is_the_normal_distributions() -> None:
    raters, texts, per_rater = 60, 60, 30
    scores = Scores(Spreads(), rounded=False)
    spreads = scores.spreads
    error = math.sqrt(
        2 * (spreads.rater_system**2 / raters + spreads.item_system**2 / texts)
        + 2 * spreads.rest**2 / (raters * per_rater / 2)
    )
    for gap in (0.1, 0.18):
        closed = float(stats.norm.sf(1.98 - gap / error))
        power = simulated_power(gap, raters, texts, per_rater, scores, 250, 1, once=True)
        assert power == pytest.approx(closed, abs=0.1)
    _, half = simulated_half_widths(raters, texts, per_rater, scores, 30, 1, once=True)
    assert half == pytest.approx(1.99 * error, rel=0.12)


def test_the_command_plans_for_texts_heard_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TEXTS", (32,))
    needed = {}
    for given in ("apart", "once"):
        assert plan.main(["--gap", "0.4", "--same-text", given, "--json"]) == 0
        (needed[given],) = json.loads(capsys.readouterr().out)["plans"]
    assert needed["once"]["raters"] > needed["apart"]["raters"]
    assert needed["once"]["ratings_per_system"] == needed["once"]["raters"] * 8
    assert needed["once"]["power"] >= 0.8
    assert plan.main(["--half-width", "0.4", "--same-text", "once"]) == 0
    assert "each under one of two systems" in capsys.readouterr().out
    assert plan.main(["--gap", "0.4", "--same-text", "once", "--texts-per-rater", "5"]) == 2
    assert "must be even" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f[f["system"] == "a"],
        lambda f: f[f["rater_id"].isin(["r0", "r1"])],
        lambda f: f[(f["item_id"] == "i0")],
        lambda f: f[(f["system"] == "a") == f["rater_id"].isin(["r0", "r1", "r2"])],
        lambda f: f.assign(method="ab", choice="a"),
    ],
)
def test_a_pilot_that_tells_too_little_is_refused(change: Any) -> None:
    with pytest.raises(NoPilot, match=r"pilot (must|has no)"):
        pilot_spreads(change(crossed(np.random.default_rng(1), 6, 5, ("a", "b"))))


def test_a_mushra_pilots_reference_and_anchors_do_not_count() -> None:
    frame = crossed(np.random.default_rng(1), 8, 6, ("a", "b")).assign(method="mushra")
    ends = [
        frame[frame["system"] == "a"].assign(system=name, score=score)
        for name, score in (("natural", 100.0), ("anchor-3500", 10.0))
    ]
    both = pilot_spreads(pd.concat([frame, *ends]), "natural", ["anchor-3500"])
    assert both == pilot_spreads(frame)


def test_the_command_plans_a_gap_with_a_pilot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "TEXTS", (32,))
    write(tmp_path, crossed(np.random.default_rng(1), 12, 8, ("a", "b")))
    assert plan.main(["--gap", "0.4", "--power", "0.9", "--pilot", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["gap"], result["power"]) == (0.4, 0.9)
    assert result["pilot"]["raters"] == 12
    assert result["spreads"] == result["pilot"]["spreads"]
    (entry,) = result["plans"]
    assert entry["power"] >= 0.9
    assert plan.main(["--half-width", "0.4", "--pilot", str(tmp_path)]) == 0
    assert "from a pilot of 12 raters, 8 texts" in capsys.readouterr().out
    for wrong, says in (
        (["--gap", "1.9"], "room for"),
        (["--gap", "0.2", "--power", "1"], "0.5 to 0.99"),
        (["--half-width", "0.2", "--power", "0.8"], "belongs to --gap"),
        (["--gap", "0.2", "--pilot", str(tmp_path / "no")], "does not exist"),
    ):
        assert plan.main(wrong) == 2
        assert says in capsys.readouterr().err
