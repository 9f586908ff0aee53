"""The planner: its simulated half-widths against the variance formula, and its search."""

from __future__ import annotations

import json
import math

import pytest

from listening_test import plan
from listening_test.plan import Spreads, simulated_half_widths, smallest


def test_simulated_half_widths_are_near_the_formulas() -> None:
    raters, texts = 60, 40
    spreads = Spreads()
    mos, gap = simulated_half_widths(raters, texts, texts, spreads, runs=30, seed=1)
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
    found = smallest(0.3, 32, 16, Spreads(), seed=1)
    assert found.raters is not None
    assert found.half_width is not None
    assert found.half_width <= 0.3
    fewer = simulated_half_widths(found.raters - 2, 32, 16, Spreads(), 40, 1)
    assert fewer[0] > 0.3
    assert found.ratings_per_system == found.raters * 16


def test_few_texts_are_out_of_reach_however_many_raters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_RATERS", 200)
    assert smallest(0.1, 8, 8, Spreads(), seed=1).raters is None


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TEXTS", (32,))
    assert plan.main(["--half-width", "0.4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["texts"] for entry in result["plans"]] == [32]
    assert plan.main(["--half-width", "0.4"]) == 0
    assert "raters" in capsys.readouterr().out
    assert plan.main(["--half-width", "0"]) == 2
    assert "0.1" in capsys.readouterr().err
