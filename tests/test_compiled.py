"""The compiled step beside the plain one: same numbers, same tokens, and no harm where it fails."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spark import compiled
from spark.acceptance import EXACT
from spark.cache import Leg, Rows, at_leg
from spark.compiled import library
from spark.compiled.draw import draw as compiled_draw
from spark.compiled.heads import CompiledHeads
from spark.compiled.step import MOST_ROWS, CompiledStep, parts_of, prepare, unsuited
from spark.compiled.tokens import CompiledTokens
from spark.confidence import confidence
from spark.engine import Engine
from spark.heads import Head
from spark.models import load
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings, draw
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, Policy, Spark
from spark.transformer import Transformer
from tests.tiny import random_state, tiny_config

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
# Head sizes beside inner sizes: of models in one part, and in two.
WIDE = [(16, 96), (80, 96), (32, 128), (64, 192)]
RELATIVE = 2e-5  # float32 sums of some hundred products, added up in another order

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def tiny_body(family: str, narrow: bool, **changes: Any) -> Transformer:
    config = tiny_config(family, **{**SIZES, **changes})
    state = {
        name: tensor.to(torch.bfloat16 if narrow else torch.float32).float()
        for name, tensor in random_state(config).items()
    }
    return Transformer.from_state_dict(state, config)


def step_of(body: Transformer) -> CompiledStep:
    prepare(body, wait=True)
    assert body.compiled is not None
    return body.compiled


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= RELATIVE * theirs.abs().max())


@needs_compiler
@pytest.mark.parametrize("family", ["qwen2", "glm"])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("head_dim", "inner"), WIDE)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_rows_through_any_layers_as_without_it(
    family: str, narrow: bool, head_dim: int, inner: int, data: Any
) -> None:
    body = tiny_body(family, narrow, head_dim=head_dim, intermediate_size=inner)
    assert parts_of(body.config) == (2 if head_dim in (32, 64) else 1)
    step, caches = step_of(body), [body.new_cache(64), body.new_cache(64)]
    make = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 6))):
        lo = data.draw(st.integers(0, body.num_layers - 1))
        hi = data.draw(st.integers(lo + 1, body.num_layers))
        rows, start = data.draw(st.integers(1, MOST_ROWS)), data.draw(st.integers(0, 900))
        states = torch.randn(1, rows, 64, generator=make)
        given_states = states.clone()
        plain = body.run_layers(lo, hi, states, torch.arange(start, start + rows), caches[0])
        fast = step.run_layers(lo, hi, states, start, caches[1])
        assert torch.equal(states, given_states)
        assert close(fast, plain)
        assert caches[0].lengths == caches[1].lengths
        for layer in range(lo, hi):
            assert close(caches[1].rows(layer), caches[0].rows(layer))


@needs_compiler
@pytest.mark.parametrize(("head_dim", "inner"), WIDE)
def test_a_row_is_the_same_to_the_bit_alone_in_company_and_on_more_threads(
    threads: None, head_dim: int, inner: int
) -> None:
    body = tiny_body("qwen2", True, head_dim=head_dim, intermediate_size=inner)
    step, states = step_of(body), torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for count, sizes in ((1, (7,)), (2, (7,)), (1, (1,) * 7), (3, (1, 6)), (4, (3, 1, 3))):
        torch.set_num_threads(count)
        cache, start, made = body.new_cache(32), 0, []
        for size in sizes:
            made.append(step.run_layers(0, 4, states[:, start : start + size], start, cache))
            start += size
        found.append(torch.cat(made, dim=1))
    assert all(torch.equal(found[0], other) for other in found[1:])


@needs_compiler
@pytest.mark.parametrize("rows", [32, 45])
@pytest.mark.parametrize("lens", [False, True])
def test_heads_give_the_same_logits(rows: int, lens: bool) -> None:
    make = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make)

    head = Head(
        normal(64), normal(rows, 64), 1e-6, None, *((normal(64, 64), normal(64)) if lens else ())
    )
    heads = CompiledHeads(step_of(tiny_body("qwen2", False)).library, {"one": head})
    for n in (1, 3, MOST_ROWS):
        states = normal(n, 64)
        assert heads.logits("one", states).shape == (n, rows)
        assert close(heads.logits("one", states), head.logits(states))


@needs_compiler
@pytest.mark.parametrize(("first", "shared"), [(32, True), (64, True), (5, False)])
@pytest.mark.parametrize("narrow", [False, True])
def test_rows_of_a_larger_head_lie_there_once(first: int, shared: bool, narrow: bool) -> None:
    make = torch.Generator().manual_seed(first)
    rows = torch.randn(110, 64, generator=make)
    rows = rows.bfloat16().float() if narrow else rows
    gains = torch.randn(2, 64, generator=make)
    bank = {"some": Head(gains[0], rows[first:], 1e-6), "all": Head(gains[1], rows, 1e-6)}
    heads = CompiledHeads(step_of(tiny_body("qwen2", False)).library, bank)
    states = torch.randn(3, 64, generator=make)
    for name, head in bank.items():
        assert close(heads.logits(name, states), head.logits(states))
    some, every = (heads.laid_out(name).logits for name in bank)
    assert (some == every + first * 64 * (2 if narrow else 4)) == shared


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(1, 300),
    rows=st.integers(1, 3),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 200, 1000]),
    some_ids=st.booleans(),
)
def test_the_same_tokens_are_drawn(
    seed: int, columns: int, rows: int, spread: float, temperature: float, top_p: float,
    top_k: int, some_ids: bool,
) -> None:  # fmt: skip
    built = library.library()
    assert built is not None
    make = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, columns + 3, generator=make)[:, :columns]
    ids = torch.randperm(4000, generator=make)[:columns] if some_ids else None
    settings = SamplingSettings(temperature, top_p, top_k, seed=seed)
    places, seeds = list(range(seed, seed + rows)), [seed + 7 * row for row in range(rows)]
    ours = compiled_draw(built, logits, ids, settings, places, seeds)
    assert ours.tolist() == draw(logits, ids, settings, places, None, seeds).tolist()


@needs_compiler
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_token_in_one_call_is_its_parts(data: Any) -> None:
    """To the bit, on whatever way up, and again where the same kinds of call come."""
    head_dim, inner = data.draw(st.sampled_from(WIDE))
    body = tiny_body(
        "qwen2", data.draw(st.booleans()), head_dim=head_dim, intermediate_size=inner
    )
    step, make = step_of(body), torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    caches = [body.new_cache(64), body.new_cache(64)]
    lens = (torch.randn(64, 64, generator=make), torch.zeros(64))
    rows = torch.randn(45, 64, generator=make)
    bank = {
        "whole": Head(torch.ones(64), rows, 1e-6),
        "some": Head(torch.ones(64), rows, 1e-6, 7 * torch.arange(45), *lens),
    }
    heads = CompiledHeads(step.library, bank)
    token = CompiledTokens(step, heads, bank, body.embedding)
    for start in range(0, 40, MOST_ROWS):
        ups = sorted(data.draw(st.sets(st.integers(1, 4), min_size=1)))
        counts = sorted(data.draw(st.integers(1, MOST_ROWS)) for _ in ups)
        pairs = zip([0, *ups], ups, counts, strict=False)
        legs = tuple(Leg(low, high, count) for low, high, count in pairs)
        name = data.draw(st.sampled_from(sorted(bank)))
        how = SamplingSettings(data.draw(st.sampled_from([0.0, 0.7])), 0.9)
        way = Rows(torch.randn(1, counts[-1], 64, generator=make), start)
        states, logits, drawn, sure = token.draw(
            legs, way, caches[0], name, how, seed=5, position=way.end
        )
        done: Tensor | None = None
        for leg in legs:
            begun = at_leg(way.states, leg, done)
            done = step.run_layers(leg.low, leg.high, begun, way.end - leg.count, caches[1])
        assert done is not None
        wanted = heads.logits(name, done[0, -1:])
        assert torch.equal(states[:, -1], done[:, -1])
        assert legs[-1].high == body.num_layers or torch.equal(states, done)
        assert torch.equal(logits, wanted)
        assert drawn == int(
            compiled_draw(step.library, wanted, bank[name].row_ids, how, [way.end], [5])
        )
        assert sure == pytest.approx(float(confidence("max_prob", wanted)), rel=1e-5)
        caches[0].lengths = [
            held - next((leg.count for leg in legs if leg.low <= layer < leg.high), 0)
            for layer, held in enumerate(caches[0].lengths)
        ]
        looked = token.look(legs, way, caches[0], name)
        assert torch.equal(looked[0], states)
        assert torch.equal(looked[1], logits)
        assert looked[2] == sure
        assert caches[0].lengths == caches[1].lengths
        for layer in range(body.num_layers):
            assert torch.equal(caches[0].rows(layer), caches[1].rows(layer))


@needs_compiler
def test_a_full_cache_is_refused_before_anything_is_written() -> None:
    body = tiny_body("qwen2", False)
    cache = body.new_cache(4)
    with pytest.raises(ValueError, match="is full"):
        step_of(body).run_layers(0, 2, torch.zeros(1, 5, 64), 0, cache)
    assert cache.lengths == [0] * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 40}, "multiples of 32"),
        ({"intermediate_size": 100}, "multiples of 32"),
        ({"head_dim": 24}, "multiples of 32"),
    ],
)
def test_models_it_is_not_made_for_keep_the_plain_step(changes: dict[str, int], says: str) -> None:
    body = tiny_body("qwen2", False, **changes)
    reason = unsuited(body)
    assert reason is not None
    assert says in reason
    prepare(body, wait=True)
    assert body.compiled is None


def test_other_types_and_8_bit_layers_keep_the_plain_step() -> None:
    config = tiny_config(**SIZES)
    state = random_state(config)
    for dtype in (torch.float64, torch.bfloat16):
        assert unsuited(Transformer.from_state_dict(state, config, dtype)) is not None
    eight = Transformer.from_state_dict(state, config, torch.float32, bits=8)
    assert unsuited(eight) == "its weights are not kept as they are multiplied"


@pytest.fixture(scope="module")
def lm() -> SpokenLM:
    found = load("embedded")
    prepare(found.transformer, wait=True)
    return found


@needs_compiler
@pytest.mark.parametrize(
    "policy",
    [
        FullDepth(), Spark(11, variant="triple"), Spark(5, k=6), FixedExit(7),
        ConfidenceExit("max_prob", 0.5, (5, 7, 9, 11, 12)),
        ConfidenceExit("state_similarity", 0.95, (5, 7, 9, 11, 12)),
    ],
    ids=lambda policy: f"{policy.name}-{policy.measure}",
)  # fmt: skip
def test_the_embedded_model_says_the_same(lm: SpokenLM, policy: Policy) -> None:
    replies = []
    for fast in (False, True):
        engine = Engine(lm, compiled=fast)
        start = engine.prefill(lm.encode_prompt("What is nineteen minus eight?"))
        made = engine.generate(start, policy, SamplingSettings(0.3, seed=3), 160)
        replies.append([step.token_id for step in made])
    assert replies[0] == replies[1]


@needs_compiler
def test_bytes_are_those_that_are_read(lm: SpokenLM) -> None:
    plain, fast = (Engine(lm, compiled=used).weight_bytes() for used in (False, True))
    layer = lm.transformer.layers[0]
    small = layer.attention_norm.gain.nbytes + layer.mlp_norm.gain.nbytes
    assert layer.qkv_bias is not None
    small += layer.qkv_bias.nbytes
    assert fast.layers[0] - small == (plain.layers[0] - small) // 2
    head = lm.exit_heads[11]
    assert head.lens is not None
    saved = plain.heads["exit11"] - fast.heads["exit11"]
    assert saved == head.lens.nbytes // 2 + plain.heads["speech"] // 2 - head.gain.nbytes // 2


@needs_compiler
@pytest.mark.parametrize("seed", range(3))
def test_exact_acceptance_is_full_depth_for_a_hot_sampler(lm: SpokenLM, seed: int) -> None:
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("Tell me the capital of Peru."))
    sampling = SamplingSettings(1.5, top_p=1.0, seed=seed)
    full = engine.generate(start, FullDepth(), sampling, 120)
    exact = engine.generate(start, Spark(9, k=5), sampling, 120, acceptance=EXACT)
    ids = [[step.token_id for step in made] for made in (full, exact)]
    assert ids[0] == ids[1]
    assert exact.trace.rejected  # so that something was taken back


@needs_compiler
def test_in_the_background_it_is_there_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    body = tiny_body("qwen2", False)
    monkeypatch.setattr(compiled.step, "kept", lambda: False)
    prepare(body)  # in the background
    for _ in range(1000):
        if body.compiled is not None:
            break
        time.sleep(0.01)
    assert isinstance(body.compiled, CompiledStep)


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing built, nothing remembered; the folder where builds are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (library._outcome, library._path)
    for one in caches:
        one.cache_clear()
    yield tmp_path / "spark-k-lab"
    for one in caches:
        one.cache_clear()


@needs_compiler
def test_it_is_built_once_for_all_runs(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not library.kept()
    assert library.library() is not None, library.missing()
    assert library.kept()
    assert [path.suffix for path in afresh.iterdir()] == [".so"]
    assert oct(afresh.stat().st_mode & 0o777) == "0o700"
    library._outcome.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # not asked again
    assert library.library() is not None


@needs_compiler
def test_a_folder_that_others_write_to_is_not_trusted(afresh: Path) -> None:
    afresh.mkdir(parents=True)
    afresh.chmod(0o777)
    assert library.library() is None
    assert "others can write" in library.missing()
    assert list(afresh.iterdir()) == []


@needs_compiler
def test_logits_that_are_no_numbers_give_some_token() -> None:
    built = library.library()
    assert built is not None
    logits = torch.full((1, 40), float("nan"))
    for top_p in (0.9, 1.0):
        got = compiled_draw(built, logits, None, SamplingSettings(0.7, top_p), [0], [0])
        assert 0 <= int(got) < 40


@pytest.mark.parametrize(
    ("compiler", "says"),
    [(None, "no C compiler"), ("false", "compiler failed"), ("nowhere-gcc", "nowhere-gcc")],
)
def test_without_a_working_compiler_everything_runs_as_before(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, says: str
) -> None:
    monkeypatch.setattr(library, "_compiler", lambda: compiler)
    assert not library.kept()
    body = tiny_body("qwen2", False)
    prepare(body, wait=True)
    assert body.compiled is None
    assert says in library.missing()
    assert library.version() is None
