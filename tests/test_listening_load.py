"""The load benchmark at its smallest: it must count what it says it counts."""

from __future__ import annotations

import json

import pytest

from benchmarks import listening_load


def test_a_few_raters_lose_and_double_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert listening_load.main(["--raters", "3", "--trials", "4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["raters", "ratings", "p50_ms", "p95_ms", "lost", "doubled"]
    assert (result["ratings"], result["lost"], result["doubled"]) == (12, 0, 0)
    assert 0 < result["p50_ms"] <= result["p95_ms"]
