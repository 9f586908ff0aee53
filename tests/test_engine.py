"""The engine's promises: exact deferred catch-up, depth by policy, and a loop one can stop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spark.engine import Engine, Generation, Prefill
from spark.heads import Head
from spark.modality import Interleave, Modality, Slot
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule
from spark.sampling import SamplingSettings
from spark.schedule import MEASURES, ConfidenceExit, FixedExit, FullDepth, Policy, Spark
from spark.trace import Flush, Step
from tests.tiny import tiny_lm

TA4, BLOCKS = Interleave(1, 4), Interleave(3, 7, speech_tail=True)


@lru_cache
def exact_lm(family: str, layout: Interleave, seed: int) -> SpokenLM:
    """Six layers in float64."""
    return tiny_lm(seed, layers=6, family=family, layout=layout, dtype=torch.float64)


class Recorder(Head):
    """A head that keeps the states it was asked about."""

    seen: list[Tensor]

    def logits(self, states: Tensor) -> Tensor:
        """Logits as ever."""
        self.seen.append(states.clone())
        return super().logits(states)


def watched(lm: SpokenLM, **options: bool) -> tuple[Engine, list[Tensor]]:
    """An engine whose heads write the states they see into one list, in order."""
    engine, seen = Engine(lm, outside_mass=False, **options), []
    for name, head in engine.bank.heads.items():
        parts = (head.gain, head.rows, head.eps, head.row_ids, head.lens, head.lens_bias)
        engine.bank.heads[name] = Recorder(*parts)
        object.__setattr__(engine.bank.heads[name], "seen", seen)
    return engine, seen


@torch.inference_mode()
def teacher_forced(lm: SpokenLM, ids: tuple[int, ...]) -> tuple[list[Tensor], Prefill]:
    """The full model over all ids at once: states after each layer (T, D), and its cache."""
    body = lm.transformer
    cache, states = body.new_cache(len(ids)), body.embed(torch.tensor([ids]))
    after = [states[0]]
    for layer in range(body.num_layers):
        states = body.run_layers(layer, layer + 1, states, torch.arange(len(ids)), cache)
        after.append(states[0])
    return after, Prefill(ids, cache, 0.0)


def assert_cache_is_prefix(given: Generation, full: Prefill) -> None:
    """Each layer holds the full model's keys and values, oldest first."""
    cache = given._decoding.cache
    for layer, held in enumerate(cache.lengths):
        expected = full.cache.rows(layer)[:, :, :held]
        assert (cache.rows(layer) - expected).abs().max() < 1e-10


depths = st.none() | st.integers(1, 5)
policies = st.one_of(
    st.just(FullDepth()),
    st.builds(
        PositionSchedule,
        st.lists(depths, min_size=1, max_size=8).map(tuple),
        st.lists(depths, max_size=3).map(lambda text: (None, *text)),
    ),
    st.builds(Spark, st.integers(1, 5), st.integers(2, 6)),
    st.builds(Spark, st.integers(1, 5), variant=st.sampled_from(["triple", "even", "odd"])),
    st.builds(
        ConfidenceExit,
        st.sampled_from(MEASURES),
        st.sampled_from([0.05, 0.15, 0.3, 0.9, 0.99]),
        st.sets(st.integers(1, 5), min_size=1).map(lambda layers: tuple(sorted(layers))),
        st.sampled_from([None, 4.0]),
        st.sampled_from([("speech",), ("text", "speech")]),
        st.integers(1, 8),
    ),
)


@settings(max_examples=60)
@given(
    policy=policies,
    layout=st.sampled_from([TA4, BLOCKS]),
    family=st.sampled_from(["qwen2", "glm"]),
    seed=st.integers(0, 3),
    stop_after=st.integers(1, 40),
    sliced=st.booleans(),
)
def test_keystone_deferred_catch_up_is_exact(
    policy: Policy, layout: Interleave, family: str, seed: int, stop_after: int, sliced: bool
) -> None:
    """Every head sees the full model's states; a flush leaves the full model's cache.

    Over two turns, the first ended by a stop, its limit, or an interrupt.
    """
    lm = exact_lm(family, layout, seed)
    engine, seen = watched(lm, speech_row_head=sliced)
    history = engine.prefill(lm.encode_prompt("hello"))
    for turn in range(2):
        reply = engine.generate(history, policy, SamplingSettings(1.0, seed=seed), 45)
        asked = []  # the deciding head's states, depth and position
        for step in reply:
            asked.append((seen[-1][0], step.depth, len(history.ids) + step.index - 1))
            if step.index + 1 == stop_after:
                reply.interrupt()
        ended = reply.history()
        after, full = teacher_forced(lm, ended.ids)
        for state, depth, position in asked:
            assert (state - after[depth][position]).abs().max() < 1e-10
        assert ended.cache.lengths == [len(ended.ids) - 1] * 6
        assert_cache_is_prefix(reply, full)
        if turn == 0:
            history = engine.prefill(lm.encode_prompt("and now"), ended)


@settings(max_examples=20)
@given(policy=policies, stop_after=st.integers(1, 25))
def test_what_is_pending_is_a_prefix_too(policy: Policy, stop_after: int) -> None:
    """Before any flush, each layer holds the full model's first rows and the rest is pending."""
    lm = exact_lm("qwen2", TA4, 1)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    reply = engine.generate(start, policy, SamplingSettings(), stop_after)
    steps = list(reply)
    _, full = teacher_forced(lm, (*start.ids, *reply.trace.ids()))
    lengths = reply._decoding.cache.lengths
    assert lengths[0] - lengths[-1] == steps[-1].pending
    assert lengths == sorted(lengths, reverse=True)
    assert_cache_is_prefix(reply, full)


def reply_of(policy: Policy, lm: SpokenLM | None = None, **options: object) -> list[Step]:
    """A greedy reply's steps."""
    lm = lm or tiny_lm(0, ends=False)
    engine = Engine(lm)
    sampling = SamplingSettings(temperature=0)
    start = engine.prefill(lm.encode_prompt("hello"))
    return list(engine.generate(start, policy, sampling, **options))  # type: ignore[arg-type]


def test_other_kv_policies_are_not_exact_and_say_so() -> None:
    lm = tiny_lm(0, layers=6, dtype=torch.float64, ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    for kv_policy in ("propagate", "skip"):
        reply = engine.generate(start, Spark(2), SamplingSettings(), 30, kv_policy=kv_policy)
        steps = list(reply)
        assert reply.trace.kv_policy == kv_policy
        assert {step.pending for step in steps} == {0}
        assert not any(step.refresh for step in steps)
        _, full = teacher_forced(lm, (*start.ids, *reply.trace.ids()))
        cache, exited = reply._decoding.cache, sum(step.depth == 2 for step in steps)
        assert exited > 10
        if kv_policy == "skip":
            lost = [cache.lengths[0] - held for held in cache.lengths]
            assert lost == [0, 0, *[exited] * 4]
        else:
            assert len(set(cache.lengths)) == 1
            wrong = cache.rows(3) - full.cache.rows(3)[:, :, : cache.lengths[3]]
            assert wrong.abs().max() > 1e-3


@torch.inference_mode()
def test_propagated_keys_are_calms() -> None:
    """Keys and values above an exit are those layers' projections of the exit state."""
    lm = tiny_lm(0, dtype=torch.float64)
    body = lm.transformer
    states = body.embed(torch.tensor([[7]]))
    cache, once = body.new_cache(1), body.new_cache(1)
    body.append_keys(1, 4, states, torch.tensor([0]), cache)
    for layer in range(1, 4):  # a layer run on the same states projects the same keys
        body.run_layers(layer, layer + 1, states, torch.tensor([0]), once)
        torch.testing.assert_close(cache.rows(layer), once.rows(layer))


def test_triple_on_the_papers_shape_costs_the_papers_depth() -> None:
    """14 layers, exit 11, chunks of 4: F S S F, so 12.5 of 14, as 25 of 28 in the paper."""
    lm = tiny_lm(0, layers=14, exits=(11,), ends=False)
    steps = [step for step in reply_of(Spark(11, variant="triple"), lm) if step.chunk < 3]
    speech = [step.depth for step in steps if step.slot is Slot.SPEECH]
    assert speech == [14, 11, 11, 14] * 3
    text = [step for step in steps if step.slot is Slot.TEXT]
    assert {step.depth for step in text} == {14}
    assert [step.pending for step in steps[:6]] == [0, 0, 1, 2, 0, 0]
    assert [step.refresh for step in steps[:6]] == [False, False, False, False, True, False]


def test_rows_pending_at_a_chunks_end_ride_in_the_text_step() -> None:
    steps = reply_of(Spark(2, k=4))
    groups = [step for step in steps if step.chunk in (1, 2)]
    assert [step.depth for step in groups] == [4, 4, 2, 2, 2] * 2
    assert [step.pending for step in groups] == [0, 0, 1, 2, 3] * 2
    assert [step.refresh for step in groups] == [True, False, False, False, False] * 2


def test_fixed_exit_never_refreshes() -> None:
    lm = tiny_lm(0)
    engine = Engine(lm)
    reply = engine.generate(
        engine.prefill(lm.encode_prompt("hi")), FixedExit(2), SamplingSettings(), 30
    )
    steps = list(reply)
    assert {step.depth for step in steps if step.slot is Slot.SPEECH} == {2}
    assert {step.depth for step in steps if step.slot is Slot.TEXT} == {4}
    assert not any(step.refresh for step in steps)
    assert reply.trace.kv_policy == "skip"


def test_fixed_exit_stays_fixed_after_a_surprise() -> None:
    """Whatever the layout's surprises: speech slots exit, and nothing else does."""
    surprises = 0
    for seed in range(8):
        lm = tiny_lm(seed)
        engine = Engine(lm)
        start = engine.prefill(lm.encode_prompt("hello"))
        hot = SamplingSettings(temperature=4.0, top_p=1.0, seed=seed)
        state = lm.layout.start(lm.vocabulary)
        for step in engine.generate(start, FixedExit(2), hot, 60):
            surprises += state.disagreed
            expected = (2, "exit2") if step.slot is Slot.SPEECH else (4, "full")
            assert (step.depth, step.head) == expected
            state.advance(step.token_id)
    assert surprises > 20


def test_confidence_charges_every_head_it_asks() -> None:
    policy = ConfidenceExit("max_prob", 1.0, (1, 2, 3))
    speech = [step for step in reply_of(policy) if step.slot is Slot.SPEECH]
    assert {step.heads for step in speech} == {("exit1", "exit2", "exit3", "speech")}
    assert {step.depth for step in speech} == {4}
    eager = [s for s in reply_of(replace(policy, threshold=0.0)) if s.slot is Slot.SPEECH]
    assert {step.heads for step in eager} == {("exit1",)}
    by_state = replace(policy, measure="state_similarity", threshold=0.0)
    asked = [step for step in reply_of(by_state) if step.slot is Slot.SPEECH]
    assert {step.heads for step in asked} == {("exit1",)}
    refused = [s for s in reply_of(replace(by_state, threshold=1.0)) if s.slot is Slot.SPEECH]
    assert {step.heads for step in refused} == {("speech",)}
    assert all(math.isnan(step.confidence) for step in refused)


def test_confidence_refreshes_at_the_latest_at_its_limit() -> None:
    policy = ConfidenceExit("max_prob", 0.0, (1, 3), max_pending=3)
    steps = reply_of(policy, tiny_lm(0, layout=Interleave(1, 12), ends=False))
    assert max(step.pending for step in steps) == 3
    assert all(b.depth == 4 for a, b in pairwise(steps) if a.pending == 3)


def test_text_exits_with_the_whole_vocabulary() -> None:
    """Fitted heads have no text rows, so text exits by the untrained head."""
    policy = ConfidenceExit("max_prob", 0.0, (2,), modalities=("text", "speech"), max_pending=3)
    steps = reply_of(policy)
    text = [step for step in steps if step.slot is Slot.TEXT and step.depth == 2]
    assert text
    assert {step.head for step in text} == {"untrained"}


def test_the_same_distribution_gives_the_same_tokens() -> None:
    """Policies differ through depth alone: an exit that never happens changes nothing."""
    lm = tiny_lm(2)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    sampling = SamplingSettings(1.0, 0.95, seed=5)
    full = [step.token_id for step in engine.generate(start, FullDepth(), sampling)]
    never = ConfidenceExit("max_prob", 1.0, (1, 3))
    assert [step.token_id for step in engine.generate(start, never, sampling)] == full
    other = [s.token_id for s in engine.generate(start, FullDepth(), replace(sampling, seed=6))]
    assert other != full


def test_speech_rows_change_nothing_where_only_they_could_be_drawn() -> None:
    """Greedy, and the model wants speech in speech slots: slicing the head is free."""
    lm = tiny_lm(0)
    start = Engine(lm).prefill(lm.encode_prompt("hello"))
    greedy = SamplingSettings(temperature=0)
    sliced = Engine(lm, speech_row_head=True).generate(start, FullDepth(), greedy)
    whole = Engine(lm, speech_row_head=False).generate(start, FullDepth(), greedy)
    for a, b in zip(sliced, whole, strict=True):
        assert a.token_id == b.token_id
        assert (a.head, b.head) == ("speech" if a.slot is Slot.SPEECH else "full", "full")
        assert math.isnan(a.outside_mass) == (a.slot is Slot.TEXT)
        assert math.isnan(b.outside_mass)


@torch.inference_mode()
def test_outside_mass_is_the_probability_left_out() -> None:
    lm = exact_lm("qwen2", TA4, 0)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    reply = engine.generate(start, FullDepth(), SamplingSettings(), 8)
    steps = list(reply)
    after, _ = teacher_forced(lm, (*start.ids, *reply.trace.ids()))
    rows = lm.vocabulary.speech_rows()
    for step in steps:
        if step.slot is Slot.SPEECH:
            state = after[-1][len(start.ids) + step.index - 1]
            p = engine.bank.heads["full"].logits(state).softmax(-1)
            assert step.outside_mass == pytest.approx(1 - float(p[rows].sum()), abs=1e-6)


@torch.inference_mode()
def test_outside_mass_is_measured_at_exits_of_the_untrained_head() -> None:
    lm = exact_lm("qwen2", TA4, 0)
    rows = lm.vocabulary.speech_rows()
    greedy = SamplingSettings(temperature=0)
    for head, measured in (("untrained", True), ("fitted", False)):
        engine = Engine(lm, head=head)  # type: ignore[arg-type]
        start = engine.prefill(lm.encode_prompt("hello"))
        reply = engine.generate(start, Spark(3, k=4), greedy, 12)
        exited = [step for step in reply if step.depth == 3]
        after, _ = teacher_forced(lm, (*start.ids, *reply.trace.ids()))
        assert exited
        for step in exited:
            state = after[3][len(start.ids) + step.index - 1]
            p = engine.bank.heads["full"].logits(state).softmax(-1)
            assert math.isnan(step.outside_mass) is not measured
            if measured:
                assert step.outside_mass == pytest.approx(1 - float(p[rows].sum()), abs=1e-6)


def test_a_surprise_is_followed_by_a_full_step() -> None:
    """The layout is left now and then; the step after always runs in full, on the whole head."""
    surprises = 0
    for seed in range(12):
        lm = tiny_lm(seed)
        engine = Engine(lm, speech_row_head=False)
        start = engine.prefill(lm.encode_prompt("hello"))
        hot = SamplingSettings(temperature=4.0, top_p=1.0, seed=seed)
        steps = list(engine.generate(start, Spark(2, k=4), hot, 60))
        state = lm.layout.start(lm.vocabulary)
        for step in steps:
            assert step.slot is state.slot
            if state.disagreed:
                surprises += 1
                assert (step.depth, step.head) == (4, "full")
            state.advance(step.token_id)
    assert surprises > 20


def test_a_head_blind_to_stops_does_not_decide_one() -> None:
    """An exit head without all control rows is cut to speech rows, much as it wants to stop."""
    lm = tiny_lm(0)
    words, base = lm.vocabulary, lm.exit_heads[2]
    assert base.row_ids is not None
    eager = base.rows.clone()
    eager[base.row_ids == words.stop_ids[0]] *= 50
    seeing = replace(base, rows=eager)
    keep = base.row_ids != words.tts_pad
    blind = replace(seeing, rows=eager[keep], row_ids=base.row_ids[keep])
    policy, hot = Spark(2, k=4), SamplingSettings(2.0, 1.0)
    stops = {}
    for name, head in (("seeing", seeing), ("blind", blind)):
        lm.exit_heads[2] = head
        engine = Engine(lm)
        start = engine.prefill(lm.encode_prompt("hello"))
        steps = [
            s for seed in range(5) for s in engine.generate(start, policy, replace(hot, seed=seed))
        ]
        exited = [step for step in steps if step.depth == 2]
        stops[name] = sum(step.token_id in words.stop_ids for step in exited)
        assert exited
        if name == "blind":
            assert {step.modality for step in exited} == {Modality.SPEECH}
    assert stops["seeing"] > 0
    assert stops["blind"] == 0


def test_streaming_stops_and_limits() -> None:
    lm = tiny_lm(0)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    reply = engine.generate(start, FullDepth(), SamplingSettings(), 7)
    assert [step.index for step in reply] == list(range(7))
    assert reply.trace.finish == "length"
    assert next(reply, None) is None
    cut = engine.generate(start, FullDepth(), SamplingSettings())
    next(cut)
    cut.interrupt()
    assert list(cut) == []
    assert (cut.trace.finish, len(cut.trace.steps)) == ("interrupted", 1)
    ended = engine.generate(start, FullDepth(), SamplingSettings())
    last = list(ended)[-1]
    assert ended.trace.finish == "stop"
    assert last.token_id in lm.vocabulary.stop_ids
    assert start.cache.lengths == [len(start.ids) - 1] * 4, "a reply works on its own copy"


def test_a_flush_of_its_own_only_with_a_turn_to_follow() -> None:
    lm = tiny_lm(0)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    reply = engine.generate(start, Spark(1, k=4), SamplingSettings(), 5)
    assert list(reply)[-1].pending == 3
    assert reply.trace.flushes == []
    reply.history()
    assert reply.trace.flushes == [Flush(1, 4)]
    assert reply.trace.flush_ms > 0
    reply.history()
    assert reply.trace.flushes == [Flush(1, 4)], "nothing is pending any more"


def test_repetition_penalty_reaches_the_loop() -> None:
    lm = tiny_lm(0, ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    distinct = {}
    for penalty in (1.0, 1.5):
        chosen = SamplingSettings(temperature=0, repetition_penalty=penalty)
        reply = engine.generate(start, FullDepth(), chosen, 60)
        distinct[penalty] = len({step.token_id for step in reply})
    assert distinct[1.5] > distinct[1.0]


@pytest.mark.parametrize(
    ("policy", "options", "words"),
    [
        (Spark(4), {}, "exit layer 4"),
        (ConfidenceExit("margin", 0.5, (0, 2)), {}, "exit layer 0"),
        (FullDepth(), {"kv_policy": "copy"}, "KV policy"),
        (FullDepth(), {"max_tokens": 0}, "at least one"),
    ],
)
def test_impossible_settings_are_refused(
    policy: Policy, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        reply_of(policy, **options)


def test_prompts_that_do_not_fit_are_refused() -> None:
    lm = tiny_lm(0)
    engine = Engine(lm)
    with pytest.raises(ValueError, match="empty"):
        engine.prefill([])
    long = engine.prefill([1] * 1000)
    with pytest.raises(ValueError, match="shorten"):
        engine.generate(long, FullDepth(), SamplingSettings())
