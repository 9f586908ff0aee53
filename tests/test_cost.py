"""Weight traffic against a plain count, and the trace's figures against pandas."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark.engine import Engine
from spark.metrics.cost import full_depth_bytes, step_bytes, traffic_bytes, traffic_ratio
from spark.metrics.outside import OutsideMass, outside_mass
from spark.modality import Modality, Slot
from spark.sampling import SamplingSettings
from spark.schedule import KV_POLICIES, ConfidenceExit, FixedExit, FullDepth, Policy, Spark
from spark.trace import CONTRACT_COLUMNS, Trace
from tests.tiny import tiny_lm

COLUMNS = [
    *("index", "chunk", "slot", "modality", "token_id", "text", "time_s", "depth", "refresh"),
    *("pending", "head", "confidence", "elapsed_ms", "drift"),
]
# Of tests.tiny: width 32, 4 heads and 2 key heads of 8, inner 48, 71 ids of which 30 are codes
# and control tokens, float32.
LAYER = 4 * (32 + 64 * 32 + 64 + 32 * 32 + 32 + 2 * 48 * 32 + 32 * 48)
PROJECTION = 4 * (32 + 64 * 32 + 64)
FULL, SPEECH = 4 * (32 + 71 * 32), 4 * (32 + 30 * 32)
EXIT = SPEECH + 4 * (32 * 32 + 32)


def traced(
    policy: Policy, kv_policy: str | None = None, seed: int = 0, flush: bool = True
) -> Trace:
    """A reply of the tiny model."""
    lm = tiny_lm(seed, ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("how much is it?"))
    reply = engine.generate(start, policy, SamplingSettings(), 33, kv_policy)  # type: ignore[arg-type]
    list(reply)
    if flush:
        reply.history()
    return reply.trace


def slow_count(trace: Trace) -> tuple[int, int]:
    """Bytes read and full depth's, counted one weight matrix at a time."""
    size = {"full": FULL, "untrained": FULL, "speech": SPEECH, "untrained-speech": SPEECH}
    read = full = 0
    surprised = False
    for step in trace.steps:
        for layer in range(4):
            if layer < step.depth:
                read += LAYER
            elif trace.kv_policy == "propagate":
                read += PROJECTION
            full += LAYER
        for head in step.heads:
            read += size.get(head, EXIT)
        trusted = not surprised or trace.policy == "fixed"
        full += SPEECH if step.slot is Slot.SPEECH and trusted else FULL
        surprised = (step.modality is Modality.SPEECH) != (step.slot is Slot.SPEECH)
    for flush in trace.flushes:
        read += LAYER * (flush.high - flush.low)
    return read, full


@settings(max_examples=25)
@given(
    st.sampled_from(
        [
            FullDepth(),
            Spark(2),
            Spark(1, variant="even"),
            FixedExit(3),
            ConfidenceExit("max_prob", 0.25, (1, 2, 3)),
            ConfidenceExit("state_similarity", 0.97, (1, 3), modalities=("text", "speech")),
        ]
    ),
    st.sampled_from([None, *KV_POLICIES]),
    st.integers(0, 3),
)
def test_traffic_is_the_plain_count(policy: Policy, kv_policy: str | None, seed: int) -> None:
    trace = traced(policy, kv_policy, seed)
    read, full = slow_count(trace)
    assert traffic_bytes(trace) == read
    assert traffic_ratio(trace) == pytest.approx(read / full, rel=1e-12)


def test_full_depth_costs_one_and_spark_less() -> None:
    assert traffic_ratio(traced(FullDepth())) == 1.0
    assert traffic_ratio(traced(Spark(1, k=4))) < 1.0
    assert traffic_ratio(traced(ConfidenceExit("max_prob", 1.0, (1, 2, 3)))) > 1.0


def test_fewer_rows_at_an_exit_are_no_saving_of_depth() -> None:
    """With the whole head at full depth, an exit on speech rows is charged for its layers alone."""
    lm = tiny_lm(0, ends=False)
    engine = Engine(lm, speech_row_head=False)
    start = engine.prefill(lm.encode_prompt("hello"))
    made = engine.generate(start, Spark(2, k=4), SamplingSettings(temperature=0), 20)
    shallow = [step for step in made if step.depth == 2]
    assert shallow
    for step in shallow:
        saved = full_depth_bytes(step, made.trace.weights)
        saved -= step_bytes(step, made.trace.weights, propagated=False)
        assert saved == 2 * LAYER + SPEECH - EXIT


def test_outside_mass_over_a_reply() -> None:
    trace = traced(Spark(2))
    found = [s.outside_mass for s in trace.steps if not math.isnan(s.outside_mass)]
    got = outside_mass(trace)
    assert 0 < got.n == len(found) < len(trace.steps)
    assert got.mean == pytest.approx(sum(found) / len(found))
    assert got.largest == max(found) == trace.summary()["max_outside_mass"]
    trace.steps.clear()
    assert outside_mass(trace) == OutsideMass(0, None, None)


def test_an_empty_reply_has_no_ratio() -> None:
    trace = traced(FullDepth())
    trace.steps.clear()
    with pytest.raises(ValueError, match="without tokens"):
        traffic_ratio(trace)
    assert trace.summary()["traffic_ratio"] is None
    assert trace.summary()["ms_per_token"] is None
    assert trace.frame().columns.tolist() == COLUMNS


def test_the_frame_has_the_contracts_columns() -> None:
    trace = traced(Spark(2))
    table = trace.frame()
    assert list(CONTRACT_COLUMNS) == COLUMNS
    assert table.columns.tolist() == COLUMNS
    assert table["index"].tolist() == list(range(len(table)))
    assert set(table["refresh"]) == {0, 1}
    assert set(table["slot"]) == {"text", "speech"}
    assert set(table["modality"]) <= {"text", "speech", "control"}
    assert table["drift"].isna().all(), "drift is not measured yet"
    speech = table["modality"] == "speech"
    expected = speech.cumsum().shift(fill_value=0) / 25.0
    pd.testing.assert_series_equal(table["time_s"], expected, check_names=False)
    assert (table.loc[table["modality"] == "text", "text"].str.len() == 1).all()
    assert (table["elapsed_ms"] > 0).all()
    assert table["confidence"].between(0, 1).all()


def test_the_summary_follows_from_the_frame() -> None:
    trace = traced(Spark(2))
    table, summary = trace.frame(), trace.summary()
    by_modality = table.groupby("modality")["depth"].mean()
    assert summary["mean_depth_speech"] == pytest.approx(by_modality["speech"])
    assert summary["mean_depth_text"] == pytest.approx(by_modality["text"])
    assert summary["n_speech"] == len(trace.codes()) == (table["modality"] == "speech").sum()
    assert summary["n_text"] == len(trace.text_ids())
    assert summary["ms_per_token"] == pytest.approx(table["elapsed_ms"].mean())
    assert summary["audio_s"] == pytest.approx(len(trace.codes()) / 25)
    assert summary["layers"] == 4
    assert min(trace.codes()) >= 0
    assert max(trace.codes()) < 24


def test_without_a_vocoder_there_is_no_audio_time() -> None:
    lm = tiny_lm(0, vocoder=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hi"))
    reply = engine.generate(start, FullDepth(), SamplingSettings(), 4)
    assert all(math.isnan(step.time_s) for step in reply)
    assert reply.trace.summary()["audio_s"] is None
