"""The paper's claims on small evaluations: pairs, figures by a plain loop, every verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark.evaluation import claims, claims_text, readme, runner
from spark.evaluation import summary as summaries
from tests.test_evaluation_report import folder_of
from tests.test_evaluation_report import lines as made_lines

N = 400
SAME = [i % 10 > 2 for i in range(N)]  # right at full depth
COST = {
    "full": (1.0, 14.0, 14.0), "spark": (0.92, 12.5, 14.0), "confidence": (0.75, 8.0, 14.0),
    "confidence:0.9": (0.93, 10.0, 14.0), "fixed:12": (0.9, 12.0, 14.0),
    "fixed:13": (0.95, 13.0, 14.0), "confidence:text": (0.6, 8.0, 5.0),
}  # fmt: skip


def reply(
    policy: str, lost: int = 0, extra: int = 0, mos: float = 0.0, same: float = 0.8, n: int = N,
    **other: Any,
) -> list[dict[str, Any]]:
    """Lines of a policy that loses every `lost`-th right answer, with `extra` word errors each."""
    hits = [hit and not (lost and i % lost == 0) for i, hit in enumerate(SAME[:n])]
    found = made_lines(policy, hits, [i % 3 + extra for i in range(n)])
    traffic, speech, text = COST[policy]
    for i, line in enumerate(found):
        line |= {
            "traffic_ratio": traffic, "mean_depth_speech": speech, "mean_depth_text": text,
            "mos_predicted": 3 + (i % 5) / 10 + mos, "first_divergence_s": i / 100,
            "same_speech": 1.0 if policy == "full" else same - (i % 2) / 10, **other,
        }  # fmt: skip
    return found


def found(*policies: list[dict[str, Any]], **told: Any) -> dict[str, Any]:
    head = {
        "command": "python -m spark.evaluation", "model": "m", "title": "M", "layers": 14,
        "suite": "x", "margin": 0.05, "torch": "2", "recogniser": "pocketsphinx",
        "policies": [lines[0]["policy"] for lines in policies], **told,
    }  # fmt: skip
    made = claims.tested(head, [line for lines in policies for line in lines])
    return {one["claim"]: one for one in made["claims"]}


def against(name: str, **other: Any) -> list[list[dict[str, Any]]]:
    """SPAR-K as full depth, and another policy."""
    return [reply("full"), reply("spark"), reply(name, **other)]


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({"lost": 4}, "supported"),
        ({"extra": 1}, "supported"),
        ({"extra": -1}, "contradicted"),
        ({"mos": 0.2}, "contradicted"),
        ({}, "not supported"),
        ({"lost": 4, "extra": -1}, "not decided"),  # fewer right answers, fewer word errors
    ],
)
def test_a_schedule_beside_a_confidence_exit_of_equal_traffic(other: Any, verdict: str) -> None:
    claim = found(*against("confidence:0.9", **other))["traffic"]
    assert claim["verdict"] == verdict
    assert [pair["against"] for pair in claim["pairs"]] == ["confidence:0.9"]


def test_no_verdict_without_equal_traffic_or_enough_answers() -> None:
    far = found(*against("confidence", lost=2))["traffic"]
    assert far["verdict"] == "not decided"
    assert "not tested at equal traffic" in far["findings"][0]
    assert "weights read 92.0 % against 75.0 %" in far["findings"][0]
    for n, verdict in ((299, "not decided"), (300, "supported")):
        claim = found(reply("spark", n=n), reply("confidence:0.9", n=n, lost=2))["traffic"]
        assert claim["verdict"] == verdict
    absent = found(reply("full"), reply("spark"))["traffic"]
    assert (absent["verdict"], absent["pairs"]) == ("not decided", [])
    assert absent["findings"][0].startswith("Not measured")


def test_of_several_confidence_exits_the_nearest_in_traffic_counts() -> None:
    both = found(reply("spark"), reply("confidence", lost=2), reply("confidence:0.9"))["traffic"]
    assert [pair["against"] for pair in both["pairs"]] == ["confidence:0.9"]
    assert both["verdict"] == "not supported"


@pytest.mark.parametrize(
    ("shallower", "deeper", "verdict"),
    [
        ({"extra": 1}, {"extra": 1}, "supported"),
        ({"extra": -1}, {"extra": -1}, "contradicted"),
        ({}, {}, "not supported"),
        ({"extra": 1}, {}, "not decided"),  # better than with less, not than with more
    ],
)
def test_fixed_exits_on_either_side_must_agree(shallower: Any, deeper: Any, verdict: str) -> None:
    claim = found(reply("spark"), reply("fixed:12", **shallower), reply("fixed:13", **deeper))
    assert claim["refresh"]["verdict"] == verdict
    assert {pair["against"] for pair in claim["refresh"]["pairs"]} == {"fixed:12", "fixed:13"}


def test_a_fixed_exit_of_the_same_depth_stands_alone_and_a_far_one_decides_nothing() -> None:
    same = reply("fixed:12", mean_depth_speech=12.5, extra=1)
    claim = found(reply("spark"), same, reply("fixed:13"))["refresh"]
    assert [pair["against"] for pair in claim["pairs"]] == ["fixed:12"]
    assert claim["verdict"] == "supported"
    far = found(reply("spark"), reply("fixed:12", mean_depth_speech=7.0, extra=1))["refresh"]
    assert far["verdict"] == "not decided"
    assert "not tested at equal depth" in far["findings"][0]
    # The same distance is near in a model of 40 layers.
    wide = found(reply("spark"), reply("fixed:12", mean_depth_speech=11.0, extra=1), layers=40)
    assert wide["refresh"]["verdict"] == "supported"


@pytest.mark.parametrize(
    ("hits", "verdict"),
    [(lambda i, hit: hit and i % 4, "supported"), (lambda i, hit: hit, "not supported"),
     (lambda i, hit: True, "contradicted")],
)  # fmt: skip
def test_text_that_exits_beside_text_that_does_not(hits: Any, verdict: str) -> None:
    exiting = reply("confidence:text")
    for i, line in enumerate(exiting):
        line["correct_text"] = bool(hits(i, line["correct_text"]))
    claim = found(reply("confidence"), exiting)["text"]
    assert claim["verdict"] == verdict
    assert "text depth 5.00 against 14.00" in claim["findings"][0]
    assert "WER of text read aloud not measured" in claim["findings"][0]


def test_text_read_aloud_counts_by_its_own_words() -> None:
    aloud = [made_lines(name, [True] * 50, [0] * 50, "read_aloud") for name in
             ("confidence", "confidence:text")]  # fmt: skip
    for line in aloud[1]:
        line["text_edits"] = 2
    claim = found(reply("confidence") + aloud[0], reply("confidence:text") + aloud[1])["text"]
    gap = claim["pairs"][0]["measures"]["text_wer"]
    assert (gap["value"], gap["ci95"], gap["n"]) == (0.2, [0.2, 0.2], 50)
    assert claim["verdict"] == "supported"


@pytest.mark.parametrize(
    ("spark", "verdict"),
    [
        ({}, "supported"),
        ({"lost": 4}, "contradicted"),  # 18 points
        ({"extra": 1}, "contradicted"),  # 10 points of WER
        ({"mos": -0.2}, "contradicted"),
        ({"lost": 15}, "not supported"),  # 5 points, the interval reaches beyond 5
        ({"same_speech": 1.0}, "not decided"),  # no token differs
        ({"same_speech": None}, "not decided"),
        ({"n": 299}, "not decided"),
    ],
)
def test_tokens_that_differ_and_sound_that_stays(spark: Any, verdict: str) -> None:
    assert found(reply("full"), reply("spark", **spark))["sound"]["verdict"] == verdict


def test_the_sound_of_a_model_that_is_hardly_ever_right_decides_nothing() -> None:
    full, spark = reply("full", correct_heard=False), reply("spark", correct_heard=False)
    assert found(full, spark)["sound"]["verdict"] == "not decided"


def test_figures_are_those_of_a_plain_loop() -> None:
    spark, other = reply("spark", lost=7), reply("confidence:0.9", extra=1, mos=-0.02)
    spark = spark[5:]  # one item is missing here and there
    other = other[:-3]
    pair = found(spark, other)["traffic"]["pairs"][0]
    rng = np.random.default_rng(5)
    ids = sorted({x["item_id"] for x in spark} & {x["item_id"] for x in other})
    a, b = ({x["item_id"]: x for x in lines} for lines in (spark, other))

    def difference(chosen: list[str], measure: str) -> float:
        total = [0.0, 0.0]
        for side, lines in enumerate((a, b)):
            top, bottom = 0.0, 0.0
            for one in chosen:
                line = lines[one]
                if measure == "wer":
                    top, bottom = top + line["edits"], bottom + line["words"]
                else:
                    field = {"right": "correct_heard", "mos": "mos_predicted"}[measure]
                    top, bottom = top + line[field], bottom + 1
            total[side] = top / bottom
        return total[0] - total[1]

    for measure, gap in pair["measures"].items():
        assert gap["n"] == len(ids) == N - 8
        assert gap["value"] == pytest.approx(difference(ids, measure))
        again = []
        for _ in range(600):
            drawn = [ids[place] for place in rng.integers(len(ids), size=len(ids))]
            again.append(difference(drawn, measure))
        again.sort()
        assert gap["ci95"] == pytest.approx([again[15], again[-16]], abs=0.012)
    # Holm by hand: the smallest p times three, the next times two, never falling.
    raw = [gap["p"] for gap in pair["measures"].values()]
    corrected, before = {}, 0.0
    for rank, place in enumerate(sorted(range(3), key=lambda i: raw[i])):
        before = max(before, min(1.0, raw[place] * (3 - rank)))
        corrected[place] = before
    held = [gap["p_holm"] for gap in pair["measures"].values()]
    assert held == pytest.approx([corrected[i] for i in range(3)])


def test_shares_of_the_same_tokens_are_those_of_a_plain_loop() -> None:
    spark = reply("spark")
    for line in spark[:100]:
        line |= {"same_speech": 1.0, "first_divergence_s": None}
    pair = found(reply("full"), spark)["sound"]["pairs"][0]
    assert pair["same_speech"]["value"] == pytest.approx(sum(x["same_speech"] for x in spark) / N)
    assert pair["identical"]["value"] == 100 / N
    assert pair["first_divergence_s"] == pytest.approx(sum(range(100, N)) / 100 / (N - 100))
    assert pair["apart"]["wer"]["n"] == N - 100


def test_the_command_writes_the_file_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [line for name in COST for line in reply(name)]
    refused = {"item_id": "no", "policy": "spark", "family": "x", "split": "x", "refused": "long"}
    folder = folder_of(tmp_path, [*made, refused])
    assert claims.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    held = json.loads((folder / claims.CLAIMS).read_text())
    assert [one["claim"] for one in held["claims"]] == list(claims_text.CLAIMS)
    for one in held["claims"]:
        assert one["title"] in printed
        assert f"**{one['verdict']}**" in printed
        assert one["findings"][0] in printed
        assert one["command"].endswith("--out DIR && python -m spark.evaluation.claims DIR")
    summaries.write(folder)
    page = readme.fill("<!-- claims: begin -->\nold\n<!-- claims: end -->\n",
                       json.loads((folder / "summary.json").read_text()), None, held)  # fmt: skip
    assert "old" not in page
    assert held["claims"][3]["findings"][0] in page
    (folder / runner.ITEMS).unlink()
    (folder / summaries.ASKED).unlink()
    assert claims.main([str(folder)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
