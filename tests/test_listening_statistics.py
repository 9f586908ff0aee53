"""The statistics: against closed forms, scipy and statsmodels, and by simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.listening_intervals import ONCE, coverage, coverage_once
from listening_test import analyse as command
from listening_test.analysis import Plan, analyse
from listening_test.differences import difference
from listening_test.simulation import Scores, Spreads, simulated_test, true_mean
from listening_test.statistics import crossed_mean, naive_mean


def crossed(
    rng: np.random.Generator, raters: int, items: int, systems: tuple[str, ...] = ("a", "b", "c")
) -> pd.DataFrame:
    """A complete crossed test; the spreads are those of the listening-test literature.

    Rater SD 0.45, item SD 0.33 (Rosenberg & Ramabhadran 2017), rater x system and item x system
    0.15, rest 0.75; rounded to 1..5.
    """
    shape = (raters, items, len(systems))
    score = (
        3.2
        + rng.normal(0, 0.45, (raters, 1, 1))
        + rng.normal(0, 0.33, (1, items, 1))
        + rng.normal(0, 0.15, (raters, 1, len(systems)))
        + rng.normal(0, 0.15, (1, items, len(systems)))
        + rng.normal(0, 0.75, shape)
    )
    r, i, s = (axis.ravel() for axis in np.indices(shape))
    return pd.DataFrame(
        {
            "session_id": [f"s{x}" for x in r],
            "rater_id": [f"r{x}" for x in r],
            "item_id": [f"i{x}" for x in i],
            "stimulus_id": [f"{x}-{y}" for x, y in zip(i, s, strict=True)],
            "system": np.array(systems)[s],
            "score": np.clip(np.rint(score), 1, 5).ravel(),
            "trial_type": "rating",
            "status": "use",
        }
    )


def anova_interval(table: np.ndarray) -> tuple[float, float]:
    """Closed form for a complete (raters, items) table: two-way random effects, one per cell."""
    r, i = table.shape
    grand = table.mean()
    by_rater, by_item = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    ms_rater = i * float(((by_rater - grand) ** 2).sum()) / (r - 1)
    ms_item = r * float(((by_item - grand) ** 2).sum()) / (i - 1)
    rest = table - by_rater - by_item + grand
    ms_rest = float((rest**2).sum()) / ((r - 1) * (i - 1))
    assert ms_rater > ms_rest  # the closed form has no negative components to cut
    assert ms_item > ms_rest
    variance = (ms_rater + ms_item - ms_rest) / (r * i)
    df = (ms_rater + ms_item - ms_rest) ** 2 / (
        ms_rater**2 / (r - 1) + ms_item**2 / (i - 1) + ms_rest**2 / ((r - 1) * (i - 1))
    )
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    return grand - half, grand + half


def test_a_complete_table_gives_the_textbook_two_way_interval() -> None:
    frame = crossed(np.random.default_rng(12), 12, 9, ("a",))
    table = frame.pivot_table(index="rater_id", columns="item_id", values="score").to_numpy()
    estimate = crossed_mean(frame["score"].to_numpy(), frame["rater_id"], frame["item_id"])
    assert estimate.interval() == pytest.approx(anova_interval(table), abs=1e-9)


def test_the_naive_interval_is_scipys() -> None:
    scores = np.random.default_rng(1).integers(1, 6, 57).astype(float)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert naive_mean(scores).interval() == pytest.approx(tuple(expected), abs=1e-9)


def test_one_item_reduces_to_raters_and_one_rater_is_no_evidence() -> None:
    scores = np.array([1.0, 2, 4, 4, 5, 3])
    many, one = list("abcdef"), ["x"] * 6
    assert crossed_mean(scores, many, one).interval() == pytest.approx(
        naive_mean(scores).interval()
    )
    assert crossed_mean(scores, one, many).interval() is None


def test_a_rater_who_just_began_proves_nothing() -> None:
    """One rating a system, of different texts, both "fair": no interval, no equivalence."""
    frame = crossed(np.random.default_rng(4), 1, 2, ("a", "b")).iloc[[0, 3]].assign(score=3.0)
    (pair,) = analyse(frame, Plan(0.2))["pairs"]
    assert pair["difference"] == 0
    assert pair["ci95"] is pair["p_wilcoxon"] is pair["non_inferior"] is pair["equivalent"] is None


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
def test_estimates_of_incomplete_tables_are_finite_and_blind_to_order(
    seed: int, kept: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = crossed(rng, 8, 7, ("a", "b"))
    frame = frame[rng.random(len(frame)) < kept]
    part = frame[frame["system"] == "a"]
    if part["rater_id"].nunique() < 2 or part["item_id"].nunique() < 2:
        return
    shuffled = part.sample(frac=1, random_state=seed)
    first = crossed_mean(part["score"].to_numpy(), part["rater_id"], part["item_id"])
    second = crossed_mean(shuffled["score"].to_numpy(), shuffled["rater_id"], shuffled["item_id"])
    assert first.mean == pytest.approx(part["score"].mean())
    assert math.isfinite(first.se)
    assert (first.se, first.df) == pytest.approx((second.se, second.df))
    if frame["system"].nunique() == 2:
        gap = difference(frame, "a", "b")
        means = frame.groupby("system")["score"].mean()
        assert gap.mean == pytest.approx(means["a"] - means["b"])
        assert difference(frame, "b", "a").mean == pytest.approx(-gap.mean)
        assert difference(frame, "b", "a").se == pytest.approx(gap.se)


def test_pairs_agree_with_scipy_and_statsmodels() -> None:
    frame = crossed(np.random.default_rng(5), 21, 6)
    frame.loc[frame["system"] == "c", "score"] = (frame["score"] - 1).clip(1)
    result = analyse(frame)
    means = frame.groupby(["rater_id", "system"])["score"].mean().unstack()
    expected = [
        stats.wilcoxon(np.round(means[pair["a"]] - means[pair["b"]], 9)).pvalue
        for pair in result["pairs"]
    ]
    assert [pair["p_wilcoxon"] for pair in result["pairs"]] == pytest.approx(expected)
    holm = multipletests(expected, method="holm")[1]
    assert [pair["p_holm"] for pair in result["pairs"]] == pytest.approx(list(holm))
    overall = frame.groupby("system")["score"].mean()
    for pair in result["pairs"]:
        assert pair["difference"] == pytest.approx(overall[pair["a"]] - overall[pair["b"]])
    table = frame.pivot_table(index=["rater_id", "item_id"], columns="system", values="score")
    gaps = (table["a"] - table["c"]).unstack().to_numpy()
    pair = next(p for p in result["pairs"] if (p["a"], p["b"]) == ("a", "c"))
    low, high = pair["ci95"]
    # The paired interval of rater means is narrower or near: it leaves the items out.
    by_rater = stats.ttest_1samp(gaps.mean(axis=1), 0).confidence_interval(0.95)
    assert low < pair["difference"] < high
    assert high - low >= 0.9 * (by_rater.high - by_rater.low)


@pytest.mark.parametrize(
    ("shift", "non_inferior", "b_non_inferior", "equivalent"),
    [(0.0, True, True, True), (-1.0, False, True, False), (1.0, True, False, False)],
)
def test_non_inferiority_and_equivalence(
    shift: float, non_inferior: bool, b_non_inferior: bool, equivalent: bool
) -> None:
    rng = np.random.default_rng(2)
    base = crossed(rng, 30, 12, ("b",))
    other = base.assign(system="a", score=base["score"] + shift + rng.normal(0, 0.1, len(base)))
    both = pd.concat([base, other])
    (pair,) = analyse(both, Plan(0.2))["pairs"]
    assert (pair["a"], pair["b"]) == ("a", "b")
    assert pair["non_inferior"] is non_inferior
    assert pair["b_non_inferior"] is b_non_inferior
    assert pair["equivalent"] is equivalent
    (turned,) = analyse(both, Plan(0.2, ("a", "b")))["pairs"]
    assert (turned["a"], turned["b"]) == ("b", "a")  # the reference is b
    assert turned["difference"] == pytest.approx(-pair["difference"])
    (bare,) = analyse(both)["pairs"]
    assert bare["non_inferior"] is bare["equivalent"] is bare["b_non_inferior"] is None


def test_equivalence_is_two_one_sided_tests() -> None:
    """The 90 % interval lies inside the margin exactly when both one-sided p are below 5 %."""
    rng = np.random.default_rng(8)
    answers = set()
    for shift in np.linspace(0, 0.3, 7):
        base = crossed(rng, 20, 8, ("b",))
        noise = rng.normal(shift, 0.3, len(base))
        both = pd.concat([base, base.assign(system="a", score=base["score"] + noise)])
        estimate = difference(both, "a", "b")
        worst = max(
            stats.t.sf((estimate.mean + 0.2) / estimate.se, estimate.df),
            stats.t.cdf((estimate.mean - 0.2) / estimate.se, estimate.df),
        )
        (pair,) = analyse(both, Plan(0.2))["pairs"]
        assert pair["equivalent"] is bool(worst < 0.05)
        answers.add(pair["equivalent"])
    assert answers == {True, False}


def test_what_does_not_count_is_counted_by_rule() -> None:
    frame = crossed(np.random.default_rng(4), 5, 4, ("a", "b"))
    frame["status_reason"] = ""
    frame.loc[0, "trial_type"] = "practice"
    frame.loc[1:2, "trial_type"] = "trap"
    frame.loc[3:5, ["status", "status_reason"]] = ["exclude", "failed headphones"]
    frame.loc[6, "status"] = "test"
    frame.loc[7, "score"] = np.nan
    frame.loc[8, "trial_type"] = "null_pair"
    result = analyse(frame)
    assert result["excluded"] == {
        "trial_type: practice": 1, "trial_type: trap": 2, "failed headphones": 3, "test": 1,
        "no score": 1,
    }  # fmt: skip
    assert result["n"] == sum(s["n"] for s in result["systems"].values()) == 40 - 8


def test_too_little_data_gives_null_and_never_a_number() -> None:
    one = crossed(np.random.default_rng(4), 1, 1, ("a", "b"))
    result = analyse(one, Plan(0.2))
    assert result["systems"]["a"]["ci95"] is None
    assert result["systems"]["a"]["sd"] is None
    (pair,) = result["pairs"]
    assert pair["ci95"] is pair["non_inferior"] is pair["equivalent"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("shift", [0.0, 1.0, 0.1])
def test_equal_scores_are_no_certainty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shift: float
) -> None:
    """Three raters, two texts, always the same score: nothing tells how sure that is."""
    frame = crossed(np.random.default_rng(4), 3, 2, ("a", "b")).assign(score=3.1)
    frame.loc[frame["system"] == "a", "score"] += shift
    result = analyse(frame, Plan(0.2))
    assert result["systems"]["a"]["ci95"] is result["systems"]["a"]["ci95_naive"] is None
    assert result["systems"]["a"]["no_spread"] is True
    (pair,) = result["pairs"]
    assert pair["difference"] == pytest.approx(shift)
    assert pair["no_spread"] is True
    for name in (
        "ci95", "non_inferior", "b_non_inferior", "equivalent", "p_non_inferior", "p_equivalent",
        "p_wilcoxon", "p_holm",
    ):  # fmt: skip
        assert pair[name] is None
    json.dumps(result, allow_nan=False)
    assert command.main([str(write(tmp_path, frame))]) == 0
    told = capsys.readouterr().out
    assert "none: no spread" in told
    assert "nothing tells how sure their mean is" in told
    spread = analyse(crossed(np.random.default_rng(4), 3, 2, ("a", "b")))
    assert spread["pairs"][0]["no_spread"] is False
    unpaired = analyse(frame.drop(index=0), Plan(0.2))["pairs"][0]
    assert unpaired["no_spread"] is True
    assert unpaired["non_inferior"] is None


def test_coverage_and_false_positives_smoke() -> None:
    """200 simulated tests, 24 raters x 8 texts: the honest interval covers, the naive does not."""
    found = coverage(24, 8, 8, 200, seed=11)
    # Four standard errors of a 95 % coverage in 200 runs are 6 points.
    assert 0.89 <= found["covered"] <= 1
    assert found["covered_naive"] < 0.75
    assert found["false_positives"] <= 0.11
    both = (found["false_positives"], found["false_positives_wilcoxon"])
    assert 0 < found["false_positives_shown"] <= min(both)


@pytest.mark.parametrize(("raters", "texts", "per_rater"), [(20, 20, 10), (24, 40, 4)])
def test_coverage_of_differences_smoke(raters: int, texts: int, per_rater: int) -> None:
    """300 simulated tests in which each text is heard once: neither too narrow nor too wide."""
    found = coverage_once(raters, texts, per_rater, 300, seed=3)
    # Four standard errors of a 95 % coverage in 300 runs are 5 points; always covered is wide.
    assert 0.90 <= found["covered"] <= 0.99
    assert 0.90 <= found["covered_shifted"] <= 0.99


@pytest.mark.long
@pytest.mark.parametrize(("raters", "texts", "per_rater"), ONCE)
def test_coverage_of_differences(raters: int, texts: int, per_rater: int) -> None:
    found = coverage_once(raters, texts, per_rater, 4000, seed=1)
    assert 0.935 <= found["covered"] <= 0.965
    assert 0.935 <= found["covered_shifted"] <= 0.965
    assert found["false_positives_shown"] <= 0.06


@pytest.mark.long
@pytest.mark.parametrize(("raters", "texts", "per_rater"), [(20, 20, 10), (48, 40, 10)])
def test_coverage_and_false_positives(raters: int, texts: int, per_rater: int) -> None:
    found = coverage(raters, texts, per_rater, 4000, seed=1)
    assert 0.935 <= found["covered"] <= 0.965
    assert found["false_positives"] <= 0.06
    assert found["false_positives_shown"] <= 0.06


def test_the_simulated_truth_is_the_mean_of_what_is_simulated() -> None:
    rng = np.random.default_rng(0)
    scores = [simulated_test(rng, 400, 400, 20, Scores(Spreads()))[2].mean() for _ in range(60)]
    low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.999)
    assert low < true_mean(Spreads()) < high


def write(folder: Path, frame: pd.DataFrame, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "ratings.csv", index=False, **options)
    return folder


def test_the_command_prints_the_contracts_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = crossed(np.random.default_rng(6), 6, 4, ("full", "spark"))
    frame["an_extra_column"] = "kept out"
    folder = write(tmp_path, frame, encoding="utf-8-sig")
    assert command.main([str(folder), "--json", "--margin", "0.3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["systems"]) == {"full", "spark"}
    assert {"mos", "ci95", "ci95_naive", "n", "raters", "items"} <= set(result["systems"]["full"])
    (pair,) = result["pairs"]
    assert {
        "a", "b", "difference", "ci95", "p_wilcoxon", "p_holm", "non_inferior", "equivalent",
    } <= set(pair)  # fmt: skip
    assert result["systems"]["full"]["n"] == 24
    assert command.main([str(folder)]) == 0
    assert "MOS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="system"), "listening_test.export"),
        (lambda f: f.drop(columns=["system", "score"]), "lacks the columns system, score"),
        (lambda f: f.astype({"score": str}).replace({"score": {"3.0": "fair"}}), "'fair' is not"),
        (lambda f: f.iloc[:0], "no ratings yet"),
        (lambda f: f.assign(rater_id=""), "rater_id is empty"),
        (lambda f: f.assign(status="exclude"), " rows (exclude). Only rows with"),
    ],
)
def test_bad_files_get_a_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    write(tmp_path, change(crossed(np.random.default_rng(6), 4, 4)))
    assert command.main([str(tmp_path), "--json"]) == 2
    streams = capsys.readouterr()
    assert says in streams.err
    assert streams.out == ""


def test_files_that_are_no_ratings_get_a_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    for content, says in [(b"", "not a CSV"), (b"\xff\xfe\x00a", "UTF-8"), (b'a,b\n"x', "CSV")]:
        (tmp_path / "ratings.csv").write_bytes(content)
        assert command.main([str(tmp_path)]) == 2
        assert says in capsys.readouterr().err


def test_a_rating_that_is_in_the_file_twice_counts_once(tmp_path: Path) -> None:
    frame = crossed(np.random.default_rng(6), 4, 4)
    frame["rating_id"] = [f"id-{n}" for n in range(len(frame))]
    write(tmp_path, pd.concat([frame, frame.iloc[:5]]))
    result = analyse(command.load_ratings(tmp_path / "ratings.csv"))
    assert result["n"] == len(frame)
    assert result["excluded"] == {"duplicate rating_id": 5}
