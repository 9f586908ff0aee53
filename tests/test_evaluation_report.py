"""Tables, verdicts, files and the page of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from spark import jsonl
from spark.evaluation import figures, paper, report, runner, statistics, summary, tables
from spark.evaluation.figures import summarise
from tests.browser import accessible, chromium, local_page

RNG = np.random.default_rng(0)


def lines(
    policy: str, hits: list[bool], edits: list[int], family: str = "web_questions"
) -> list[dict[str, Any]]:
    return [
        {"item_id": f"{family}-{i}", "family": family, "split": "test", "policy": policy,
         "prompt": "Where?", "expected": "Rome", "text": "<b>in rome</b>", "heard": "=in rome",
         "correct_text": hit, "correct_heard": hit, "correct_heard_numbers": True,
         "wer": edit / 10, "edits": edit, "words": 10, "text_edits": 0, "text_words": 10,
         "mos_predicted": 3.0 + edit / 100, "mean_depth_speech": 14.0, "mean_depth_text": 14.0,
         "traffic_ratio": 0.9, "traffic_ratio_text": 1.0, "traffic_ratio_speech": 0.8,
         "ms_per_token": 4.0, "ms_per_text_token": 5.0, "ms_per_speech_token": 3.0,
         "finish": "stop"}
        for i, (hit, edit) in enumerate(zip(hits, edits, strict=True))
    ]  # fmt: skip


def drawn(n: int, right: float) -> tuple[list[bool], list[int]]:
    return (RNG.random(n) < right).tolist(), RNG.integers(0, 4, n).tolist()


def folder_of(path: Path, made: list[dict[str, Any]], **told: Any) -> Path:
    jsonl.append(path / runner.ITEMS, made)
    summary.ask(
        path,
        {
            "command": "python -m spark.evaluation", "model": "m", "title": "M", "layers": 14,
            "suite": "web_questions", "limit": None, "settings": {"seed": 1}, "fixed_exit": None,
            "margin": 0.05, "torch": "2", "spoken": False, "recogniser": "pocketsphinx",
            "policies": list(dict.fromkeys(one["policy"] for one in made)), **told,
        },
        list(dict.fromkeys(one["item_id"] for one in made)),
    )  # fmt: skip
    return path


def three(n: int = 400) -> list[dict[str, Any]]:
    """Full depth, one that loses nothing, one that loses much."""
    hits, edits = drawn(n, 0.7)
    worse = [hit and i % 3 > 0 for i, hit in enumerate(hits)]
    made = lines("full", hits, edits) + lines("spark", hits, edits)
    return made + lines("fixed:7", worse, [edit + 2 for edit in edits])


def test_p_values_are_the_paired_bootstraps_and_holms() -> None:
    n = 300
    hits, edits = drawn(n, 0.6)
    made = lines("full", hits, edits)
    for name, lost in (("a", 0.0), ("b", 0.05), ("c", 0.2)):
        fewer = [hit and x >= lost for hit, x in zip(hits, RNG.random(n), strict=True)]
        made += lines(name, fewer, edits)
    policies = summarise(made, [], ("full", "a", "b", "c"))["policies"]
    gaps = [policies[name]["against_full"]["correct_heard"] for name in "abc"]
    corrected = multipletests([gap["p"] for gap in gaps], method="holm")[1]
    assert [gap["p_holm"] for gap in gaps] == pytest.approx(list(corrected))
    assert gaps[0]["p"] == 1
    # McNemar's exact test asks the same of the same pairs.
    lost = round(-gaps[1]["value"] * n)
    assert gaps[1]["p"] == pytest.approx(stats.binomtest(0, lost).pvalue, abs=0.01)
    assert gaps[2]["p"] == pytest.approx(2 / 2001)
    wer = policies["a"]["against_full"]["wer"]
    assert (wer["value"], wer["p"]) == (0, 1)


def test_the_mean_of_sets_weighs_sets_alike_and_draws_within_them() -> None:
    small, large = RNG.random(40), (RNG.random(400) < 0.5).astype(float)
    found = statistics.mean_of_sets({"a": small.tolist(), "b": large.tolist(), "c": []})
    assert found is not None
    assert found["n"] == 440
    assert found["value"] == pytest.approx((small.mean() + large.mean()) / 2)
    spread = np.sqrt(small.var() / 40 + large.var() / 400) / 2  # of the mean of two means
    assert found["ci95"] == pytest.approx(
        [found["value"] - 1.96 * spread, found["value"] + 1.96 * spread], abs=0.01
    )
    assert statistics.mean_of_sets({}) is None


def test_a_pair_of_sets_is_compared_item_by_item() -> None:
    hits, edits = drawn(50, 0.5)
    base = lines("full", hits, edits) + lines("full", hits, edits, "trivia_qa")
    other = lines("x", [True] * 50, edits) + lines("x", hits[:-1], edits[:-1], "trivia_qa")
    gap = statistics.paired_sets(other, base, figures.points)
    assert gap is not None
    assert gap["n"] == 99
    assert gap["value"] == pytest.approx((1 - np.mean(hits)) / 2)


def test_what_is_shown_and_what_is_not_in_words() -> None:
    found = summarise(three(), [], ("full", "spark", "fixed:7"))
    found |= {"margin": 0.05}
    told = tables.verdicts(found)
    assert told[0].startswith("spark is not inferior to full depth in answers right as heard, "
                              "margin 5 points: +0.00 points, 95 % -")  # fmt: skip
    assert told[1].startswith("spark is not inferior to full depth in word errors")
    assert told[2].startswith("fixed:7, answers right as heard: -")
    assert told[2].endswith("margin 5 points, is not shown.")
    assert told[3].endswith("is not shown.")
    few = tables.verdicts(summarise(three(100), [], ("full", "spark", "fixed:7")))
    assert all("Not decided: that takes 300 items" in sentence for sentence in few)
    strict = tables.verdicts(summarise(three(), [], ("full", "spark", "fixed:7"), 0.001))
    assert all(sentence.endswith("is not shown.") for sentence in strict[:1] + strict[2:])


def test_refused_prompts_count_nowhere_and_are_told() -> None:
    made = three(10)
    refused = [
        {"item_id": "no", "family": "web_questions", "policy": name, "refused": "too long"}
        for name in ("full", "spark")
    ]
    found = summarise(made + refused, [], ("full", "spark", "fixed:7"))
    assert found["policies"]["full"]["correct_heard"]["n"] == 10
    assert found["policies"]["full"]["refused"] == 1
    made[0]["finish"] = "length"
    told = tables.left_out(summarise(made + refused, [], ("full", "spark", "fixed:7")))
    assert told[0] == "full: 1 prompts were not taken by the model and count nowhere."
    assert told[1].startswith("full: 1 of 10 replies were cut off")


def test_the_table_has_a_column_a_set_and_none_without_a_figure() -> None:
    made = three(20) + lines("full", *drawn(5, 0.5), "alpaca_eval")
    for line in made:
        if line["family"] == "alpaca_eval":
            line |= {"correct_text": None, "correct_heard": None, "correct_heard_numbers": None}
            line["judged"] = {"chat-10, m, heard": {"score": 0.6, "invalid": 1}}
    table = tables.main_table(summarise(made, [], ("full", "spark", "fixed:7")))
    assert table.header[:4] == ("policy", "Web Questions", "AlpacaEval", "mean of sets")
    assert "UTMOSv2" not in table.header
    full, spark, _ = table.rows
    assert full[2].startswith("60.0 %")
    assert spark[2] == "–"
    assert all(len(row) == len(table.header) for row in table.rows)
    cost = tables.cost_table(summarise(made, [], ("full", "spark", "fixed:7")))
    assert cost.rows[1][1:] == ("100.0 %", "80.0 %", "90.0 %", "5.00", "3.00", "4.00")


def test_mos_predictors_never_share_a_column() -> None:
    made = three(10)
    for line in made:
        line |= {"mos_predicted": 3.0, "mos_utmosv2": 4.0}
    table = tables.main_table(summarise(made, [], ("full", "spark", "fixed:7")))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["DNSMOS"], row["UTMOSv2"]) == ("3.00", "4.00")


def test_the_papers_figures_stand_beside_the_same_model_only() -> None:
    found = summarise(three(20), [], ("full", "spark", "fixed:7"))
    step = found | {"title": "Step-Audio-2-mini", "layers": 28}
    table = tables.paper_table(step)
    assert table is not None
    assert [row[1] for row in table.rows] == ["the paper"] * 4 + ["here"] * 3
    assert table.rows[1][2:] == ("55.29", "3.67", "1.51 %", "25.00")
    assert tables.paper_table(found | {"title": "Step-Audio-2-mini", "layers": 4}) is None
    assert tables.paper_table(found | {"title": "Embedded (CPU)", "layers": 14}) is None
    # Its claims, as the issue of the paper's method has them: SPAR-K close, fixed exit far.
    full, spark, fixed, _ = paper.published("Step-Audio-2-mini", 28)
    assert abs(spark.mean - full.mean) < abs(fixed.mean - full.mean)


def test_the_files_say_the_same_and_hold_no_formula(tmp_path: Path) -> None:
    found = summary.write(folder_of(tmp_path, three(12)))
    assert json.loads((tmp_path / "summary.json").read_text()) == found
    items = list(csv.DictReader((tmp_path / "items.csv").open(newline="")))
    assert len(items) == 36
    assert {row["heard"] for row in items} == {"'=in rome"}
    assert {row["text"] for row in items} == {"<b>in rome</b>"}
    rows = {row["policy"]: row for row in csv.DictReader((tmp_path / "summary.csv").open())}
    assert float(rows["fixed:7"]["wer.value"]) == found["policies"]["fixed:7"]["wer"]["value"]
    low = found["policies"]["spark"]["against_full"]["wer"]["ci95"][0]
    assert float(rows["spark"]["against_full.wer.low"]) == low
    with pytest.raises(ValueError, match="holds no evaluation"):
        summary.write(tmp_path / "elsewhere")


def test_a_summary_is_of_what_was_asked_for(tmp_path: Path) -> None:
    made = three(12)
    folder_of(tmp_path, made, policies=["full", "fixed:7"])
    found = summary.write(tmp_path)
    assert list(found["policies"]) == ["full", "fixed:7"]
    told = json.loads((tmp_path / summary.ASKED).read_text())
    summary.ask(tmp_path, told, told.pop("asked")[:5])
    assert summary.write(tmp_path)["policies"]["full"]["correct_heard"]["n"] == 5


def test_goals_are_the_embedded_models(tmp_path: Path) -> None:
    summary.write(folder_of(tmp_path, three(12)))
    assert "Goals of the embedded model" not in (tmp_path / "report.html").read_text()
    told = json.loads((tmp_path / summary.ASKED).read_text()) | {"suite": "builtin"}
    summary.ask(tmp_path, told, told.pop("asked"))
    found = summary.write(tmp_path)
    assert "Goals of the embedded model" in (tmp_path / "report.html").read_text()
    assert report.goals(found)


@pytest.mark.browser
def test_the_page_opens_from_a_file_without_a_network(tmp_path: Path) -> None:
    made = three(40)
    summary.write(folder_of(tmp_path, made, command="x --suite <script>alert(1)</script>"))
    with chromium() as browser, local_page(browser) as page:
        page.context.set_offline(True)
        page.set_content((tmp_path / "report.html").read_text(), wait_until="load")
        page.wait_for_selector("#gaps .main-svg")
        assert page.locator(".js-plotly-plot").count() == 3
        assert page.locator("code").inner_text().endswith("<script>alert(1)</script>")
        assert page.locator("h2").first.inner_text() == "Against full depth"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        accessible(page)
