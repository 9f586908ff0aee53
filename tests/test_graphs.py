"""Recorded layers: as without them, for every policy, however replies take turns.

What is recorded here is the plain calls: a CPU has no graphs. The last test records CUDA's, where
there is a GPU.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark import decoding, hardware, late, sampling
from spark import graphs as graphs_module
from spark.acceptance import EXACT
from spark.engine import Engine, Generation, decode_batch
from spark.graphs import Graphs, prepare
from spark.late import LateDecoding
from spark.metrics.cost import traffic_ratio
from spark.modality import Modality
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule
from spark.sampling import SamplingSettings, draw, draw_at_once, noise_key
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
    other.graphs = Graphs(other, lambda: counting)
    return plain, replace(plain, transformer=other), counting


def begun(
    lm: SpokenLM, policy: Policy, seed: int, words: str = "hello", kept: KVPolicy | None = None
) -> Generation:
    engine = Engine(lm, outside_mass=False)  # else ids are not read late
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


def test_ids_are_read_one_step_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that follows is under way by then, but for the last."""
    _, fast, _ = recording(ends=False)
    told: list[str] = []
    fetched = hardware.fetched

    def noted(value: torch.Tensor) -> Callable[[], torch.Tensor]:
        place = sum(word.startswith("begun") for word in told)
        told.append(f"begun {place}")
        wait = fetched(value)

        def read() -> torch.Tensor:
            told.append(f"read {place}")
            return wait()

        return read

    monkeypatch.setattr(hardware, "fetched", noted)
    engine, how = Engine(fast, outside_mass=False), SamplingSettings(seed=2)
    reply = engine.generate(engine.prefill(tiny_prompt("hello")), Spark(2), how, 20)
    steps = len(list(reply))
    assert isinstance(reply._decoding, LateDecoding)
    assert told[:5] == ["begun 0", "begun 1", "read 0", "begun 2", "read 1"]
    assert len(told) == 2 * (steps + len(reply.trace.rejected))


@pytest.mark.parametrize(
    ("policy", "late_too"),
    [
        (FullDepth(), True),
        (Spark(2), True),
        (Spark(2, text=True), False),
        (PositionSchedule((None, 2, 1)), False),
        (ConfidenceExit("max_prob", 0.3, (1, 2, 3)), False),
        (FixedExit(3), False),
    ],
)
def test_ids_are_read_late_where_no_count_of_rows_decides(policy: Policy, late_too: bool) -> None:
    """Rows that a step took along before it was taken back are not counted any more."""
    _, fast, _ = recording()
    assert isinstance(begun(fast, policy, 0)._decoding, LateDecoding) == late_too


@pytest.mark.parametrize("look", [None, 2])
def test_a_step_begun_on_a_wrong_guess_is_made_anew(
    look: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the token left the layout; or, looked at more closely, is another than was drawn."""
    if look:
        monkeypatch.setattr(sampling, "_FIRST_LOOK", look)
    plain, fast, _ = recording()
    rejected = []
    for seed in range(12):
        ours, theirs = (decoded(begun(lm, Spark(2), seed)) for lm in (fast, plain))
        assert_same(ours, theirs)
        rejected += [(seed, step.index) for step in ours.trace.rejected]
        assert traffic_ratio(ours.trace) >= traffic_ratio(theirs.trace)
    surprises = {
        (seed, step.index)
        for seed in range(12)
        for step in decoded(begun(plain, Spark(2), seed)).trace.steps
        if step.modality is not Modality.CONTROL and step.modality.value != step.slot.value
    }
    assert len(rejected) > (100 if look else 10)
    assert {(seed, index + 1) for seed, index in surprises} <= set(rejected)


def test_the_time_of_a_step_taken_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait for the device takes a second of a clock that stands still otherwise."""
    _, fast, _ = recording()
    waits = 0

    def slow(value: torch.Tensor) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            nonlocal waits
            waits += 1
            return value

        return read

    monkeypatch.setattr(hardware, "fetched", slow)
    for module in (late, decoding):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(waits)))
    replies = [decoded(begun(fast, Spark(2), seed)) for seed in range(12)]
    assert any(reply.trace.rejected for reply in replies)
    counted = sum(step.elapsed_ms for reply in replies for step in reply.trace.steps)
    assert counted == pytest.approx(1e3 * waits)


def test_other_ways_to_draw_are_recorded_in_place_of_those_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs_module, "_MOST", 8)
    monkeypatch.setattr(graphs_module, "_LONG", 3)
    plain, fast, counting = recording(ends=False)
    for turn in range(12):
        how, before = SamplingSettings(0.5 + 0.1 * turn, seed=turn), counting.replayed
        for _ in range(3):
            ours, theirs = (
                decoded(engine.generate(engine.prefill(tiny_prompt("hello")), Spark(2), how, 40))
                for engine in (Engine(fast, outside_mass=False), Engine(plain))
            )
            assert_same(ours, theirs)
        assert counting.replayed > before + 20
    assert fast.transformer.graphs is not None
    assert len(fast.transformer.graphs.kinds) <= 8


def test_what_was_begun_when_a_reply_is_stopped_leaves_nothing() -> None:
    plain, fast, _ = recording(ends=False)
    for count in range(1, 12):
        ours, theirs = (begun(lm, Spark(3), 5) for lm in (fast, plain))
        for _ in range(count):
            next(ours), next(theirs)
        mine, other = ours.history(), theirs.history()
        assert mine.ids == other.ids
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


@pytest.mark.parametrize(("size", "replays"), [(1, True), (3, False)])
def test_a_batch_of_one_is_a_reply_alone(size: int, replays: bool) -> None:
    """Several read the weights once for all, and their caches stay where they are."""
    plain, fast, counting = recording(ends=False)
    decoded(begun(fast, Spark(2), 0))
    engine, prompt = Engine(fast), tiny_prompt("hello")
    made = [
        engine.generate(engine.prefill(prompt), Spark(2), SamplingSettings(seed=seed))
        for seed in range(3)
    ]
    for _ in decode_batch(made, size):
        pass
    assert (counting.replayed > counting.recorded) == replays
    for seed, reply in enumerate(made):
        assert_same(reply, decoded(begun(plain, Spark(2), seed)))


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


def test_what_no_row_has_filled_never_gets_into_the_shared_slots() -> None:
    """Memory that nobody wrote may hold anything, and what the mask hides is multiplied by 0."""
    torch.use_deterministic_algorithms(True)  # which fills new memory with nan
    try:
        plain, fast, counting = recording(ends=False)
        decoded(begun(fast, Spark(2), 0))
        words = "a rather long prompt to begin with"
        long = [begun(fast, Spark(2), seed, words) for seed in (1, 2)]
        for _ in range(9):
            for reply in long:
                next(reply)
        ours, theirs = (decoded(begun(lm, Spark(2), 3)) for lm in (fast, plain))
    finally:
        torch.use_deterministic_algorithms(False)
    assert counting.replayed
    assert fast.transformer.graphs is not None
    assert fast.transformer.graphs.trouble is None
    assert_same(ours, theirs)


def test_a_reply_does_not_hang_on_those_before_it() -> None:
    """To the bit: what is not recorded yet makes the same calls."""
    _, fast, counting = recording()
    first, *later = [decoded(begun(fast, Spark(2), 1)) for _ in range(4)]
    assert counting.replayed
    for reply in later:
        mine, theirs = reply._decoding.cache, first._decoding.cache
        assert [step.confidence for step in reply.trace.steps] == [
            step.confidence for step in first.trace.steps
        ]
        assert all(torch.equal(mine.rows(i), theirs.rows(i)) for i in range(len(mine.lengths)))


def test_records_of_a_smaller_buffer_go_at_once() -> None:
    """Not when rubbish is next collected: their memory is needed now."""
    _, fast, _ = recording(ends=False, max_tokens=300)
    graphs, engine = fast.transformer.graphs, Engine(fast)
    assert graphs is not None
    gc.disable()
    try:
        for limit in (20, 20):
            start = engine.prefill(tiny_prompt("hello"))
            list(engine.generate(start, Spark(2), SamplingSettings(), limit))
        gone = [weakref.ref(record.made[0]) for record in graphs._records.values()]
        assert gone
        graphs.prepare(400)
        assert not [record for record in gone if record() is not None]
    finally:
        gc.enable()


def test_no_more_is_recorded_at_once_than_a_moment_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "_AT_ONCE", 2)
    monkeypatch.setattr(graphs_module, "_MOST", 3)
    _, fast, counting = recording()
    seen = []
    for seed in range(4):
        decoded(begun(fast, Spark(2), seed))
        seen.append(counting.recorded)
    assert seen == [0, 2, 3, 3]


def test_no_memory_for_the_slots_is_no_reason_to_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fast, _ = recording()

    def full(*size: int, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs_module.torch, "zeros", full)
    ours = begun(fast, Spark(2), 1)
    monkeypatch.undo()
    assert_same(decoded(ours), decoded(begun(plain, Spark(2), 1)))
    assert not ours.trace.compiled
    assert fast.transformer.graphs is not None
    assert "out of memory" in str(fast.transformer.graphs.trouble)


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
    graphs = fast.transformer.graphs = Graphs(fast.transformer, lambda: record)
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
    keys = [noise_key(*pair) for pair in ((seed, 4), (1, 5), (2, 9))]
    tokens, sure = draw_at_once(logits, ids, how, keys)
    again = draw_at_once(logits, ids, how, torch.tensor(keys))
    assert torch.equal(tokens, again[0])
    assert torch.equal(sure, again[1])
    wanted = draw(logits, ids, how, (4, 5, 9), seeds=(seed, 1, 2))
    assert torch.equal(tokens[sure], wanted[sure])
    flat = columns > 128 and scale == 0.1 and temperature and top_p == 0.9 and not top_k
    assert bool(sure.all()) or (columns == 700 and temperature > 0)
    if flat and columns == 700:
        assert not sure.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_cuda_graphs_replay_what_was_recorded(policy: Policy, dtype: torch.dtype) -> None:
    """The same reply before and after its steps are recorded; in float64 also without graphs."""
    base = tiny_lm(dtype=dtype, ends=False, max_tokens=300)
    body = Transformer.from_state_dict(
        base.transformer.state_dict(), base.transformer.config, dtype, "cuda"
    )
    prepare(body)
    lm = replace(base, transformer=body)
    assert body.graphs is not None
    for limit in (40, 290):  # the second is recorded beside more slots
        made = []
        for compiled in (True, True, True, False):
            engine = Engine(lm, compiled=compiled)
            start = engine.prefill(tiny_prompt("hello"))
            made.append(decoded(engine.generate(start, policy, SamplingSettings(seed=1), limit)))
        first, _, replayed, plain = made
        ids = [[step.token_id for step in reply.trace.steps] for reply in (first, replayed)]
        assert ids[0] == ids[1]
        if dtype == torch.float64:
            assert_same(replayed, plain)
    assert body.graphs.trouble is None
    assert body.graphs.kinds
