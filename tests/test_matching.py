"""Confidence exit at a threshold that reads as much as SPAR-K."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.evaluation import matching
from spark.evaluation.answering import Job, prefill_of, sampling_of
from spark.evaluation.suite import Item
from spark.models.base import SpokenLM
from spark.policies import named
from tests.tiny import tiny_lm

LM = tiny_lm(layers=6, exits=(2, 4, 5))
ITEMS = [Item(f"i{n}", "factual", "test", f"ask {n}", "said", "words") for n in range(6)]


def reads(lm: SpokenLM, job: Job, word: str) -> float:
    """Mean traffic ratio of a policy, a reply at a time."""
    engine, found = Engine(lm), []
    for item in ITEMS:
        start = prefill_of(engine, job, item)
        policy = named(word, lm, job.settings)
        made = engine.generate(start, policy, sampling_of(job, item), job.settings.limit(lm))
        for _ in made:
            pass
        found.append(made.trace.summary()["traffic_ratio"])
    return mean(found)


@pytest.mark.parametrize("exit_layer", [2, 4])
def test_the_threshold_reads_as_much_as_spark(tmp_path: Path, exit_layer: int) -> None:
    settings = CompareSettings(schedule="even", exit_layer=exit_layer, max_tokens=24, seed=3)
    job = Job("tiny", settings, None, tmp_path)
    found = matching.threshold(LM, job, ITEMS)
    gap = abs(reads(LM, job, f"confidence:{found:g}") - reads(LM, job, "spark"))
    grid = [abs(reads(LM, job, f"confidence:{n / 20:g}") - reads(LM, job, "spark"))
            for n in range(21)]  # fmt: skip
    assert gap <= min(grid) + 0.01
    assert max(grid) > gap + 0.05  # so that another threshold would be worse


def test_a_threshold_is_kept_for_the_runs_that_resume(tmp_path: Path) -> None:
    assert matching.kept(tmp_path / "new", lambda: 0.812) == 0.812
    assert matching.kept(tmp_path / "new", lambda: 0.5) == 0.812
    (tmp_path / "new" / matching.MATCHED).write_text('{"thresh')  # cut off
    assert matching.kept(tmp_path / "new", lambda: 0.5) == 0.5


def test_items_that_the_model_does_not_take_have_no_part(tmp_path: Path) -> None:
    job = Job("tiny", CompareSettings(max_tokens=8), None, tmp_path)
    long = Item("long", "factual", "test", "word " * 5000, "said", "words")
    assert 0 <= matching.threshold(LM, job, [long, *ITEMS]) <= 1
    with pytest.raises(ValueError, match="takes none of the items"):
        matching.threshold(LM, job, [long])
