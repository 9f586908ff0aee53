"""Agreement, preference, CMOS and the mixed model: against published examples and other tools."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import choix
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.regression.mixed_linear_model import MixedLM

from listening_test import analyse as command
from listening_test.agreement import krippendorff_alpha, order_effect, rater_correlations
from listening_test.analysis import Plan, analyse
from listening_test.comparison_rating import comparison_pairs
from listening_test.mixed_model import MOST_RATINGS, mixed_model
from listening_test.preference import bradley_terry
from listening_test.statistics import effect_sizes
from listening_test.tables import notes, verdicts
from tests.test_listening_statistics import crossed, write

DATA = Path(__file__).parent / "data"
NAN = math.nan
# Krippendorff 2011, section C: four observers, twelve units, some values missing.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(("level", "published"), [("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_examples(level: Any, published: float) -> None:
    raters, units = np.indices(OBSERVERS.shape)
    alpha = krippendorff_alpha(units.ravel(), raters.ravel(), OBSERVERS.ravel(), level)
    assert alpha == pytest.approx(published, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_null_where_nothing_varies() -> None:
    units, raters = [1, 1, 2, 2], ["a", "b", "a", "b"]
    assert krippendorff_alpha(units, raters, [1, 1, 5, 5]) == pytest.approx(1)
    assert krippendorff_alpha(units, raters, [3, 3, 3, 3]) is None
    assert krippendorff_alpha([1, 2], ["a", "b"], [1, 5]) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_interval_alpha_is_a_plain_loop_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 6, (4, 6)).astype(float)
    table[rng.random(table.shape) < 0.3] = NAN
    raters, units = np.indices(table.shape)
    alpha = krippendorff_alpha(units.ravel(), raters.ravel(), table.ravel(), "interval")
    columns = [column[~np.isnan(column)] for column in table.T]
    columns = [column for column in columns if len(column) > 1]
    values = np.concatenate(columns) if columns else np.array([])
    if len(set(values)) < 2:
        assert alpha is None
        return
    within = sum(((c[:, None] - c) ** 2).sum() / (len(c) - 1) for c in columns) / len(values)
    n = len(values)
    total = ((values[:, None] - values) ** 2).sum() / (n * (n - 1))
    assert alpha == pytest.approx(1 - within / total)


def test_a_rater_is_compared_with_the_others_and_not_with_himself() -> None:
    frame = crossed(np.random.default_rng(3), 6, 8, ("a", "b"))
    found = rater_correlations(frame)
    table = frame.pivot_table(index="rater_id", columns="stimulus_id", values="score")
    for rater, row in table.iterrows():
        others = table.drop(index=rater).mean()
        assert found[rater] == pytest.approx(np.corrcoef(row, others)[0, 1])
    frame.loc[frame["rater_id"] == "r0", "score"] = 4
    assert rater_correlations(frame)["r0"] is None


def test_the_order_effect_is_found() -> None:
    rng = np.random.default_rng(4)
    frame = crossed(rng, 40, 10, ("a", "b"))
    frame["trial_index"] = frame.groupby("rater_id")["score"].transform(
        lambda s: rng.permutation(len(s)) + 2
    )
    still = order_effect(frame)
    assert still is not None
    low, high = still.interval() or (0, 0)
    assert low < 0 < high
    tired = frame.assign(score=frame["score"] - 0.5 * (frame["trial_index"] - 2) / 19)
    moved = order_effect(tired)
    assert moved is not None
    # The stimulus means take a little of it away, since the places are not balanced over them.
    assert moved.mean - still.mean == pytest.approx(-0.5, abs=0.02)
    low, high = moved.interval() or (0, 0)
    assert low < -0.5 < high < 0
    assert order_effect(frame.drop(columns="trial_index")) is None
    assert order_effect(frame.assign(trial_index=1)) is None


def test_the_order_effect_is_least_squares_clustered_by_rater() -> None:
    """Also with raters who quit: who rated three clips says little of a slope."""
    rng = np.random.default_rng(9)
    frame = crossed(rng, 12, 8, ("a", "b"))
    frame["trial_index"] = frame.groupby("rater_id")["score"].transform(
        lambda s: rng.permutation(len(s)) + 1
    )
    quit_early = frame["rater_id"].isin(["r0", "r1"]) & (frame["trial_index"] > 3)
    frame = frame[~quit_early]
    rest = frame["score"] - frame.groupby("stimulus_id")["score"].transform("mean")
    design = pd.get_dummies(frame["rater_id"], dtype=float)
    design["place"] = (frame["trial_index"] - 1) / 15
    fitted = OLS(rest, design).fit(
        cov_type="cluster",
        cov_kwds={
            "groups": frame["rater_id"].astype("category").cat.codes,
            "use_correction": False,
        },
    )
    found = order_effect(frame)
    assert found is not None
    assert found.mean == pytest.approx(fitted.params["place"], abs=1e-9)
    assert found.se == pytest.approx(fitted.bse["place"] * (12 / 11) ** 0.5, abs=1e-9)
    assert found.df == 11


def test_effect_sizes_are_their_closed_forms() -> None:
    gaps = np.random.default_rng(2).normal(0.3, 1, 15)
    found = effect_sizes(gaps)
    t = stats.ttest_1samp(gaps, 0).statistic
    assert found["cohen_dz"] == pytest.approx(t / math.sqrt(15))
    smaller = stats.wilcoxon(gaps).statistic  # the smaller of the two rank sums
    size = 1 - 2 * smaller / (15 * 16 / 2)
    assert abs(found["rank_biserial"] or 0) == pytest.approx(size)
    assert effect_sizes(np.zeros(4)) == {"cohen_dz": None, "rank_biserial": None}
    assert effect_sizes(np.array([1.0, 2, 3]))["rank_biserial"] == 1


def votes(rng: np.random.Generator, strengths: dict[str, float], raters: int) -> pd.DataFrame:
    """Every rater prefers within each ordered pair once, by the Bradley-Terry model."""
    names = list(strengths)
    rows = []
    for rater in range(raters):
        for a in names:
            for b in names:
                if a != b:
                    p = 1 / (1 + math.exp(strengths[b] - strengths[a]))
                    rows.append((f"r{rater}", f"i{len(rows) % 7}", a, b, rng.random() < p))
    frame = pd.DataFrame(rows, columns=["rater_id", "item_id", "system", "system_b", "first"])
    frame["choice"] = np.where(frame.pop("first"), "a", "b")
    frame.loc[rng.random(len(frame)) < 0.1, "choice"] = "tie"
    return frame.assign(
        session_id=frame["rater_id"], stimulus_id="x", method="ab", score=NAN,
        trial_type="rating", status="use",
    )  # fmt: skip


def test_preferences_agree_with_scipy_and_choix() -> None:
    frame = votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7, "z": 1.4}, 40)
    result = analyse(frame)
    assert result["systems"] == {}
    for pair in result["preferences"]:
        test = stats.binomtest(pair["wins_a"], pair["wins_a"] + pair["wins_b"])
        assert pair["p_binomial"] == pytest.approx(test.pvalue)
        assert pair["share_ci95_naive"] == pytest.approx(list(test.proportion_ci()))
        assert pair["wins_a"] + pair["wins_b"] + pair["ties"] == 80
        low, high = pair["share_ci95"]
        assert low < pair["share_a"] < high
    untied = frame[frame["choice"] != "tie"]
    names = ["x", "y", "z"]
    data = [
        (names.index(a), names.index(b)) if choice == "a" else (names.index(b), names.index(a))
        for a, b, choice in zip(untied["system"], untied["system_b"], untied["choice"], strict=True)
    ]
    expected = choix.opt_pairwise(3, data)  # another algorithm than ours, without the weak pull
    expected -= expected.mean()
    for name, value in zip(names, expected, strict=True):
        found = result["bradley_terry"][name]
        assert found["strength"] == pytest.approx(value, abs=2e-3)
        assert found["ci95"][0] < found["strength"] < found["ci95"][1]


def test_the_bootstrap_draws_raters_not_votes() -> None:
    """Raters of one mind each: 2,000 votes of ten raters say no more than ten raters can."""
    rows = votes(np.random.default_rng(6), {"x": 0.0, "y": 0.0, "z": 0.0}, 10)
    rows = pd.concat([rows] * 20)
    loves = rows["rater_id"].isin([f"r{n}" for n in range(5)])
    rows["choice"] = np.where((rows["system"] == "x") == loves, "a", "b")
    low, high = (bradley_terry(rows, ["x", "y", "z"]) or {})["x"]["ci95"]
    assert high - low > 0.5
    assert bradley_terry(rows[rows["rater_id"] == "r0"], ["x", "y", "z"]) is None


def test_a_system_that_never_lost_has_a_finite_strength() -> None:
    rows = votes(np.random.default_rng(6), {"x": 0.0, "y": 0.0, "z": 0.0}, 5)
    rows["choice"] = np.where(rows["system"] == "x", "a", "b")
    alike = bradley_terry(rows, ["x", "y", "z"]) or {}
    assert alike["x"]["strength"] > alike["y"]["strength"]
    # Raters who all voted alike: nothing tells how sure that is.
    assert [s["ci95"] for s in alike.values()] == [None] * 3
    assert all(s["no_spread"] for s in alike.values())
    mixed = rows["choice"].mask((rows["rater_id"] == "r1") & (rows["system"] == "y"), "a")
    strengths = bradley_terry(rows.assign(choice=mixed), ["x", "y", "z"]) or {}
    assert strengths["y"]["strength"] > strengths["z"]["strength"]
    for found in strengths.values():
        assert np.isfinite(found["ci95"]).all()
        assert found["no_spread"] is False


def compared(
    rng: np.random.Generator, gap: float, bias: float, a_first: float = 0.5, raters: int = 40
) -> pd.DataFrame:
    """CCR votes on `new` against `old`: `gap` better, and `bias` for whatever comes second."""
    rows = []
    for rater in range(raters):
        own = rng.normal(0, 0.2)
        for item in range(8):
            new_first = rng.random() < a_first
            score = (-(gap + own) if new_first else gap + own) + bias + rng.normal(0, 0.4)
            pair = ("new", "old") if new_first else ("old", "new")
            rows.append((f"r{rater}", f"i{item}", *pair, score))
    frame = pd.DataFrame(rows, columns=["rater_id", "item_id", "system", "system_b", "score"])
    return frame.assign(
        session_id=frame["rater_id"], stimulus_id="x", method="ccr", trial_type="rating",
        status="use",
    )  # fmt: skip


@pytest.mark.parametrize("a_first", [0.5, 0.8])
def test_cmos_is_free_of_the_order_and_tells_its_bias(a_first: float) -> None:
    frame = compared(np.random.default_rng(7), 0.5, 0.4, a_first)
    (pair,) = analyse(frame, Plan(0.2, ("old", "new")))["pairs"]
    assert (pair["a"], pair["b"]) == ("new", "old")
    assert pair["ci95"][0] < 0.5 < pair["ci95"][1]
    assert pair["difference"] == pytest.approx(0.5, abs=0.1)
    assert pair["order_bias"]["mean"] == pytest.approx(0.4, abs=0.08)
    assert pair["order_bias"]["ci95"][0] > 0.2
    assert pair["non_inferior"] is True
    (turned,) = analyse(frame)["pairs"]  # alphabetical: a is "new" again, first of the two
    assert turned["difference"] == pytest.approx(pair["difference"])


def test_cmos_intervals_cover() -> None:
    """300 tests with more of one order than of the other, and a bias for the second clip."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        frame = compared(rng, 0.5, 0.4, 0.7, raters=20)
        (pair,) = comparison_pairs(frame, ["old", "new"], reference_first=True)
        covered += pair["ci95"][0] <= 0.5 <= pair["ci95"][1]
    # Four standard errors of a 95 % coverage in 300 runs are 5 points.
    assert 0.9 <= covered / 300 <= 1


def test_null_pairs_give_the_bias_and_no_difference() -> None:
    frame = compared(np.random.default_rng(9), 0.0, 0.4)
    same = frame.iloc[:60].assign(system_b=lambda f: f["system"], trial_type="null_pair", score=0.3)
    result = analyse(pd.concat([frame, same]))
    assert len(result["pairs"]) == 1
    assert result["pairs"][0]["n"] == len(frame)
    assert result["null_pair_bias"]["mean"] == pytest.approx(0.3)


def test_abx_counts_what_was_told_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7}, 20).assign(method="abx")
    frame["check_passed"] = (np.arange(len(frame)) % 4 != 0).astype(int).astype(str)
    write(tmp_path, frame)
    assert command.main([str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["identification"]
    kept = frame[frame["choice"] != "tie"]
    right = int((kept["check_passed"] == "1").sum())
    assert (found["right"], found["n"]) == (right, len(kept))
    assert found["p_binomial"] == pytest.approx(stats.binomtest(right, len(kept)).pvalue)


def test_the_mixed_model_agrees_with_the_means_of_a_complete_table() -> None:
    frame = crossed(np.random.default_rng(10), 12, 8, ("a", "b", "c"))
    found = mixed_model(frame, ["b", "a", "c"])
    assert found is not None
    means = frame.groupby("system")["score"].mean()
    for name in ("a", "c"):
        entry = found["differences"][name]
        assert entry["difference"] == pytest.approx(means[name] - means["b"], abs=1e-6)
        assert entry["ci95"][0] < entry["difference"] < entry["ci95"][1]
    assert 0.2 < found["sd"]["rater"] < 0.9


def test_a_mixed_model_that_says_nothing_says_why() -> None:
    frame = crossed(np.random.default_rng(10), 12, 8, ("a", "b", "c"))
    many = pd.concat([frame] * (MOST_RATINGS // len(frame) + 1))
    for rows, why in (
        (frame[frame["system"] == "a"], "two systems"),
        (frame[frame["rater_id"] == "r1"], "two raters"),
        (frame.assign(score=3.0), "all scores are the same"),
        (many, "more than 2,000 ratings"),
    ):
        result = analyse(rows)
        assert result["mixed_model"] is None
        assert why in result["mixed_model_note"]
        assert f"was not fitted: {result['mixed_model_note']}" in " ".join(notes(result))


def test_a_mixed_model_that_does_not_converge_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = crossed(np.random.default_rng(10), 12, 8, ("a", "b", "c"))
    assert "converge" not in " ".join(notes(analyse(frame)))
    whole = MixedLM.fit
    monkeypatch.setattr(MixedLM, "fit", lambda self, reml: whole(self, reml=reml, maxiter=1))
    result = analyse(frame)
    assert result["mixed_model"]["converged"] is False
    assert "did not converge, so do not lean on it" in " ".join(notes(result))


def test_a_variance_of_nearly_nought_is_told_and_is_no_failure() -> None:
    """Texts that do not differ: some of the fits end on the bound, and well."""
    told = []
    for seed in (1, 5, 10):
        frame = crossed(np.random.default_rng(seed), 12, 6)
        frame["score"] -= frame.groupby("item_id")["score"].transform("mean")
        result = analyse(frame)
        if result["mixed_model"]["converged"] and result["mixed_model"]["boundary"]:
            told.append(" ".join(notes(result)))
    assert told
    for text in told:
        assert "one of its variances is nearly nought" in text
        assert "converge" not in text


def test_several_dimensions_are_analysed_apart_the_overall_first() -> None:
    one = crossed(np.random.default_rng(1), 6, 5, ("a", "b")).assign(method="p835")
    both = pd.concat([one.assign(dimension="bak"), one.assign(dimension="ovrl", score=2.5)])
    result = analyse(both)
    assert result["dimension"] == "ovrl"
    assert result["systems"]["a"]["mos"] == 2.5
    assert result["dimensions"]["bak"]["systems"]["a"]["mos"] == pytest.approx(
        one.loc[one["system"] == "a", "score"].mean()
    )


def test_words_say_what_is_shown_and_what_is_not() -> None:
    def said(a_minus_b: float, spread: float, margin: float | None) -> str:
        base = crossed(np.random.default_rng(2), 30, 12, ("b",))
        noise = np.random.default_rng(3).normal(0, spread, len(base))
        other = base.assign(system="a", score=base["score"] + a_minus_b + noise)
        (text,) = verdicts(analyse(pd.concat([base, other]), Plan(margin)))
        return text

    assert "no proof" in said(0.0, 0.1, None)
    assert "equivalent" in said(0.0, 0.1, 0.2)
    assert "b is rated above a; a is worse by more than" in said(-1.0, 0.1, 0.2)
    assert "a is not worse than b by 0.2 or more" in said(0.5, 0.1, 0.2)
    assert "is not shown" in said(-0.15, 2.0, 0.2)
    frame = crossed(np.random.default_rng(2), 6, 6, ("a", "b"))
    frame["trial_index"] = frame.groupby("rater_id").cumcount() + 1
    told = " ".join(notes(analyse(frame)))
    assert "Krippendorff" in told
    assert "From the first to the last trial" in told


def test_too_few_raters_to_show_anything_are_told() -> None:
    """Of five raters whose differences all have one sign the exact test's p is 2 / 32."""
    frame = crossed(np.random.default_rng(2), 5, 6, ("a", "b", "c"))
    frame["score"] += 3.0 * (frame["system"] == "c")
    result = analyse(frame)
    assert min(p["p_wilcoxon"] for p in result["pairs"]) == 2 / 32
    assert min(p["p_holm"] for p in result["pairs"]) == 3 * 2 / 32
    told = " ".join(notes(result))
    assert "With 5 raters the Wilcoxon test cannot fall below 0.0625, after Holm's" in told
    assert "over 3 pairs below 0.1875: no difference can be shown" in told
    more = crossed(np.random.default_rng(2), 7, 6, ("a", "b", "c"))
    assert "cannot fall below" not in " ".join(notes(analyse(more)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="system_b"), "lacks the column system_b"),
        (lambda f: f.assign(system_b=""), "row 2: system_b is empty"),
        (lambda f: f.assign(choice="c"), "row 2: choice 'c' is none of a, b, tie"),
        (lambda f: f.assign(choice=""), "no rating counts"),
    ],
)
def test_bad_comparisons_get_a_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    write(tmp_path, change(votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7}, 3)))
    assert command.main([str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_the_command_prints_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, frame in enumerate(
        [
            votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7, "z": 0.1}, 5),
            compared(np.random.default_rng(7), 0.5, 0.4, raters=5),
        ]
    ):
        folder = write(tmp_path / str(number), frame)
        assert command.main([str(folder)]) == 0
        assert "95 % interval" in capsys.readouterr().out
        assert command.main([str(folder), "--json"]) == 0
        json.loads(capsys.readouterr().out)
