"""Acceptance: exact is full depth on any schedule, relaxed keeps its word, costs are whole."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spark.acceptance import ALWAYS, EXACT, Acceptance, sound_groups
from spark.engine import Engine, Generation, Prefill
from spark.metrics.cost import step_bytes, traffic_bytes, traffic_ratio
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import MEASURES, ConfidenceExit, FixedExit, FullDepth, Policy, Spark
from spark.trace import Flush
from tests.golden.make import golden_lm
from tests.slow_decoding import SlowDecoder, slow_reply
from tests.test_golden import stored
from tests.tiny import BleepVocoder, tiny_lm

LAYOUTS = (Interleave(1, 4), Interleave(3, 7, speech_tail=True))
EXITS = (1, 2)


@lru_cache
def golden(family: str, dtype: torch.dtype) -> SpokenLM:
    """The golden model with both its layers' untrained exits, in a precision."""
    weights, _ = stored(family)
    lm = golden_lm(family, weights)
    body = type(lm.transformer).from_state_dict(lm.transformer.state_dict(),
                                                lm.transformer.config, dtype)  # fmt: skip
    return replace(lm, transformer=body)


@lru_cache
def tiny(
    seed: int, layout: Interleave, dtype: torch.dtype = torch.float64, ends: bool = False
) -> SpokenLM:
    """Three layers, fitted-looking heads; steered into its layout, leaves it now and then."""
    return tiny_lm(seed, layers=3, layout=layout, dtype=dtype, max_tokens=60, ends=ends)


policies = st.one_of(
    st.builds(Spark, st.sampled_from(EXITS), st.integers(2, 6)),
    st.builds(Spark, st.sampled_from(EXITS), variant=st.sampled_from(["triple", "even", "odd"])),
    st.builds(FixedExit, st.sampled_from(EXITS)),
    st.builds(
        ConfidenceExit,
        st.sampled_from(MEASURES),
        st.sampled_from([0.0, 0.03, 0.06, 0.15, 0.3, 0.9]),
        st.sampled_from([(1,), (2,), (1, 2)]),
        st.sampled_from([None, 4.0]),
        st.sampled_from([("speech",), ("text", "speech")]),
        st.integers(1, 8),
    ),
)
samplings = st.builds(
    SamplingSettings,
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.sampled_from([0, 5]),
    st.sampled_from([1.0, 1.3]),
    st.integers(0, 10**6),
)
precise = st.sampled_from([torch.float64, torch.float32])
models = st.one_of(
    st.builds(golden, st.sampled_from(["qwen2", "glm"]), precise),
    st.builds(tiny, st.integers(0, 3), st.sampled_from(LAYOUTS), precise, st.booleans()),
)
lenient = st.one_of(
    st.builds(Acceptance, st.just("relaxed"), st.sampled_from([0.01, 0.3, 1.0, 5.0])),
    st.just("groups"),
)


def rule(chosen: Acceptance | str, lm: SpokenLM) -> Acceptance:
    """The acceptance; codes in eights where it says groups."""
    if isinstance(chosen, Acceptance):
        return chosen
    ids = torch.arange(lm.vocabulary.size)
    codes = (ids >= lm.vocabulary.speech_start) & (ids < lm.vocabulary.speech_end)
    return Acceptance("relaxed", groups=torch.where(codes, -1 - ids // 8, ids))


def begin(
    lm: SpokenLM, policy: Policy, s: SamplingSettings, acceptance: Acceptance, **options: object
) -> Generation:
    """A reply of the untrained heads where the model has no fitted ones."""
    engine = Engine(lm, outside_mass=False)
    start = options.pop("start", None) or engine.prefill(lm.encode_prompt("hello"))
    return engine.generate(start, policy, s, kv_policy="deferred",
                           acceptance=acceptance, **options)  # type: ignore[arg-type]  # fmt: skip


@torch.inference_mode()
def full_cache(lm: SpokenLM, ids: tuple[int, ...]) -> list[Tensor]:
    """Keys and values of every layer, from one pass of the full model over all ids."""
    body = lm.transformer
    cache = body.new_cache(len(ids))
    states = body.embed(torch.tensor([ids]))
    body.run_layers(0, body.num_layers, states, torch.arange(len(ids)), cache)
    return [cache.rows(layer) for layer in range(body.num_layers)]


@settings(max_examples=150)
@given(
    lm=models, policy=policies, s=samplings, limit=st.integers(1, 45), stop_after=st.integers(0, 50)
)
def test_exact_is_full_depth(
    lm: SpokenLM, policy: Policy, s: SamplingSettings, limit: int, stop_after: int
) -> None:
    """Token for token over two turns, with stops, limits and interrupts; and so is the cache."""
    starts: list[Prefill | None] = [None, None]
    for _ in range(2):
        made, ended = [], []
        for start, one, acceptance in (
            (starts[0], FullDepth(), ALWAYS),
            (starts[1], policy, EXACT),
        ):
            reply = begin(lm, one, s, acceptance, start=start, max_tokens=limit)
            steps = []
            for step in reply:
                steps.append(step)
                if len(steps) == stop_after:
                    reply.interrupt()
            assert [x.token_id for x in steps] == reply.trace.ids(), "no step is taken back"
            ended.append(reply.history())
            made.append(reply.trace)
        full, exact = made
        assert exact.ids() == full.ids()
        assert exact.finish == full.finish
        for name in ("index", "chunk", "slot", "modality", "time_s"):
            ours = [getattr(step, name) for step in exact.steps]
            assert ours == [getattr(step, name) for step in full.steps], name
        assert ended[0].ids == ended[1].ids
        held = ended[1].cache
        assert held.lengths == [len(ended[1].ids) - 1] * lm.transformer.num_layers
        close = 1e-10 if lm.transformer.dtype == torch.float64 else 1e-4
        for layer, rows in enumerate(full_cache(lm, ended[1].ids)):
            assert (held.rows(layer) - rows[:, :, :-1]).abs().max() < close
        engine, asked = Engine(lm), lm.encode_prompt("and now")
        starts = [engine.prefill(asked, history) for history in ended]


@settings(max_examples=150)
@given(
    lm=st.one_of(
        st.builds(golden, st.sampled_from(["qwen2", "glm"]), st.just(torch.float64)),
        st.builds(tiny, st.integers(0, 3), st.sampled_from(LAYOUTS), ends=st.booleans()),
    ),
    policy=policies,
    s=samplings,
    limit=st.integers(1, 30),
    chosen=st.one_of(st.sampled_from([ALWAYS, EXACT]), lenient),
)
def test_every_acceptance_is_the_slow_references(
    lm: SpokenLM, policy: Policy, s: SamplingSettings, limit: int, chosen: Acceptance | str
) -> None:
    """Tokens, depths, what was rejected, and every byte that was read for it."""
    acceptance = rule(chosen, lm)
    reply = begin(lm, policy, s, acceptance, max_tokens=limit)
    for _ in reply:
        pass
    engine, trace = Engine(lm), reply.trace
    slow = slow_reply(engine, lm.encode_prompt("hello"), policy, s, limit, acceptance)
    assert trace.ids() == slow.tokens
    assert [step.depth for step in trace.steps] == slow.depths
    assert (trace.verified, trace.corrected) == (slow.verified, slow.corrected)
    assert traffic_bytes(trace) == slow.read
    by_flush = sum(not step.heads for step in trace.steps)
    assert len(trace.steps) + len(trace.rejected) == slow.drawn + by_flush


@settings(max_examples=30)
@given(lm=models, policy=policies, s=samplings)
def test_the_dials_ends_meet_its_neighbours(
    lm: SpokenLM, policy: Policy, s: SamplingSettings
) -> None:
    """Hardly any tolerance is exact; more than any logit, or one group for all, is always."""
    s = replace(s, repetition_penalty=1.0)
    everything = torch.zeros(lm.vocabulary.size, dtype=torch.int64)
    pairs = (
        (EXACT, Acceptance("relaxed", 1e-9)),
        (ALWAYS, Acceptance("relaxed", groups=everything)),
    )
    for plain, relaxed in pairs:
        one, other = (begin(lm, policy, s, acceptance, max_tokens=30) for acceptance in
                      (plain, relaxed))  # fmt: skip
        assert [x.token_id for x in one] == [x.token_id for x in other]


@settings(max_examples=30)
@given(lm=models, policy=policies, s=samplings)
def test_groups_are_full_depths_own(lm: SpokenLM, policy: Policy, s: SamplingSettings) -> None:
    """Every token is in the group of the one that full depth draws after the same tokens."""
    acceptance = rule("groups", lm)
    assert acceptance.groups is not None
    reply = begin(lm, policy, s, acceptance, max_tokens=30)
    for _ in reply:
        pass
    slow = SlowDecoder(Engine(lm), policy, s, acceptance)
    start = lm.encode_prompt("hello")
    ids = [*start, *reply.trace.ids()]
    after = slow.states(ids)
    for place in range(len(start), len(ids)):
        full, *_ = slow.full_draw(after, ids[:place], len(start))
        assert acceptance.alike(full, ids[place])


def test_rejected_work_is_charged_and_timed() -> None:
    lm = tiny(0, LAYOUTS[0], torch.float32)
    s = SamplingSettings(0.7)
    always = begin(lm, Spark(1, 5), s, ALWAYS)
    exact = begin(lm, Spark(1, 5), s, EXACT)
    for reply in (always, exact):
        for _ in reply:
            pass
    trace = exact.trace
    assert trace.corrected > 5
    assert len(trace.rejected) > trace.corrected, "whole runs of drafts go"
    assert traffic_ratio(trace) > traffic_ratio(always.trace)
    lost = sum(step_bytes(step, trace.weights, propagated=False) for step in trace.rejected)
    kept = replace(trace, rejected=[])
    assert lost > 0
    assert traffic_bytes(trace) == traffic_bytes(kept) + lost
    summary = trace.summary()
    assert summary["acceptance_rate"] == 1 - trace.corrected / trace.verified
    assert always.trace.summary()["acceptance_rate"] is None
    assert summary["decode_ms"] == pytest.approx(exact.spent_ms)
    assert always.trace.summary()["decode_ms"] == pytest.approx(always.spent_ms)


def test_what_was_drawn_ahead_of_an_interrupt_is_charged() -> None:
    lm = tiny(0, LAYOUTS[0], torch.float32)
    reply = begin(lm, Spark(2, 5), SamplingSettings(0.0), EXACT, max_tokens=40)
    for step in reply:
        if step.depth == 2:
            reply.interrupt()
    assert reply.trace.finish == "interrupted"
    assert [step.depth for step in reply.trace.steps][-1] == 2
    assert reply.trace.ahead, "the steps that followed it stood, and nobody will hear them"
    assert reply.trace.summary()["decode_ms"] == pytest.approx(reply.spent_ms)
    reply.history()
    assert reply.trace.flushes == []


def test_an_end_is_believed_only_after_full_depth_was_asked() -> None:
    """A limit in the middle of exits brings a catch-up of its own; SPAR-K leaves them."""
    lm = tiny(0, LAYOUTS[0], torch.float32)
    greedy = SamplingSettings(0.0)
    always = begin(lm, Spark(2, 5), greedy, ALWAYS, max_tokens=4)
    exact = begin(lm, Spark(2, 5), greedy, EXACT, max_tokens=4)
    assert list(always)[-1].pending == 2
    assert always.trace.flushes == []
    list(exact)
    assert set(exact.trace.flushes) == {Flush(2, 3, ("speech",))}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "sometimes"}, "unknown acceptance"),
        ({"mode": "relaxed"}, "needs a tolerance or groups"),
        ({"mode": "relaxed", "tolerance": -1.0}, "0 nats or more"),
        ({"mode": "relaxed", "tolerance": float("inf")}, "finite"),
        ({"mode": "exact", "tolerance": 1.0}, "takes no tolerance"),
        ({"groups": torch.zeros(3)}, "always acceptance takes no"),
    ],
)
def test_impossible_rules_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Acceptance(**settings)  # type: ignore[arg-type]


def test_without_refreshes_there_is_nothing_to_ask() -> None:
    lm = tiny_lm(0)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    for policy, kv_policy in ((FixedExit(2), None), (Spark(2), "propagate")):
        with pytest.raises(ValueError, match="needs the KV policy deferred"):
            engine.generate(start, policy, SamplingSettings(), 9, kv_policy, EXACT)
    assert list(engine.generate(start, FullDepth(), SamplingSettings(), 3, "skip", EXACT))


class PitchedVocoder(BleepVocoder):
    """Codes lie on a line by pitch; every fourth gap is wide."""

    code_points = torch.tensor([[code + 2.0 * (code // 4)] for code in range(24)])


def test_groups_of_codes_that_sound_alike() -> None:
    lm = replace(tiny_lm(0), vocoder=PitchedVocoder())
    groups, words = sound_groups(lm, 3.0), lm.vocabulary
    assert groups.shape == (words.size,)
    codes = groups[words.speech_start : words.speech_end]
    assert all(len(set(codes[i : i + 4].tolist())) == 1 for i in range(0, 24, 4))
    assert len(set(codes.tolist())) == 6
    others = [groups[i].item() for i in range(words.size) if not words.is_speech(i)]
    assert len({*others, *codes.tolist()}) == len(others) + 6, "other ids share with nobody"


def test_groups_are_never_wider_than_said() -> None:
    make = torch.Generator().manual_seed(0)
    points = torch.randn(24, 3, generator=make)
    vocoder = BleepVocoder()
    vocoder.code_points = points  # type: ignore[attr-defined]
    lm = replace(tiny_lm(0), vocoder=vocoder)
    nearest = sorted(
        min(float((a - b).norm()) for j, b in enumerate(points) if j != i)
        for i, a in enumerate(points)
    )
    for spread in (0.5, 1.5, 4.0):
        groups = sound_groups(lm, spread)[lm.vocabulary.speech_start :][:24]
        for i in range(24):
            for j in range(24):
                if groups[i] == groups[j]:
                    assert float((points[i] - points[j]).norm()) <= spread * nearest[12] + 1e-6
    assert len(sound_groups(lm, 4.0)[lm.vocabulary.speech_start :][:24].unique()) < 24
    with pytest.raises(ValueError, match="above 0"):
        sound_groups(lm, 0)
    with pytest.raises(ValueError, match="does not say which"):
        sound_groups(tiny_lm(0), 1.0)
