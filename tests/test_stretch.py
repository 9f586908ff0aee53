"""Several tokens at once beside the same step by step: the same to the bit, wherever it stops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark import engine as engine_module
from spark.compiled.step import parts_of, prepare
from spark.engine import Engine, Generation, decode_batch
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule
from spark.remembered import Remembered
from spark.sampling import SamplingSettings
from spark.schedule import (
    ConfidenceExit,
    FixedExit,
    FullDepth,
    KVPolicy,
    Place,
    Policy,
    Spark,
)
from spark.stretch import StretchDecoding
from spark.trace import Step
from tests.test_compiled import needs_compiler
from tests.tiny import tiny_lm, tiny_prompt

pytestmark = needs_compiler

POLICIES = (
    FullDepth(),
    Spark(3),
    Spark(1, variant="even"),
    Spark(2, k=12),  # more rows wait than the compiled step takes
    Spark(2, k=5, text=True),
    PositionSchedule((None, 3, 2, 1)),
    FixedExit(2),
    FixedExit(1, text=True),
    ConfidenceExit("max_prob", 0.3, (1, 2, 3)),
    ConfidenceExit("max_prob", 0.6, (2,), decay=4.0, modalities=("speech", "text")),
    ConfidenceExit("max_prob", 0.0, (1, 3), max_pending=2),
)
LAYOUTS = (Interleave(1, 4), Interleave(3, 11), Interleave(2, 5, speech_tail=True))
LARGEST = {"hidden_size": 64, "intermediate_size": 128}
# Of weights whose replies leave the layout in a third of the slots, or in a tenth of them; those of
# three come to an end.
SEEDS = (0, 9, 17, 22)


@cache
def model(seed: int, layout: Interleave, head_dim: int) -> SpokenLM:
    """One that leaves its layout now and then, with its compiled step."""
    lm = tiny_lm(seed, layout=layout, head_dim=head_dim, **LARGEST)
    prepare(lm.transformer, wait=True)
    assert lm.transformer.compiled is not None
    assert parts_of(lm.transformer.config) == (2 if head_dim == 32 else 1)
    return lm


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def begun(
    lm: SpokenLM,
    policy: Policy,
    sampling: SamplingSettings,
    at_once: bool,
    limit: int = 60,
    kept: KVPolicy | None = None,
    watched: bool = False,
) -> Generation:
    """A reply that is drawn in stretches, or step by step."""
    engine = Engine(lm, outside_mass=watched, drift_meter=watched)
    start = engine.prefill(tiny_prompt("hello"))
    suits = engine_module.suits if at_once else lambda *_: False
    with patch.object(engine_module, "suits", suits):
        made = engine.generate(start, policy, sampling, limit, kept)
    assert isinstance(made._decoding, StretchDecoding) == at_once
    return made


def assert_told_alike(ours: Generation, theirs: Generation) -> None:
    """The same steps but for their time, and the rounding of what is measured another way."""
    measured = ("confidence", "drift", "kl", "outside_mass")
    same = {field.name for field in fields(Step)} - {"elapsed_ms", *measured}
    for mine, other in zip(ours.trace.steps, theirs.trace.steps, strict=True):
        assert [getattr(mine, name) for name in same] == [getattr(other, name) for name in same]
        for name in measured:
            expected = pytest.approx(getattr(other, name), rel=1e-4, abs=1e-6, nan_ok=True)
            assert getattr(mine, name) == expected


def assert_same(ours: Generation, theirs: Generation) -> None:
    """The same steps, keys, values and waiting rows."""
    assert_told_alike(ours, theirs)
    assert ours.trace.finish == theirs.trace.finish
    mine, other = ours._decoding, theirs._decoding
    assert mine.ids == other.ids
    assert mine.cache.lengths == other.cache.lengths
    for layer in range(len(mine.cache.lengths)):
        assert torch.equal(mine.cache.rows(layer), other.cache.rows(layer))
    assert mine._pending.levels.groups == other._pending.levels.groups
    waiting = [decoding._pending.all() for decoding in (mine, other)]
    if waiting[0] is not None and waiting[1] is not None:
        assert torch.equal(waiting[0].states, waiting[1].states)
        assert waiting[0].start == waiting[1].start


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_stretch_is_its_steps(data: Any) -> None:
    draw = data.draw
    layout, head_dim = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from([16, 32]))
    lm = model(draw(st.sampled_from(SEEDS)), layout, head_dim)
    policy = draw(st.sampled_from(POLICIES))
    sampling = SamplingSettings(
        draw(st.sampled_from([0.0, 0.7, 1.6])),
        draw(st.sampled_from([0.9, 1.0])),
        draw(st.sampled_from([0, 5])),
        seed=draw(st.integers(0, 99)),
    )
    limit, kept = draw(st.integers(1, 110)), draw(st.sampled_from([None, "skip", "deferred"]))
    torch.set_num_threads(draw(st.integers(1, 3)))
    watched = draw(st.booleans())
    ours, theirs = (
        begun(lm, policy, sampling, way, limit, kept, watched) for way in (True, False)
    )
    for made in (ours, theirs):
        list(made)
    assert_same(ours, theirs)
    assert all(step.elapsed_ms > 0 for step in ours.trace.steps)


def test_surprises_and_ends_occur_and_most_tokens_are_drawn_at_once() -> None:
    """What the test above would be worth nothing without."""
    seen = {"surprised": 0, "stop": 0, "steps": 0, "calls": 0, "drift": 0, "outside": 0}
    for seed in range(12):
        lm = model(SEEDS[seed % 4], LAYOUTS[0], 32)
        made = begun(lm, Spark(3), SamplingSettings(seed=seed), True, watched=True)
        library = made._worker.step.library  # type: ignore[union-attr]
        with patch.object(library, "spark_stretch", wraps=library.spark_stretch) as calls:
            steps = list(made)
        seen["surprised"] += sum(step.slot.value != step.modality.value for step in steps)
        seen["stop"] += made.trace.finish == "stop"
        seen["steps"] += len(steps)
        seen["calls"] += calls.call_count
        seen["drift"] += len(made.trace.drifted())
        seen["outside"] += sum(not math.isnan(step.outside_mass) for step in steps)
    assert min(seen["surprised"], seen["stop"]) > 2
    assert min(seen["drift"], seen["outside"]) > 50
    assert seen["calls"] < seen["steps"] / 2


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("stop_after", [1, 4, 9, 17, 30])
@pytest.mark.parametrize("kept", [None, "skip"])
def test_what_was_drawn_ahead_of_a_stop_leaves_nothing(
    policy: Policy, stop_after: int, kept: KVPolicy | None
) -> None:
    """And what a next turn builds on is what step by step leaves, but for rows made good since."""
    lm, sampling = model(22, LAYOUTS[0], 32), SamplingSettings(seed=3)
    ours, theirs = (begun(lm, policy, sampling, way, kept=kept) for way in (True, False))
    for made in (ours, theirs):
        for _ in range(stop_after):
            if next(made, None) is None:
                break
    histories = [made.history() for made in (ours, theirs)]
    assert_told_alike(ours, theirs)
    assert histories[0].ids == histories[1].ids
    assert histories[0].cache.lengths == histories[1].cache.lengths
    for layer in range(lm.transformer.num_layers):
        rows = [history.cache.rows(layer) for history in histories]
        torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-5)
    if ours.trace.finish == "interrupted":
        assert ours.trace.rejected == []
        assert (ours.trace.ahead_ms > 0) == bool(ours.trace.ahead)
        kept_ms = sum(step.elapsed_ms for step in ours.trace.steps)
        assert ours.spent_ms == pytest.approx(kept_ms + ours.trace.ahead_ms + ours.trace.flush_ms)


def test_few_are_drawn_before_the_first_is_handed_out() -> None:
    drawn = []
    for seed in range(9):
        lm = model(SEEDS[seed % 4], LAYOUTS[0], 32)
        made = begun(lm, FullDepth(), SamplingSettings(seed=seed), True)
        next(made)
        drawn.append(len(made._decoding.ids) - made.trace.prompt_tokens)
    assert 8 < max(drawn) <= 16


def test_times_add_up_to_what_was_spent() -> None:
    made = begun(model(9, LAYOUTS[0], 32), Spark(2), SamplingSettings(seed=1), True)
    list(made)
    assert sum(step.elapsed_ms for step in made.trace.steps) == pytest.approx(made.spent_ms)


def test_a_batch_of_such_replies_is_each_alone() -> None:
    lm = model(17, LAYOUTS[0], 32)
    alone = [begun(lm, Spark(3), SamplingSettings(0.0), True) for _ in range(3)]
    for made in alone:
        list(made)
    engine = Engine(lm, outside_mass=False)
    start = engine.prefill(tiny_prompt("hello"))
    replies = [engine.generate(start, Spark(3), SamplingSettings(0.0), 60) for _ in range(3)]
    for made in decode_batch(replies, 2):
        assert [s.token_id for s in made.trace.steps] == [s.token_id for s in alone[0].trace.steps]
    assert max(made.trace.batch for made in replies) == 2


def test_one_by_one_in_a_batch_of_one_they_are_drawn_at_once() -> None:
    lm = model(9, LAYOUTS[0], 32)
    engine = Engine(lm)
    replies = [
        engine.generate(engine.prefill(tiny_prompt(word)), Spark(3), SamplingSettings(), 60)
        for word in ("hello", "so")
    ]
    library = replies[0]._worker.step.library  # type: ignore[union-attr]
    with patch.object(library, "spark_stretch", wraps=library.spark_stretch) as calls:
        steps = [len(made.trace.steps) for made in decode_batch(replies, 1)]
    assert calls.call_count < sum(steps) / 2


@dataclass(frozen=True)
class Later(FullDepth):
    """A policy of somebody's own, which looks at what no stretch tells it."""

    def exits(self, place: Place) -> tuple[int, ...]:
        return (2,) if place.progress > 0.2 else ()

    def exit_layers(self) -> tuple[int, ...]:
        return (2,)


def test_a_policy_of_ones_own_is_asked_at_every_step() -> None:
    lm = model(9, LAYOUTS[0], 32)
    engine = Engine(lm, outside_mass=False)
    made = engine.generate(engine.prefill(tiny_prompt("hello")), Later(), SamplingSettings(), 40)
    depths = {step.index > 8: step.depth for step in made if not step.refresh}
    assert depths[True] == 2


def test_what_is_kept_in_mind_has_its_bounds() -> None:
    lm, sampling = model(9, LAYOUTS[2], 32), SamplingSettings()
    engine = Engine(lm, outside_mass=False)
    start = engine.prefill(tiny_prompt("hello"))
    for number in range(90):
        policy = ConfidenceExit("max_prob", number / 100, (1, 2))
        list(engine.generate(start, policy, replace(sampling, seed=number), 20))
    tokens = engine._worker._compiled_tokens
    assert tokens is not None
    assert 10 < len(tokens._courses) <= 64
    assert len(engine._foresights) <= 16


def test_what_is_remembered_is_made_once_while_there_is_room() -> None:
    made: list[int] = []
    memory = Remembered[int, int](most=3)

    def tenfold(key: int) -> int:
        made.append(key)
        return 10 * key

    for key in (1, 2, 1, 3, 2, 4, 1):
        assert memory.of(key, partial(tenfold, key)) == 10 * key
    assert made == [1, 2, 3, 4, 1]
    assert len(memory) == 2


@pytest.mark.parametrize("failing", ["_record", "_meter"])
def test_a_step_that_failed_ends_the_reply_and_nothing_follows_it(failing: str) -> None:
    made = begun(model(9, LAYOUTS[0], 32), Spark(2), SamplingSettings(), True, watched=True)
    steps = [next(made) for _ in range(4)]
    made._decoding._drawn.clear()  # so that more are drawn at once
    with (
        patch.object(StretchDecoding, failing, side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        next(made)
    assert (list(made), made.trace.steps, made.trace.finish) == ([], steps, "interrupted")
    assert max(made._decoding.cache.lengths) < len(made._decoding.ids)
    with pytest.raises(ValueError, match="ask again"):
        made.history()


def test_a_full_cache_is_refused_before_anything_is_written() -> None:
    made = begun(model(0, LAYOUTS[0], 32), FullDepth(), SamplingSettings(), True)
    cache = made._decoding.cache
    cache.capacity = len(made._decoding.ids) + 1
    before = list(cache.lengths)
    with pytest.raises(ValueError, match="is full"):
        next(made)
    assert cache.lengths == before
