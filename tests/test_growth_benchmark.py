"""The curves over context and batch: what is run, and what is made of the times."""

from __future__ import annotations

from itertools import count

import pytest

from benchmarks import growth
from spark.evaluation import speed
from spark.schedule import FullDepth, Spark
from tests.tiny import tiny_lm


def test_a_curve_takes_turns_and_pairs_what_it_compares() -> None:
    asked = []

    def clock(policy, size, turn):
        asked.append((turn, size, policy.name))
        return {"full": 10.0, "spark": 5.0}[policy.name] * size * 2**turn

    rows = growth.curve([1, 3], [FullDepth(), Spark(2)], clock, 3)
    assert asked == [(turn, size, name) for turn in range(4) for size in (1, 3)
                     for name in ("full", "spark")]  # fmt: skip
    spark = next(row for row in rows if row["size"] == 3 and row["policy"] == "spark")
    assert spark["time_ratio"] == 0.5
    # Turn 0 does not count.
    assert (spark["lowest"], spark["ms_per_token"], spark["highest"]) == (30.0, 60.0, 120.0)


def test_both_curves_are_measured_beyond_the_models_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, ticks, batches = tiny_lm(), count(), []
    monkeypatch.setattr(growth, "PROMPTS", ("hello", "and you"))
    plain = growth.decode_batch

    def watched(replies, size):
        batches.append((len(replies[0]._decoding.ids), size))
        return plain(replies, size)

    monkeypatch.setattr(growth, "decode_batch", watched)
    monkeypatch.setattr(growth.time, "perf_counter", lambda: float(next(ticks)))
    beyond = lm.transformer.config.max_position_embeddings + 5
    got = growth.measure(lm, contexts=(20, beyond), batches=(1, 3), repeats=1, tokens=4)
    assert [row["size"] for row in got["context"]] == [20, 20, beyond, beyond]
    assert [row["size"] for row in got["batch"]] == [1, 1, 3, 3]
    assert all(row["ms_per_token"] > 0 for row in got["context"] + got["batch"])
    assert {length for length, size in batches if size == 1} >= {20, beyond}
    assert 3 in {size for _, size in batches}
    told = speed.tables({"growth": got})
    for size, policy in ((beyond, "full"), (3, "spark")):
        kind = "batch" if size == 3 else "context"
        row = next(r for r in got[kind] if (r["size"], r["policy"]) == (size, policy))
        line = next(text for text in told.splitlines() if text.startswith(f"| {size:,} |"))
        assert f"{row['ms_per_token']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})" in line
    assert f"torch {got['torch']}" in told
    assert told.count("not measured.") == 2


def test_a_prompt_has_the_length_asked_and_the_models_own_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growth, "PROMPTS", ("hello",))
    lm = tiny_lm()
    own = lm.encode_prompt("hello")
    assert growth.prompt_of(lm, 3) == own[-3:]
    long = growth.prompt_of(lm, 200)
    assert len(long) == 200
    assert long[-len(own) :] == own
    assert not set(long[: -len(own)]) & set(lm.vocabulary.control_ids)
