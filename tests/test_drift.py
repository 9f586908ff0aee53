"""Drift: the meter reads what a slow reference computes, and K follows it within its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import softmax
from scipy.stats import entropy

from spark.acceptance import ALWAYS, EXACT, Acceptance
from spark.drift import DriftMeter, Pair, drifts
from spark.engine import Engine, Generation
from spark.metrics.cost import traffic_bytes
from spark.modality import Interleave, Slot
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import DriftSpark, FixedExit, Place, Policy, Spark
from spark.trace import Trace
from tests.slow_decoding import slow_reply
from tests.test_acceptance import LAYOUTS, golden, policies, samplings, tiny
from tests.tiny import tiny_lm

logit_rows = arrays.arrays(np.float64, (2, 5), elements=st.floats(-30, 30))
by_drift = st.builds(
    lambda exit_layer, low, more, target: DriftSpark(exit_layer, low, low + more, target),
    st.sampled_from([1, 2]),
    st.integers(2, 4),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3, 1.0]),
)
exact_models = st.one_of(
    st.builds(golden, st.sampled_from(["qwen2", "glm"]), st.just(torch.float64)),
    st.builds(tiny, st.integers(0, 3), st.sampled_from(LAYOUTS), ends=st.booleans()),
)


def reply(
    lm: SpokenLM,
    policy: Policy,
    s: SamplingSettings,
    acceptance: Acceptance = ALWAYS,
    limit: int = 40,
    meter: bool = True,
    kv_policy: str | None = "deferred",
) -> Generation:
    """A finished reply of the engine."""
    engine = Engine(lm, outside_mass=False, drift_meter=meter)
    start = engine.prefill(lm.encode_prompt("hello"))
    made = engine.generate(start, policy, s, limit, kv_policy, acceptance)  # type: ignore[arg-type]
    for _ in made:
        pass
    return made


def readings(trace: Trace) -> dict[int, tuple[float, float]]:
    return {step.index: (1 - step.drift, step.kl) for step in trace.drifted()}


@given(logit_rows, logit_rows, st.sampled_from([0.0, 0.3, 1.0, 2.0]))
def test_both_distances_are_scipys(full: np.ndarray, exited: np.ndarray, warmth: float) -> None:
    found = drifts(torch.from_numpy(full), torch.from_numpy(exited), warmth)
    for row, drift in enumerate(found):
        p, q = (softmax(logits[row] / (warmth or 1.0)) for logits in (full, exited))
        assert drift.overlap == pytest.approx(np.minimum(p, q).sum(), abs=1e-5)
        assert drift.distance == pytest.approx(abs(p - q).sum() / 2, abs=1e-5)
        if (q > 0).all():
            assert drift.kl == pytest.approx(entropy(p, q), rel=1e-3, abs=1e-4)
        assert 0 <= drift.overlap <= 1
        assert math.isfinite(drift.kl)
        assert drift.kl >= 0


def test_heads_are_compared_on_the_rows_that_both_have() -> None:
    lm = tiny_lm(0)
    bank = Engine(lm).bank
    state = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    whole, codes = bank.heads["full"], bank.heads["exit2"]
    pair = Pair("full", whole.logits(state), "exit2", codes.logits(state))
    (drift,) = DriftMeter(bank, 1.0).read([pair])
    assert codes.row_ids is not None
    (by_hand,) = drifts(whole.logits(state)[:, codes.row_ids], codes.logits(state), 1.0)
    assert drift == by_hand
    same = Pair("full", whole.logits(state), "untrained", whole.logits(state))
    (nothing,) = DriftMeter(bank, 0.3).read([same])
    assert nothing.overlap == pytest.approx(1)
    assert nothing.kl == 0


@settings(max_examples=120)
@given(
    lm=exact_models,
    policy=st.one_of(policies, by_drift),
    s=samplings,
    limit=st.integers(1, 30),
    acceptance=st.sampled_from([ALWAYS, EXACT, Acceptance("relaxed", 0.3)]),
)
def test_every_reading_and_every_k_are_the_slow_references(
    lm: SpokenLM, policy: Policy, s: SamplingSettings, limit: int, acceptance: Acceptance
) -> None:
    """Without cache or roll-back; tokens, depths and bytes too, which K decides."""
    trace = reply(lm, policy, s, acceptance, limit).trace
    slow = slow_reply(Engine(lm), lm.encode_prompt("hello"), policy, s, limit, acceptance)
    assert trace.ids() == slow.tokens
    assert [step.depth for step in trace.steps] == slow.depths
    assert traffic_bytes(trace) == slow.read
    found = readings(trace)
    assert found.keys() == slow.drifts.keys()
    for index, seen in slow.drifts.items():
        assert found[index] == pytest.approx(seen, rel=1e-3, abs=1e-5)
    for step in trace.steps:
        assert step.depth < lm.transformer.num_layers or step.k == slow.ks[step.index]


@settings(max_examples=40)
@given(lm=exact_models, policy=policies, s=samplings, acceptance=st.sampled_from([ALWAYS, EXACT]))
def test_a_meter_changes_nothing_but_what_it_logs(
    lm: SpokenLM, policy: Policy, s: SamplingSettings, acceptance: Acceptance
) -> None:
    on, off = (reply(lm, policy, s, acceptance, meter=meter).trace for meter in (True, False))
    assert on.ids() == off.ids()
    assert [step.heads for step in on.steps] == [step.heads for step in off.steps]
    assert traffic_bytes(on) == traffic_bytes(off)
    assert not off.drifted()
    assert off.summary()["drift"] is off.summary()["kl"] is None


def test_every_exit_that_caught_up_is_read_once_and_no_other() -> None:
    lm = tiny(0, LAYOUTS[0])
    trace = reply(lm, Spark(1, 5), SamplingSettings(0.7), limit=38).trace
    refreshed = max(step.index for step in trace.steps if step.refresh)
    caught_up = [s.index for s in trace.steps if s.depth == 1 and s.index < refreshed]
    assert list(readings(trace)) == caught_up
    assert any(step.depth == 1 and step.index > refreshed for step in trace.steps)
    table = trace.drift_frame()
    assert table["index"].tolist() == caught_up
    assert table["overlap"].between(0, 1).all()
    assert trace.summary()["drift"] == pytest.approx(1 - table["overlap"].mean())
    assert trace.summary()["kl"] == pytest.approx(table["kl"].mean())
    assert trace.frame()["drift"].notna().sum() == len(caught_up)


@pytest.mark.parametrize("kv_policy", ["skip", "propagate"])
def test_without_refreshes_there_is_nothing_to_read(kv_policy: str) -> None:
    lm = tiny_lm(0)
    trace = reply(lm, FixedExit(2), SamplingSettings(0.7), kv_policy=kv_policy).trace
    assert trace.drifted() == []
    with pytest.raises(ValueError, match="no refresh to measure"):
        reply(lm, DriftSpark(2), SamplingSettings(), kv_policy=kv_policy)


def test_what_k_follows_is_paid_for_and_a_meter_is_not() -> None:
    """Target 1 is always met, so K stays at its bounds and the tokens are a plain schedule's."""
    lm, s = tiny(0, LAYOUTS[0], torch.float32), SamplingSettings(0.7)
    plain = reply(lm, Spark(1, 4), s).trace
    steered = reply(lm, DriftSpark(1, 4, 4, 1.0), s).trace
    assert steered.ids() == plain.ids()
    reads = sum(step.refresh and len(step.heads) > 1 for step in steered.steps)
    assert reads > 3
    assert traffic_bytes(steered) == (
        traffic_bytes(plain) + reads * steered.weights.heads["speech"]
    )


@given(
    policy=by_drift,
    distances=st.lists(st.floats(0, 1), min_size=12, max_size=40),
)
def test_k_keeps_its_bounds_and_moves_by_one(policy: DriftSpark, distances: list[float]) -> None:
    k = policy.first_k
    for distance in distances:
        after = policy.next_k(k, distance)
        assert policy.k_min <= after <= policy.k_max
        assert abs(after - k) <= 1
        assert (
            (after >= k) == (distance <= policy.target)
            or policy.k_min == policy.k_max
            or (after == k == policy.k_min)
        )
        k = after


@given(policy=by_drift, distance=st.floats(0, 1))
def test_a_constant_drift_ends_at_a_bound(policy: DriftSpark, distance: float) -> None:
    k = policy.first_k
    for _ in range(policy.k_max - policy.k_min + 1):
        k = policy.next_k(k, distance)
    assert k == (policy.k_max if distance <= policy.target else policy.k_min)


@given(
    k=st.integers(2, 9), length=st.integers(1, 30), exit_layer=st.integers(1, 5),
)  # fmt: skip
def test_a_k_that_stays_is_the_plain_schedule(k: int, length: int, exit_layer: int) -> None:
    steered, plain = DriftSpark(exit_layer, k, k), Spark(exit_layer, k)
    pending = 0
    for position in range(length):
        place = Place(Slot.SPEECH, position, length, pending=pending, k=steered.first_k)
        assert steered.exits(place) == plain.exits(place)
        pending = pending + 1 if steered.exits(place) else 0
    assert steered.exits(Place(Slot.TEXT)) == ()


def test_k_moves_both_ways_in_a_reply_and_the_trace_says_so() -> None:
    lm = tiny_lm(1, layers=3, layout=Interleave(1, 12), max_tokens=100, ends=False)
    policy, s = DriftSpark(1, 2, 5, target=0.15), SamplingSettings(0.7)
    trace = reply(lm, policy, s, limit=100).trace
    again = reply(lm, policy, s, limit=100).trace
    assert trace.ids() == again.ids()
    ks = [step.k for step in trace.steps]
    assert ks == [step.k for step in again.steps]
    assert {3, 5} < set(ks) <= {2, 3, 4, 5}
    for before, step in zip(trace.steps, trace.steps[1:], strict=False):
        assert step.refresh or step.k == before.k, "K moves at a refresh only"
    assert trace.drift_frame()["k"].dtype == "Int64"
    plain = reply(lm, Spark(1), s).trace
    assert {step.k for step in plain.steps} == {None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k_min": 1}, "2 <= shortest K"),
        ({"k_min": 5, "k_max": 4}, "2 <= shortest K"),
        ({"target": 1.5}, "between 0 and 1"),
        ({"target": float("nan")}, "between 0 and 1"),
    ],
)
def test_impossible_bounds_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(DriftSpark(2), **change)
