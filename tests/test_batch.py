"""Replies decoded together come to what they would alone, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark.acceptance import ALWAYS, EXACT, Acceptance
from spark.cache import Rows
from spark.engine import Engine, Generation, decode_batch
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, KVPolicy, Policy, Spark
from spark.work import Run
from spark.worker import Worker
from tests.tiny import tiny_lm

LAYOUTS = [Interleave(1, 4), Interleave(3, 7, speech_tail=True)]


@lru_cache
def exact_lm(family: str, layout: Interleave, ends: bool) -> SpokenLM:
    """Six layers in float64."""
    return tiny_lm(1, layers=6, family=family, layout=layout, ends=ends, dtype=torch.float64)


@dataclass(frozen=True)
class Wanted:
    """One reply."""

    prompt: str
    policy: Policy
    sampling: SamplingSettings
    limit: int
    kv_policy: KVPolicy | None = None
    acceptance: Acceptance = ALWAYS

    def begin(self, engine: Engine) -> Generation:
        """In an engine, its prompt run."""
        prefill = engine.prefill(engine.lm.encode_prompt(self.prompt))
        return engine.generate(prefill, self.policy, self.sampling, self.limit, self.kv_policy,
                               self.acceptance)  # fmt: skip


exits = st.one_of(
    st.builds(Spark, st.integers(1, 5), st.integers(2, 4)),
    st.builds(
        ConfidenceExit,
        st.sampled_from(["max_prob", "margin", "entropy", "state_similarity"]),
        st.sampled_from([0.05, 0.3, 0.9]),
        st.just((2, 4)),
        st.none(),
        st.sampled_from([("speech",), ("text", "speech")]),
    ),
)
samplings = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.7]),
    top_p=st.sampled_from([0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 99),
)
prompts = st.sampled_from(["hello", "a much longer question than that one", "ok"])
wanted = st.one_of(
    st.builds(Wanted, prompts, st.just(FullDepth()), samplings, st.integers(1, 40)),
    st.builds(Wanted, prompts, exits, samplings, st.integers(1, 40),
              st.sampled_from([None, "propagate", "skip"])),
    st.builds(Wanted, prompts, exits, samplings, st.integers(1, 40), st.none(),
              st.sampled_from([EXACT, Acceptance("relaxed", 0.5)])),
    st.builds(Wanted, prompts, st.builds(FixedExit, st.integers(1, 5)), samplings,
              st.integers(1, 40)),
)  # fmt: skip


@settings(max_examples=60)
@given(
    family=st.sampled_from(["qwen2", "glm"]),
    layout=st.sampled_from(LAYOUTS),
    ends=st.booleans(),
    replies=st.lists(wanted, min_size=1, max_size=7),
    size=st.integers(1, 5),
)
def test_each_reply_is_the_one_it_would_be_alone(
    family: str, layout: Interleave, ends: bool, replies: list[Wanted], size: int
) -> None:
    """Tokens, depths, heads, rejections, flushes and the cache, whatever stands beside it."""
    lm = exact_lm(family, layout, ends)
    engine = Engine(lm)
    begun: list[Generation] = []

    def beginning():
        for want in replies:
            begun.append(want.begin(engine))
            yield begun[-1]

    over = list(decode_batch(beginning(), size))
    assert {id(reply) for reply in over} == {id(reply) for reply in begun}
    for want, given_ in zip(replies, begun, strict=True):
        alone = want.begin(Engine(lm))
        for _ in alone:
            pass
        ours, plain = given_.trace, alone.trace
        for name in ("token_id", "depth", "refresh", "pending", "heads", "slot", "chunk"):
            found = [getattr(step, name) for step in ours.steps]
            assert found == [getattr(step, name) for step in plain.steps], name
        for name in ("finish", "verified", "corrected", "flushes"):
            assert getattr(ours, name) == getattr(plain, name), name
        assert [x.token_id for x in ours.rejected] == [x.token_id for x in plain.rejected]
        assert 1 <= ours.batch <= min(size, len(replies))
        held, expected = given_._decoding.cache, alone._decoding.cache
        assert held.lengths == expected.lengths
        for layer in range(6):
            rows, other = held.rows(layer), expected.rows(layer)
            torch.testing.assert_close(rows, other, rtol=0, atol=1e-10)


def test_one_schedule_keeps_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one schedule leave together: the weights are read as often as for one of them."""
    lm = exact_lm("qwen2", LAYOUTS[0], False)
    want = Wanted("hello", Spark(3), SamplingSettings(seed=3), 30)
    runs = []
    for method in ("run_layers", "run_ragged"):
        plain = getattr(type(lm.transformer), method)

        def counted(self, low, high, *rest, plain=plain):
            runs.append((low, high))
            return plain(self, low, high, *rest)

        monkeypatch.setattr(type(lm.transformer), method, counted)
    engine = Engine(lm)
    one = want.begin(engine)
    runs.clear()
    list(one)
    alone = list(runs)
    many = [Wanted(f"hello {n}", Spark(3), SamplingSettings(seed=n), 30).begin(engine)
            for n in range(4)]  # fmt: skip
    runs.clear()
    assert all(reply.trace.batch == 4 for reply in decode_batch(many, 4))
    assert runs == alone


def test_a_reply_joins_where_another_opens_a_group() -> None:
    """So that replies that begin late exit with the others."""
    lm = exact_lm("qwen2", LAYOUTS[0], False)
    engine = Engine(lm)
    first = Wanted("hello", Spark(3), SamplingSettings(), 12).begin(engine)
    short = Wanted("hello", Spark(3), SamplingSettings(), 3).begin(engine)
    counts: list[int] = []

    def replies():
        yield first
        yield short
        counts.append(first._decoding._count)
        yield Wanted("ok", Spark(3), SamplingSettings(), 12).begin(engine)

    list(decode_batch(replies(), 2))
    assert counts == [5]  # one text and four speech tokens a group


def test_what_cannot_be_batched_is_refused() -> None:
    lm = exact_lm("qwen2", LAYOUTS[0], False)
    want = Wanted("hello", FullDepth(), SamplingSettings(), 5)
    with pytest.raises(ValueError, match="room for at least one"):
        list(decode_batch([], 0))
    with pytest.raises(ValueError, match="one engine"):
        list(decode_batch([want.begin(Engine(lm)), want.begin(Engine(lm))], 2))
    assert list(decode_batch([], 3)) == []


@pytest.mark.parametrize("acceptance", [ALWAYS, EXACT])
@pytest.mark.parametrize("steps", range(1, 9))
def test_another_turn_follows_a_reply_that_was_stopped_in_a_batch(
    acceptance: Acceptance, steps: int
) -> None:
    """Its last step is drawn, not handed out, and may wait at an exit: nothing of it stays."""
    lm = exact_lm("qwen2", LAYOUTS[0], ends=False)
    engine, how = Engine(lm), SamplingSettings(seed=4)
    made = [
        Wanted("hello", Spark(2, 4), how, 40, acceptance=acceptance).begin(engine) for _ in "ab"
    ]
    going = decode_batch(made, 2)
    together = engine._worker.together
    rounds = 0

    def counted(tasks: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == steps:
            made[0].interrupt()
        return together(tasks)

    engine._worker.together = counted  # type: ignore[method-assign]
    assert next(going) is made[0]
    history = made[0].history()
    assert made[0].trace.finish == "interrupted"
    assert set(history.cache.lengths) == {len(history.ids) - 1}
    fresh = engine.prefill(history.ids)
    for layer in range(6):
        assert torch.allclose(history.cache.rows(layer), fresh.cache.rows(layer), atol=1e-10)


def test_an_interrupted_reply_leaves_the_batch() -> None:
    lm = exact_lm("qwen2", LAYOUTS[0], False)
    engine = Engine(lm)
    stopped, other = (Wanted("hello", Spark(3), SamplingSettings(), 9).begin(engine)
                      for _ in range(2))  # fmt: skip
    stopped.interrupt()
    over = list(decode_batch([stopped, other], 2))
    assert over == [stopped, other]
    assert (stopped.trace.finish, len(stopped.trace.steps)) == ("interrupted", 0)
    assert (other.trace.finish, len(other.trace.steps)) == ("length", 9)


@pytest.mark.parametrize("family", ["qwen2", "glm"])
@pytest.mark.parametrize("bits", [16, 8])
def test_ragged_rows_are_run_as_if_alone(family: str, bits: int) -> None:
    """Sequences of different lengths bring different numbers of rows."""
    body = exact_lm(family, LAYOUTS[0], False).transformer
    if bits == 8:
        rough = type(body).from_state_dict(body.state_dict(), body.config, bits=8)
        assert rough.layer_bytes(0) < body.layer_bytes(0)
        body = rough
    rng = torch.Generator().manual_seed(5)
    shapes = [(7, 1), (3, 4), (0, 2), (12, 3)]  # rows in the cache, rows more
    caches, forks, pieces = [], [], []
    for older, more in shapes:
        ids = torch.randint(0, body.config.vocab_size, (1, older + more), generator=rng)
        cache, states = body.new_cache(older + more), body.embed(ids)
        if older:
            body.run_layers(0, 6, states[:, :older], torch.arange(older), cache)
        caches.append(cache)
        forks.append(cache.fork(older + more))
        pieces.append(Rows(states[:, older:], older))
    places = [torch.arange(rows.start, rows.end) for rows in pieces]
    together = body.run_ragged(
        1, 5, torch.cat([rows.states[0] for rows in pieces]), torch.cat(places), caches,
        [more for _, more in shapes],
    )  # fmt: skip
    alone = [body.run_layers(1, 5, rows.states, place, fork)[0]
             for rows, place, fork in zip(pieces, places, forks, strict=True)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-11)
    for cache, fork in zip(caches, forks, strict=True):
        assert cache.lengths == fork.lengths
        torch.testing.assert_close(cache.rows(3), fork.rows(3), rtol=0, atol=1e-11)


def test_tasks_of_any_length_end_in_order() -> None:
    """Also those that ask for nothing."""
    lm = exact_lm("qwen2", LAYOUTS[0], False)
    body, worker = lm.transformer, Worker(lm.transformer, Engine(lm).bank)

    def task(name: str, rounds: int):
        cache = body.new_cache(max(rounds, 1))
        for place in range(rounds):
            states = yield Run(0, 6, Rows(body.embed(torch.tensor([[3]])), place), cache)
            assert states.shape == (1, 1, body.config.hidden_size)
        return name

    asked = [task("none", 0), task("three", 3), task("one", 1)]
    assert worker.together(asked) == ["none", "three", "one"]
    assert worker.together([]) == []
