"""What other packages say of the same ratings, to 1e-6, or why they say something else.

mean-opinion-score (crowdMOS), krippendorff, statsmodels, scipy and choix. Where ours differ, the
difference is put into the other's figures or ours, and then they agree.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import choix
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from listening_test import preference
from listening_test.agreement import Level, krippendorff_alpha, rater_correlations
from listening_test.analysis import Plan, analyse
from listening_test.differences import Layout, difference
from listening_test.mixed_model import mixed_model
from listening_test.preference import bradley_terry
from listening_test.simulation import Scores, Spreads, design_once, simulated_once
from listening_test.statistics import crossed_mean, variance_components
from tests.test_listening_analysis import votes
from tests.test_listening_statistics import crossed

DATA = Path(__file__).parent / "data"
CROWDMOS: list[dict[str, Any]] = json.loads((DATA / "crowdmos.json").read_text())


def of_crowdmos(table: np.ndarray) -> float:
    """The half-width by crowdMOS' own formula.

    It sets the same three parts of the variance as we do, but takes them from variances over n
    instead of n - 1, and the smaller side less one as degrees of freedom.
    """
    kept = ~np.isnan(table)
    sums = [np.nanvar(table, axis=1).mean(), np.nanvar(table, axis=0).mean(), np.nanvar(table)]
    item, rater, rest = np.maximum(np.linalg.solve([[1, 0, 1], [0, 1, 1], [1, 1, 1]], sums), 0)
    n, per_item, per_rater = kept.sum(), kept.sum(axis=0), kept.sum(axis=1)
    variance = (item * (per_item**2).sum() + rater * (per_rater**2).sum()) / n**2 + rest / n
    return float(stats.t.ppf(0.975, min(table.shape) - 1) * math.sqrt(variance))


@pytest.mark.parametrize("case", CROWDMOS, ids=range(len(CROWDMOS)))
def test_mos_is_crowdmos_and_its_interval_differs_for_a_known_reason(case: dict[str, Any]) -> None:
    table = np.array(case["ratings"], dtype=float)
    raters, items = np.indices(table.shape)
    kept = ~np.isnan(table)
    estimate = crossed_mean(table[kept], raters[kept], items[kept])
    assert estimate.mean == pytest.approx(case["mos"], abs=1e-6)
    assert of_crowdmos(table) == pytest.approx(case["ci95"], abs=1e-6)
    low, high = estimate.interval() or (0, 0)
    assert (high - low) / 2 == pytest.approx(case["ci95"], rel=0.2)


@pytest.mark.skipif(
    importlib.util.find_spec("mean_opinion_score") is None,
    reason="mean-opinion-score needs Python 3.11; its figures are recorded, see above",
)
def test_mean_opinion_score_itself_says_what_is_recorded() -> None:
    from mean_opinion_score import get_ci95, get_mos

    for case in CROWDMOS:
        table = np.array(case["ratings"], dtype=float)
        assert get_mos(table) == pytest.approx(case["mos"], abs=1e-9)
        assert get_ci95(table) == pytest.approx(case["ci95"], abs=1e-9)
    scores = crossed(np.random.default_rng(41), 14, 11, ("a",))
    table = scores.pivot_table(index="rater_id", columns="item_id", values="score").to_numpy()
    assert get_mos(table) == pytest.approx(analyse(scores)["systems"]["a"]["mos"], abs=1e-6)
    assert get_ci95(table) == pytest.approx(of_crowdmos(table), abs=1e-6)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_the_package_krippendorff(level: Level) -> None:
    for case in json.loads((DATA / "krippendorff.json").read_text()):
        table = np.array(case["ratings"], dtype=float)
        raters, units = np.indices(table.shape)
        found = krippendorff_alpha(units.ravel(), raters.ravel(), table.ravel(), level)
        assert found == pytest.approx(case["alpha"][level], abs=1e-6)


def test_the_variances_are_those_of_statsmodels_reml() -> None:
    """In a complete table with no negative part the analysis of variance is REML's answer."""
    frame = crossed(np.random.default_rng(12), 14, 11, ("a",))
    raters, items = frame["rater_id"], frame["item_id"]
    ours = variance_components(frame["score"].to_numpy(), raters, items)
    assert min(ours) > 0.05
    model = MixedLM(
        frame["score"].to_numpy(), np.ones((len(frame), 1)), groups=np.ones(len(frame)),
        exog_vc=sm.regression.mixed_linear_model.VCSpec(
            ["item", "rater"], [[["i"]], [["r"]]],
            [[pd.get_dummies(items).to_numpy(float)], [pd.get_dummies(raters).to_numpy(float)]],
        ),
    )  # fmt: skip
    fitted = model.fit(reml=True, gtol=1e-10)
    # Its search stops a little before the end: the variances agree to 1e-4, their error to 1e-6.
    assert [*fitted.vcomp[::-1], fitted.scale] == pytest.approx(list(ours), abs=1e-4)
    estimate = crossed_mean(frame["score"].to_numpy(), raters, items)
    assert fitted.fe_params[0] == pytest.approx(estimate.mean, abs=1e-6)
    assert fitted.bse_fe[0] == pytest.approx(estimate.se, abs=1e-6)


def incomplete(seed: int) -> pd.DataFrame:
    frame = crossed(np.random.default_rng(seed), 16, 12, ("a", "b"))
    return frame[np.random.default_rng(seed + 1).random(len(frame)) < 0.7].reset_index(drop=True)


def test_unpaired_differences_are_near_a_mixed_models() -> None:
    """Balanced incomplete blocks: restricted likelihood estimates the same five variances.

    Method and likelihood differ where a variance is cut at nought, hence many raters and texts.
    """
    spreads = Spreads(0.5, 0.4, 0.4, 0.4, 0.6)
    for seed in range(2):
        who, what, which = design_once(60, 40, 20, seed)
        rng = np.random.default_rng(seed)
        scores = simulated_once(rng, (who, what, which), Scores(spreads, rounded=False), 0.3)
        frame = pd.DataFrame({"rater": who, "item": what, "sign": which - 0.5, "score": scores})
        parts = {
            f"{name}_{kind}": f"0 + C({name}){by}"
            for name in ("rater", "item") for kind, by in (("all", ""), ("gap", ":sign"))
        }  # fmt: skip
        fitted = MixedLM.from_formula(
            "score ~ sign", frame, groups=np.ones(len(frame)), vc_formula=parts, use_sparse=True
        ).fit(reml=True)
        gap = Layout.of(who, what, which == 1).difference(scores)
        assert gap.mean == pytest.approx(fitted.params["sign"], abs=0.01)
        assert gap.se == pytest.approx(fitted.bse["sign"], rel=0.06)


def test_raters_who_heard_one_system_each_are_independent_samples() -> None:
    """Texts make no difference here, so the classical error of two samples of rater means holds."""
    rng = np.random.default_rng(8)
    own = rng.normal(0, 1, 40)
    frame = pd.DataFrame(
        [(r, i, "ab"[r % 2], own[r] + rng.normal(0, 0.3)) for r in range(40) for i in range(12)],
        columns=["rater_id", "item_id", "system", "score"],
    )
    means = frame.groupby(["system", "rater_id"])["score"].mean()
    classical = stats.ttest_ind(means["a"], means["b"])
    gap = difference(frame, "a", "b")
    assert gap.mean / gap.se == pytest.approx(classical.statistic, rel=0.05)


def test_the_mixed_model_is_statsmodels_own() -> None:
    """Fitted from a formula as a user would; ours says the same of an incomplete table."""
    frame = incomplete(3)
    ours = mixed_model(frame, ["b", "a"])["differences"]["a"]
    fitted = MixedLM.from_formula(
        "score ~ C(system, Treatment('b'))", frame, groups=np.ones(len(frame)),
        vc_formula={"rater": "0 + C(rater_id)", "item": "0 + C(item_id)"},
    ).fit(reml=True)  # fmt: skip
    name = "C(system, Treatment('b'))[T.a]"
    assert ours["difference"] == pytest.approx(fitted.params[name], abs=1e-6)
    assert ours["ci95"] == pytest.approx(list(fitted.conf_int().loc[name]), abs=1e-6)


def test_non_inferiority_and_equivalence_are_statsmodels_tost() -> None:
    """With one text the raters are the units, and ours is the paired t test."""
    for seed in range(6):
        frame = crossed(np.random.default_rng(seed), 40, 1, ("a", "b"))
        (pair,) = analyse(frame, Plan(0.3))["pairs"]
        wide = frame.pivot_table(index="rater_id", columns="system", values="score")
        p, lower, _ = ttost_paired(wide["a"], wide["b"], -0.3, 0.3)
        assert pair["p_equivalent"] == pytest.approx(p, abs=1e-6)
        assert pair["p_non_inferior"] == pytest.approx(lower[1], abs=1e-6)
        assert pair["equivalent"] is bool(p < 0.05)
        assert pair["non_inferior"] is bool(lower[1] < 0.025)
        t = stats.ttest_rel(wide["a"], wide["b"]).confidence_interval(0.95)
        assert pair["ci95"] == pytest.approx(list(t), abs=1e-6)
        assert pair["p_wilcoxon"] == pytest.approx(
            stats.wilcoxon(wide["a"], wide["b"]).pvalue, abs=1e-6
        )


def test_shares_are_scipys_and_statsmodels_binomial() -> None:
    frame = votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7}, 40)
    (pair,) = analyse(frame)["preferences"]
    won, n = pair["wins_a"], pair["wins_a"] + pair["wins_b"]
    assert pair["p_binomial"] == pytest.approx(stats.binomtest(won, n).pvalue, abs=1e-6)
    exact = proportion_confint(won, n, method="beta")
    assert pair["share_ci95_naive"] == pytest.approx(list(exact), abs=1e-6)


def test_strengths_are_choix_and_the_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """choix from a list of votes, with the same weak pull; without it any maximum likelihood."""
    frame = votes(np.random.default_rng(5), {"x": 0.0, "y": 0.7, "z": 1.4}, 40)
    names = ["x", "y", "z"]
    untied = frame[frame["choice"] != "tie"]
    first, second = (untied[c].map(names.index).to_numpy() for c in ("system", "system_b"))
    won = (untied["choice"] == "a").to_numpy()
    pairs = list(zip(np.where(won, first, second), np.where(won, second, first), strict=True))

    def ours() -> list[float]:
        found = bradley_terry(frame, names)
        assert found is not None
        return [found[name]["strength"] for name in names]

    listed = choix.ilsr_pairwise(3, pairs, alpha=0.01)
    assert ours() == pytest.approx(list(listed - listed.mean()), abs=1e-6)
    monkeypatch.setattr(preference, "_REGULARISATION", 0.0)
    free = choix.opt_pairwise(3, pairs, alpha=0.0, tol=1e-12)
    assert ours() == pytest.approx(list(free - free.mean()), abs=1e-6)
    design = np.eye(3)[first] - np.eye(3)[second]
    logit = sm.Logit(won.astype(float), design[:, 1:]).fit(disp=0).params
    whole = np.array([0.0, *logit])
    assert ours() == pytest.approx(list(whole - whole.mean()), abs=1e-6)


def test_rater_correlations_are_scipys() -> None:
    frame = crossed(np.random.default_rng(3), 6, 8, ("a", "b"))
    table = frame.pivot_table(index="rater_id", columns="stimulus_id", values="score")
    for rater, r in rater_correlations(frame).items():
        others = table.drop(index=rater).mean()
        assert r == pytest.approx(stats.pearsonr(table.loc[rater], others).statistic, abs=1e-6)
