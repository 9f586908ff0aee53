"""Scores, tables, and that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spark.evaluation import readme, report, runner
from spark.evaluation.scoring import is_right, word_errors
from spark.evaluation.suite import Item


def item(family: str, key: str, *slots: str) -> Item:
    return Item("x", family, "unseen_phrasing", "?", key, key, slots)


@pytest.mark.parametrize(
    ("of", "reply", "right"),
    [
        (item("reasoning", "twelve", "seven", "five"), "Seven plus five is 12.", True),
        (item("reasoning", "five", "five", "zero"), "five plus zero is six", False),
        (item("reasoning", "twenty", "nine", "eleven"), "nine plus eleven is twenty one", False),
        (item("reasoning", "minus three", "two", "five"), "two minus five is three", False),
        (item("reasoning", "minus three", "two", "five"), "two minus five is minus three", True),
        (item("reasoning", "nine", "nine", "four"), "nine is larger", True),
        (item("reasoning", "nine", "nine", "four"), "nine or four is larger", False),
        (item("factual", "lima", "peru"), "the capital of peru is lima", True),
        (item("factual", "panama city", "panama"), "the capital of panama is panama city", True),
        (item("factual", "singapore", "singapore"), "singapore is nice", False),
        (item("factual", "four", "horse"), "a horse has forty four legs", False),
        (item("dialogue", "you are welcome"), "You are welcome!", True),
        (item("dialogue", "you are welcome"), "you are most welcome", False),
        (item("read_aloud", "the tide turns"), "the tide turn", False),
        (item("factual", "lima", "peru"), "", False),
    ],
)
def test_is_right(of: Item, reply: str, right: bool) -> None:
    assert is_right(of, reply) is right


def test_word_errors_count_like_a_plain_edit_distance() -> None:
    def distance(a: list[str], b: list[str]) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
        return row[-1]

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (list(rng.choice(["aa", "b", "c", "d"], rng.integers(1, 8))) for _ in range(2))
        found = word_errors(" ".join(a), " ".join(b))
        assert (found.edits, found.words) == (distance(a, b), len(a))
    assert word_errors("one two", "").edits == 2


def lines(policy: str, hits: list[bool], wers: list[float]) -> list[report.Line]:
    return [
        {"item_id": f"i{i}", "family": "factual", "split": "unseen_phrasing", "policy": policy,
         "correct_text": hit, "correct_heard": hit, "wer": w, "edits": round(10 * w), "words": 10,
         "text_edits": 0, "text_words": 10, "mos_predicted": 3.0, "mean_depth_speech": 14.0,
         "mean_depth_text": 14.0, "traffic_ratio": 1.0, "ms_per_token": 4.0, "finish": "stop"}
        for i, (hit, w) in enumerate(zip(hits, wers, strict=True))
    ]  # fmt: skip


def test_summary_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    hits = rng.random(200) < 0.9
    other = hits & (rng.random(200) < 0.95)
    wers = rng.integers(0, 5, 200) / 10
    summary = report.summarise(
        lines("full", hits.tolist(), wers.tolist()) + lines("spark", other.tolist(), wers.tolist()),
        [],
    )
    full, spark = summary["policies"]["full"], summary["policies"]["spark"]
    exact = stats.binomtest(int(hits.sum()), 200).proportion_ci(method="wilson")
    assert full["correct_text"]["ci95"] == pytest.approx([exact.low, exact.high])
    assert full["wer"]["value"] == pytest.approx(wers.mean())
    gap = spark["against_full"]["correct_heard"]
    assert gap["value"] == pytest.approx(other.mean() - hits.mean())
    boot = stats.bootstrap(
        ((other.astype(float) - hits),), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert gap["ci95"] == pytest.approx([boot.low, boot.high], abs=0.01)
    assert summary["teacher"] is None
    measured = {what: got for what, got, _ in report.goals(summary)}
    assert measured["codec alone, WER"] == "not measured"


def test_a_torn_line_is_made_again_and_whole_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / runner.ITEMS
    whole = json.dumps({"item_id": "a", "policy": "full"}) + "\n"
    path.write_text(whole + '{"item_id": "b", "pol')
    assert runner._done(path) == {"a": {"full"}}
    assert path.read_text() == whole


def test_figures_get_into_a_page_and_nothing_else_changes() -> None:
    hits = [True] * 30
    summary = report.summarise(
        lines("full", hits, [0.1] * 30) + lines("spark", hits, [0.2] * 30), []
    )
    summary |= {
        "model": "m",
        "suite": "builtin",
        "items": 30,
        "limit": None,
        "settings": {"seed": 1},
        "torch": "2",
    }
    page = (
        "above\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n| <!-- ours: speech -->x |\n"
    )
    filled = readme.fill(page, summary)
    assert filled.startswith("above\n<!-- measured: begin -->\n`python -m spark.evaluation")
    assert "old" not in filled
    assert "WER +10.00 points (+10.00 to +10.00) |" in filled
    assert readme.fill(filled, summary) == filled
