"""Scores, tables, and that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.evaluation import __main__ as evaluation
from spark.evaluation import answering, figures, fingerprint, readme, report, runner, statistics
from spark.evaluation.scoring import is_right, word_errors
from spark.evaluation.suite import Item
from spark.models import embedded
from tests.tiny import tiny_lm


def item(family: str, key: str, *slots: str) -> Item:
    return Item("x", family, "unseen_phrasing", "?", key, key, slots)


LARGER = replace(item("reasoning", "nine", "nine", "four"), expected="nine is larger")


@pytest.mark.parametrize(
    ("of", "reply", "right"),
    [
        (item("reasoning", "twelve", "seven", "five"), "Seven plus five is 12.", True),
        (item("reasoning", "five", "five", "zero"), "five plus zero is six", False),
        (item("reasoning", "twenty", "nine", "eleven"), "nine plus eleven is twenty one", False),
        (item("reasoning", "minus three", "two", "five"), "two minus five is three", False),
        (item("reasoning", "minus three", "two", "five"), "two minus five is minus three", True),
        (LARGER, "nine is larger", True),
        (LARGER, "nine", True),
        (LARGER, "nine or four is larger", False),
        (LARGER, "nine is smaller", False),
        (item("reasoning", "twelve", "seven", "five"), "twelve is larger", False),
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


def lines(policy: str, hits: list[bool], wers: list[float]) -> list[dict[str, Any]]:
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
    base = lines("full", hits.tolist(), wers.tolist())
    made = lines("spark", other.tolist(), wers.tolist())
    summary = figures.summarise(base + made, [])
    full, spark = summary["policies"]["full"], summary["policies"]["spark"]
    exact = stats.binomtest(int(hits.sum()), 200).proportion_ci(method="wilson")
    assert full["correct_text"]["ci95"] == pytest.approx([exact.low, exact.high])
    assert full["wer"]["value"] == pytest.approx(wers.mean())
    gap = spark["against_full"]["correct_heard"]
    assert gap["value"] == pytest.approx(other.mean() - hits.mean())
    boot = stats.bootstrap(
        ((other.astype(float) - hits),), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    means = statistics.paired_mean(made, base, "correct_heard")
    assert means is not None
    assert means["ci95"] == pytest.approx([boot.low, boot.high], abs=0.01)
    assert summary["teacher"] is None
    measured = {what: got for what, got, _ in report.goals(summary)}
    assert measured["codec alone, WER"] == "not measured"


@pytest.mark.parametrize(
    ("cells", "interval"),
    [
        ((1, 1, 7, 21), (-0.507, -0.026)),  # Fagerland, Lydersen, Laake, Stat Med 33 (2014) 2850
        ((36, 12, 2, 50), (0.0569, 0.3404)),  # Newcombe 1998
    ],
)
def test_newcombes_interval_against_published_ones(
    cells: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    assert statistics.newcombe(*cells) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize("both", [0, 7, 45])
def test_no_discordant_pair_leaves_a_width(both: int) -> None:
    """With none or all right it is Wilson's own end; a bootstrap gave 0 to 0."""
    low, high = statistics.newcombe(both, 0, 0, 45)
    assert low == pytest.approx(-high)
    assert high > 0.03
    if both in (0, 45):
        assert high == pytest.approx(1.959964**2 / (45 + 1.959964**2))


@pytest.mark.parametrize(
    ("n", "right", "lost", "verdict"),
    [
        (400, 0.9, 0, True),
        (400, 0.9, 40, False),
        (299, 0.9, 0, None),
        (400, 0.1, 0, None),
    ],
)
def test_the_margin_is_judged_only_where_it_can_be(
    n: int, right: float, lost: int, verdict: bool | None
) -> None:
    hits = [i < right * n for i in range(n)]
    fewer = [hit and i >= lost for i, hit in enumerate(hits)]
    summary = figures.summarise(
        lines("full", hits, [0.0] * n) + lines("spark", fewer, [0.0] * n), []
    )
    assert summary["policies"]["spark"]["non_inferior"] is verdict
    measured = {what: got for what, got, _ in report.goals(summary)}
    words = {True: ": kept", False: ": not kept", None: ": not decided"}[verdict]
    assert measured["SPAR-K minus full depth, right as heard, all answers"].endswith(words)


def test_every_accuracy_is_of_the_same_answers() -> None:
    """Unseen pairs and what cannot be known count, reading aloud does not."""
    full, spark = (lines(name, [True] * 4, [0.0] * 4) for name in ("full", "spark"))
    for made in (full, spark):
        made[0]["split"] = "unseen_pair"
        made[1] |= {"family": "unknown", "split": "outside"}
        made[2] |= {"family": "read_aloud", "split": "unseen_sentence"}
    spark[2]["correct_heard"] = False
    policies = figures.summarise(full + spark, [])["policies"]
    assert policies["spark"]["correct_heard"]["n"] == policies["full"]["correct_text"]["n"] == 3
    assert policies["spark"]["against_full"]["correct_heard"]["n"] == 3
    assert policies["spark"]["against_full"]["correct_heard"]["value"] == 0
    assert policies["full"]["unseen_pairs_text"]["n"] == 1
    assert policies["full"]["unseen_phrasings_text"]["n"] == 1


def test_the_gap_in_wer_is_that_of_the_table() -> None:
    """Long replies weigh more, and a reply without words keeps its edits."""
    rng = np.random.default_rng(3)
    full, other = (lines(name, [True] * 80, [0.0] * 80) for name in ("full", "spark"))
    for line in (*full, *other):
        line |= {"edits": int(rng.integers(0, 6)), "words": int(rng.integers(1, 30))}
    other[0] |= {"words": 0, "edits": 4, "wer": None}
    policies = figures.summarise(full + other, [])["policies"]
    gap = policies["spark"]["against_full"]["wer"]
    assert gap["value"] == pytest.approx(
        policies["spark"]["wer"]["value"] - policies["full"]["wer"]["value"]
    )
    assert gap["n"] == 80

    def rate(e: np.ndarray, w: np.ndarray, e0: np.ndarray, w0: np.ndarray, axis: int) -> np.ndarray:
        return e.sum(axis) / w.sum(axis) - e0.sum(axis) / w0.sum(axis)

    columns = [
        np.array([x[k] for x in made], float) for made in (other, full) for k in ("edits", "words")
    ]
    boot = stats.bootstrap(
        columns, rate, paired=True, vectorized=True, method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval  # fmt: skip
    assert gap["ci95"] == pytest.approx([boot.low, boot.high], abs=0.005)


def job(out: Path, **settings: Any) -> answering.Job:
    return answering.Job("none", CompareSettings(**settings), None, out)


def test_a_folder_takes_one_run_only(tmp_path: Path) -> None:
    first, more = item("factual", "lima"), replace(item("factual", "oslo"), item_id="y")
    results = [tmp_path / runner.ITEMS]
    fingerprint.claim(job(tmp_path, seed=1), [first], results)
    fingerprint.claim(job(tmp_path, seed=2), [first], results)  # no lines yet: nothing to mix
    results[0].write_text("{}\n")
    fingerprint.claim(job(tmp_path, seed=2), [first], results)
    fingerprint.claim(job(tmp_path, seed=2), [more], results)  # another --limit
    held = (tmp_path / fingerprint.RUN).read_text()
    for other, items, words in (
        (job(tmp_path, seed=3), [first], "seed 2, now 3.*--out, or delete"),
        (job(tmp_path, seed=2, head="untrained"), [first], "head fitted, now untrained"),
        (replace(job(tmp_path, seed=2), fixed_exit=5), [first], "fixed exit None, now 5"),
        (replace(job(tmp_path, seed=2), options=(("bits", 8),)), [first], "bits None, now 8"),
        (job(tmp_path, seed=2), [replace(first, prompt="other?")], "other texts of 1 items"),
        (job(tmp_path, seed=2), [replace(more, key="rome")], "other texts of 1 items"),
    ):
        with pytest.raises(ValueError, match=words):
            fingerprint.claim(other, items, results)
    assert (tmp_path / fingerprint.RUN).read_text() == held
    (tmp_path / fingerprint.RUN).unlink()
    with pytest.raises(ValueError, match=r"no run\.json"):
        fingerprint.claim(job(tmp_path, seed=2), [first], results)


def test_retrained_weights_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "model", tmp_path / "out"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"early")
    monkeypatch.setattr(embedded, "FOLDER", weights)
    monkeypatch.setattr(evaluation, "load", lambda name, **_: tiny_lm())  # these are no weights
    asked = replace(job(out), model="embedded")
    out.mkdir()
    (out / runner.ITEMS).write_text("{}\n")
    fingerprint.claim(asked, [], [])
    fingerprint.claim(asked, [], [out / runner.ITEMS])
    (weights / "model.safetensors").write_bytes(b"late")
    assert evaluation.main(["--out", str(out), "--limit", "3"]) == 2
    assert "other contents of model.safetensors" in capsys.readouterr().err
    assert not (out / "summary.json").exists()


def test_the_code_that_decides_is_where_the_fingerprint_looks() -> None:
    root = Path(fingerprint.__file__).parent.parent
    assert [part for part in fingerprint._DECIDING if not list(root.glob(part))] == []
    held = {path for part in fingerprint._DECIDING for path in root.glob(part)}
    script = "import sys, spark.evaluation.runner as r; print(*(m.__file__ for n, m in "
    script += "sys.modules.items() if n.startswith('spark.')), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True,
                            text=True, cwd=root.parent).stdout.split()  # fmt: skip
    # What is written or heard beside replies, their clock, what is asked (its texts are hashed).
    deciding_nothing = {"bundle.py", "findings.py", "voice.py", "timing.py", "fingerprint.py",
                        "suite.py", "questions.py", "executors.py", "jsonl.py", "pool.py",
                        "runner.py", "__init__.py"}  # fmt: skip
    assert {Path(name) for name in loaded if Path(name).name not in deciding_nothing} <= held


def test_what_cannot_run_is_refused_before_any_worker_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, says in (
        (["--model", "nope"], "no model"),
        (["--exit-layer", "99"], "99"),
        (["--policies", "full,deep"], "no policy 'deep'"),
        (["--policies", "spark:8"], "no exit at layer 8"),
    ):
        assert evaluation.main(["--out", str(tmp_path), "--limit", "1", *given]) == 2
        assert says in capsys.readouterr().err


def test_lines_say_what_speech_rows_left_out(tmp_path: Path) -> None:
    lm = tiny_lm()
    asked = replace(job(tmp_path, exit_layer=2, head="untrained"), fixed_exit=2)
    made = answering.answer(lm, asked, [replace(item("factual", "lima", "peru"), prompt="hello")])
    assert [line["policy"] for line in made] == ["full", "spark", "confidence", "fixed"]
    for line in made:
        assert line["outside_mass_n"] > 0
        assert 0 <= line["outside_mass_mean"] <= line["outside_mass_max"] <= 1
    other = answering.answer(lm, asked, [replace(item("factual", "lima", "peru"), item_id="y")])
    assert len({line["seed"] for line in made}) == len({line["seed"] for line in other}) == 1
    assert made[0]["seed"] != other[0]["seed"]


def test_lines_say_how_much_of_the_speech_is_full_depths(tmp_path: Path) -> None:
    lm = tiny_lm()
    asked = replace(job(tmp_path, exit_layer=2, head="untrained", temperature=0.0), fixed_exit=2)
    one = replace(item("factual", "lima", "peru"), prompt="hello")
    made = answering.answer(lm, asked, [one])
    assert (made[0]["same_speech"], made[0]["first_divergence_s"]) == (1, None)
    replies, engine = {}, Engine(lm, head="untrained")
    for policy in answering.policies_of(asked, lm):
        prefill = engine.prefill(asked.settings.prompt(lm, one.prompt).ids)
        sampling = replace(asked.settings, seed=answering.seed_of(asked, one)).sampling()
        reply = engine.generate(prefill, policy, sampling, asked.settings.limit(lm))
        for _ in reply:
            pass
        replies[policy.name] = reply.trace
    full = replies["full"].codes()
    parted = 0
    for line in made[1:]:
        codes, same, first = replies[line["policy"]].codes(), 0, None
        for place in range(max(len(codes), len(full))):
            if codes[place : place + 1] == full[place : place + 1]:
                same += 1
            elif first is None:
                first = place / replies["full"].frame_rate
        assert line["same_speech"] == same / max(len(codes), len(full))
        assert line["first_divergence_s"] == first
        parted += first is not None
    assert parted
    # Lines that are made later, without full depth's, are the same.
    later = answering.answer(lm, asked, [one], ("spark", "fixed"))
    assert [line["policy"] for line in later] == ["spark", "fixed"]
    for line, before in zip(later, (made[1], made[3]), strict=True):
        for field in ("same_speech", "first_divergence_s", "text"):
            assert line[field] == before[field]


def test_a_batch_gives_the_lines_of_its_items_alone_but_for_the_time(tmp_path: Path) -> None:
    lm = tiny_lm(dtype=torch.float64)
    asked = replace(job(tmp_path, exit_layer=2), fixed_exit=2)
    items = [
        replace(item("factual", "lima"), prompt=prompt, item_id=prompt)
        for prompt in ("hello", "a longer question than that", "ok")
    ]
    together = answering.answer(lm, replace(asked, batch=2), items)
    alone = [line for one in items for line in answering.answer(lm, asked, [one])]
    for time in ("ms_per_token", "ms_per_text_token", "ms_per_speech_token"):
        assert all(line.pop(time) > 0 for line in alone)
        assert all(line.pop(time) is None for line in together)
    assert together == alone
    with pytest.raises(ValueError, match="--batch 1 or more"):
        next(runner.run(replace(asked, batch=0), items))


def test_the_command_is_the_one_given() -> None:
    plain = evaluation._arguments().parse_args(["--out", "x", "--workers", "2"])
    assert evaluation.command(plain) == (
        "python -m spark.evaluation --model embedded --suite builtin"
    )
    given = ["--limit", "60", "--seed", "3", "--temperature", "0.0", "--exit-layer", "9",
             "--fixed-exit", "7", "--head", "untrained"]  # fmt: skip
    words = evaluation.command(evaluation._arguments().parse_args(given)).split()
    assert words[3:] == ["--model", "embedded", "--suite", "builtin", *given]


def test_a_torn_line_is_made_again_and_whole_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / runner.ITEMS
    whole = json.dumps({"item_id": "a", "policy": "full"}) + "\n"
    path.write_text(whole + '{"item_id": "b", "pol')
    assert runner._done(path) == {"a": {"full"}}
    assert path.read_text() == whole


def test_figures_get_into_a_page_and_nothing_else_changes() -> None:
    hits = [True] * 30
    summary = figures.summarise(
        lines("full", hits, [0.1] * 30) + lines("spark", hits, [0.2] * 30), []
    )
    summary |= {
        "model": "m",
        "suite": "builtin",
        "items": 30,
        "limit": None,
        "settings": {"seed": 1},
        "torch": "2",
        "command": "python -m spark.evaluation --seed 3",
    }
    page = (
        "above\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n| <!-- ours: speech -->x |\n"
        "| <!-- ours: time -->not yet |\n| <!-- ours: fixed -->x |\n"
    )
    filled = readme.fill(page, summary)
    assert filled.startswith(
        "above\n<!-- measured: begin -->\n`python -m spark.evaluation --seed 3`: 30 items"
    )
    assert "Right: of all 30 answers" in filled
    assert "old" not in filled
    assert "WER +10.00 points (+10.00 to +10.00) |" in filled
    assert "<!-- ours: time -->not yet |" in filled
    assert "<!-- ours: fixed -->half depth instead of the same depth: fixed exit: right" in filled
    assert readme.fill(filled, summary) == filled
    decode = {"rows": [{"policy": "spark", "time_ratio": 0.931, "traffic_ratio": 0.9}],
              "speedup_over_generate": 2.04, "speedup_over_compiled_generate": None,
              "device": "cpu", "dtype": "float32", "threads": 1}  # fmt: skip
    assert (
        "<!-- ours: time -->SPAR-K takes 93.1 % of full depth's time a token and reads 90.0 % of "
        "its weights; full depth is 2.0 times as fast as transformers' generate, "
        "compiled not measured (cpu, float32, threads: 1) |"
    ) in readme.fill(filled, summary, {"decode": decode})
    decode["speedup_over_compiled_generate"] = 1.5
    assert "compiled 1.5 times (cpu" in readme.fill(filled, summary, {"decode": decode})


def test_a_fixed_exit_is_called_by_its_measured_depth() -> None:
    full, fixed = (lines(name, [True] * 5, [0.1] * 5) for name in ("full", "fixed"))
    for line in fixed:
        line["mean_depth_speech"] = 7.25
    summary = figures.summarise(full + fixed, [])
    label = "fixed exit (speech depth 7.25 of 14.00)"
    assert readme.beside_the_paper(summary)["fixed"].startswith(
        f"half depth instead of the same depth: {label}: right as heard"
    )
    row, errors = [row for row in report.goals(summary) if row[0].startswith(label)]
    assert "+0.0 points, 95 % -" in row[1]
    assert row[2] == "clearly worse: upper end below 0"
    assert errors[0].endswith("WER of speech")
    assert errors[1] == "+0.0 points, 95 % +0.0 to +0.0"
    assert errors[2] == "clearly worse: lower end above 0"
