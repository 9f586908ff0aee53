"""Recorded layers: as without them, for every policy, however replies take turns.

What is recorded here is the plain calls: a CPU has no graphs. The last test records CUDA's, where
there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark.acceptance import EXACT
from spark.engine import Engine, Generation
from spark.graphs import Graphs, prepare
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings, draw, draw_at_once
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, KVPolicy, Policy, Spark
from spark.transformer import Transformer
from tests.tiny import tiny_lm, tiny_prompt

POLICIES = (
    FullDepth(),
    Spark(2),
    Spark(1, 4),
    FixedExit(3),
    ConfidenceExit("max_prob", 0.3, (1, 2, 3)),
    ConfidenceExit("state_similarity", 0.9, (1, 3)),
)


class Counting:
    """Records the calls themselves, and counts how often they are run again."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, call: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def again() -> None:
            self.replayed += 1
            call()

        return again


def recording(seed: int = 0, **options: Any) -> tuple[SpokenLM, SpokenLM, Counting]:
    """A model in float64 without graphs, and the same with some."""
    plain = tiny_lm(seed, dtype=torch.float64, **options)
    body, counting = plain.transformer, Counting()
    parts = (body.embedding, body.layers, body.final_gain, body.unembedding)
    other = Transformer(body.config, *parts)
    other.graphs = Graphs(other, counting)
    return plain, replace(plain, transformer=other), counting


def begun(
    lm: SpokenLM, policy: Policy, seed: int, words: str = "hello", kept: KVPolicy | None = None
) -> Generation:
    engine = Engine(lm)
    settings_ = SamplingSettings(seed=seed)
    return engine.generate(engine.prefill(tiny_prompt(words)), policy, settings_, kv_policy=kept)


def decoded(reply: Generation) -> Generation:
    """The reply, at its end."""
    list(reply)
    return reply


def assert_same(one: Generation, other: Generation) -> None:
    """Token by token, with the same confidence, and the same keys and values."""
    steps = [(step.token_id, step.depth, step.refresh) for step in one.trace.steps]
    assert steps == [(step.token_id, step.depth, step.refresh) for step in other.trace.steps]
    for mine, theirs in zip(one.trace.steps, other.trace.steps, strict=True):
        assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-9, nan_ok=True)
    held, expected = one._decoding.cache, other._decoding.cache
    assert held.lengths == expected.lengths
    for layer in range(len(held.lengths)):
        assert torch.allclose(held.rows(layer), expected.rows(layer), atol=1e-10)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_every_policy_decodes_as_without_graphs(policy: Policy) -> None:
    plain, fast, counting = recording()
    for seed in range(4):
        ours, theirs = begun(fast, policy, seed), begun(plain, policy, seed)
        assert len(list(ours)) == len(list(theirs))
        assert_same(ours, theirs)
        assert ours.trace.compiled
        assert not theirs.trace.compiled
        if seed == 0:  # nothing is recorded before it is known to come often, nor within a reply
            assert counting.recorded == 0
    assert counting.recorded > 0
    assert counting.replayed > counting.recorded


@pytest.mark.parametrize("kept", ["propagate", "skip"])
def test_layers_that_lack_rows_run_without(kept: KVPolicy) -> None:
    plain, fast, _ = recording()
    for seed in range(3):
        ours, theirs = (begun(lm, Spark(2), seed, kept=kept) for lm in (fast, plain))
        assert len(list(ours)) == len(list(theirs))
        assert_same(ours, theirs)


def test_exact_acceptance_takes_back_what_was_replayed() -> None:
    plain, fast, counting = recording(ends=False)
    for seed in range(3):
        made = []
        for lm in (fast, plain):
            engine = Engine(lm)
            start, how = engine.prefill(tiny_prompt("hello")), SamplingSettings(seed=seed)
            made.append(engine.generate(start, Spark(1), how, 60, acceptance=EXACT))
            list(made[-1])
        assert_same(*made)
        assert made[0].trace.rejected
    assert counting.replayed


def test_replies_that_take_turns_share_the_slots() -> None:
    plain, fast, counting = recording(ends=False)
    list(begun(fast, Spark(2), 0))  # what comes often
    ours = [begun(fast, Spark(2), seed, word) for seed, word in enumerate(("hello", "a", "why"))]
    going: list[Iterator[Any]] = [iter(reply) for reply in ours]
    while going:
        going = [reply for reply in going if next(reply, None) is not None]
    assert counting.replayed > 100
    for seed, word in enumerate(("hello", "a", "why")):
        theirs = begun(plain, Spark(2), seed, word)
        list(theirs)
        assert_same(ours[seed], theirs)


def test_replies_in_two_threads_do_not_meet() -> None:
    plain, fast, counting = recording(ends=False)
    list(begun(fast, Spark(2), 0))
    with ThreadPoolExecutor(2) as threads:
        ours = list(threads.map(lambda seed: decoded(begun(fast, Spark(2), seed)), range(6)))
    assert counting.replayed > 100
    for seed, reply in enumerate(ours):
        assert_same(reply, decoded(begun(plain, Spark(2), seed)))


def test_another_turn_builds_on_a_reply_that_was_replayed() -> None:
    plain, fast, _ = recording()
    for turn in range(3):
        found = []
        for lm in (fast, plain):
            first = begun(lm, Spark(2), 1)
            for _ in range(9):
                next(first)
            engine = Engine(lm)
            start = engine.prefill(tiny_prompt("and then"), first.history())
            second = engine.generate(start, Spark(2), SamplingSettings(seed=turn))
            list(second)
            found.append(second)
        assert_same(*found)


def test_a_longer_reply_is_recorded_beside_more_slots() -> None:
    plain, fast, counting = recording(ends=False, max_tokens=300)
    engine = Engine(fast)
    graphs = fast.transformer.graphs
    assert graphs is not None
    for limit in (20, 20, 290, 290):
        start = engine.prefill(tiny_prompt("hello"))
        ours = engine.generate(start, Spark(2), SamplingSettings(), limit)
        list(ours)
    assert {kind.slots for kind in graphs.kinds} == {256, 512}
    other = Engine(plain)
    theirs = other.generate(
        other.prefill(tiny_prompt("hello")), Spark(2), SamplingSettings(), limit
    )
    list(theirs)
    assert_same(ours, theirs)
    assert counting.replayed > 300


def wrong(call: Callable[[], None]) -> Callable[[], None]:
    """A record that does nothing."""
    return lambda: None


def broken(call: Callable[[], None]) -> Callable[[], None]:
    """What a device says that cannot record."""
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(("record", "says"), [(wrong, "differs"), (broken, "not permitted")])
def test_a_record_that_cannot_be_trusted_is_not_used(
    record: Callable[[Callable[[], None]], Callable[[], None]], says: str
) -> None:
    plain, fast, _ = recording()
    graphs = fast.transformer.graphs = Graphs(fast.transformer, record)
    for seed in range(3):
        ours, theirs = (begun(lm, Spark(2), seed) for lm in (fast, plain))
        assert len(list(ours)) == len(list(theirs))
        assert_same(ours, theirs)
    assert graphs.kinds == ()
    assert says in str(graphs.trouble)


def test_a_cpu_gets_none() -> None:
    body = tiny_lm().transformer
    prepare(body)
    assert body.graphs is None


@settings(max_examples=80)
@given(
    seed=st.integers(0, 999),
    columns=st.sampled_from([5, 128, 129, 700]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 3, 500]),
)
def test_a_draw_at_once_is_the_draw_where_it_is_sure(
    seed: int, columns: int, scale: float, temperature: float, top_p: float, top_k: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, columns, generator=make)
    ids = torch.randperm(columns, generator=make) + 7
    how = SamplingSettings(temperature, top_p, top_k, seed=seed)
    tokens, sure = draw_at_once(logits, ids, how, (4, 5, 9), (seed, 1, 2))
    wanted = draw(logits, ids, how, (4, 5, 9), seeds=(seed, 1, 2))
    assert torch.equal(tokens[sure], wanted[sure])
    flat = columns > 128 and scale == 0.1 and temperature and top_p == 0.9 and not top_k
    assert bool(sure.all()) or (columns == 700 and temperature > 0)
    if flat and columns == 700:
        assert not sure.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_cuda_graphs_decode_as_without(policy: Policy) -> None:
    base = tiny_lm(dtype=torch.float64)
    config, state = base.transformer.config, base.transformer.state_dict()
    body = Transformer.from_state_dict(state, config, device="cuda")
    prepare(body)
    lm = replace(base, transformer=body)
    assert body.graphs is not None
    for seed in range(3):
        ours, theirs = Engine(lm), Engine(lm, compiled=False)
        made = []
        for engine in (ours, theirs):
            how = SamplingSettings(seed=seed)
            made.append(engine.generate(engine.prefill(tiny_prompt("hello")), policy, how))
            list(made[-1])
        assert_same(*made)
    assert body.graphs.trouble is None
    assert body.graphs.kinds
