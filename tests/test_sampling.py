"""Sampling against transformers' processors, a plain slow reference, and the noise's own law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spark.sampling import SamplingSettings, _mix, draw, filtered, gumbel

chosen = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.7]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    repetition_penalty=st.sampled_from([1.0, 1.05, 1.8]),
    seed=st.integers(-(2**70), 2**70),
)


WIDTH = 300  # more than the rows looked at first


def random_logits(seed: int, rows: int = 1) -> Tensor:
    """Normal logits of some spread, flat ones now and then, (rows, WIDTH)."""
    make = torch.Generator().manual_seed(seed)
    return (3 if seed % 3 else 0.1) * torch.randn(rows, WIDTH, generator=make)


def slow_probabilities(logits: Tensor, seen: list[int], s: SamplingSettings) -> Tensor:
    """transformers' processors in its order, then a softmax; (V,)."""
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(s.repetition_penalty)])
    chain.append(TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        chain.append(TopKLogitsWarper(s.top_k))
    chain.append(TopPLogitsWarper(s.top_p))
    return chain(torch.tensor([seen]), logits.clone())[0].softmax(-1)


@settings(max_examples=150)
@given(chosen, st.integers(0, 999), st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=20))
def test_draws_are_the_slow_references(s: SamplingSettings, seed: int, seen: list[int]) -> None:
    logits = random_logits(seed)
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    mask[seen] = True
    p = slow_probabilities(logits, seen, s)
    noise = gumbel(s.seed, 17, torch.arange(WIDTH))
    best, best_score = -1, -math.inf
    for token in range(WIDTH):
        if p[token] > 0 and float(p[token].log() + noise[token]) > best_score:
            best, best_score = token, float(p[token].log() + noise[token])
    assert int(draw(logits, None, s, 17, mask)) == best


@settings(max_examples=50)
@given(chosen, st.integers(0, 999))
def test_filters_keep_transformers_tokens(s: SamplingSettings, seed: int) -> None:
    logits = random_logits(seed)
    log_p, columns = filtered(logits, s)
    plain = SamplingSettings(s.temperature, s.top_p, s.top_k)
    expected = slow_probabilities(logits, [0], plain)
    kept = log_p.exp() / log_p.exp().sum()
    given_p = torch.zeros(WIDTH).scatter(0, columns[0], kept[0])
    torch.testing.assert_close(given_p, expected)


def test_a_batch_gives_what_each_row_gives() -> None:
    logits = random_logits(3, rows=7)
    s = SamplingSettings(1.0, 0.8)
    together = draw(logits, None, s, 5)
    assert together.tolist() == [int(draw(row[None], None, s, 5)) for row in logits]


def test_slices_draw_the_same_token() -> None:
    """Rows left out that could not be drawn anyway change nothing."""
    logits = random_logits(1, rows=50)
    logits[:, :20] = -1e4
    ids = torch.arange(20, WIDTH)
    for s in (SamplingSettings(), SamplingSettings(1.0, 1.0), SamplingSettings(0.0)):
        for position in range(20):
            whole = draw(logits, None, s, position)
            assert torch.equal(whole, draw(logits[:, 20:], ids, s, position))


@given(st.integers(-(2**70), 2**70), st.integers(0, 10**6), st.permutations(range(40)))
def test_noise_belongs_to_the_token(seed: int, position: int, order: list[int]) -> None:
    ids = torch.tensor(order)
    whole = gumbel(seed, position, torch.arange(40))
    assert torch.equal(gumbel(seed, position, ids), whole[ids])
    assert torch.equal(gumbel(seed, position, ids[:7].view(1, 7)), whole[ids[:7]].view(1, 7))


def test_noise_is_splitmix64() -> None:
    """Against the generator in plain integer arithmetic."""

    def mix(z: int) -> int:
        z &= 2**64 - 1
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    gold = 0x9E3779B97F4A7C15
    assert mix(gold) == 0xE220A8397B1DCDAF  # SplitMix64's first output from state 0
    for seed, position, token in ((0, 0, 0), (1, 7, 158_257), (-5, 2**40, 3)):
        word = mix(mix(mix(seed + gold) + position * gold) + token * gold)
        uniform = ((word >> 12) + 0.5) / 2**52
        noise = float(gumbel(seed, position, torch.tensor([token])))
        assert noise == pytest.approx(-math.log(-math.log(uniform)), rel=1e-6)


@pytest.mark.parametrize("wanted", [0, 2**64 - 1])
def test_noise_is_finite_for_the_smallest_and_largest_word(wanted: int) -> None:
    """SplitMix64 is a bijection, so an id with that word can be found by going backwards."""

    def unshift(z: int, by: int) -> int:
        found = z
        for _ in range(64 // by):
            found = z ^ (found >> by)
        return found

    def unmix(z: int) -> int:
        z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
        z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
        return unshift(z, 30)

    gold = 0x9E3779B97F4A7C15
    key = _mix(_mix(1 + gold) + 7 * gold & (2**64 - 1))
    token = (unmix(wanted) - key) * pow(gold, -1, 2**64) % 2**64
    noise = gumbel(1, 7, torch.tensor([token - 2**64 if token >> 63 else token]))
    assert noise.isfinite().all()
    edge = -math.log(-math.log(2.0**-53)) if wanted == 0 else 53 * math.log(2)
    assert float(noise) == pytest.approx(edge, rel=1e-6)


def test_noise_follows_gumbels_law() -> None:
    """Over tokens, over positions, over seeds; and neighbours are not related."""
    over_ids = gumbel(1, 2, torch.arange(20_000)).numpy()
    over_positions = torch.cat([gumbel(1, i, torch.tensor([9])) for i in range(4000)]).numpy()
    over_seeds = torch.cat([gumbel(i, 2, torch.tensor([9])) for i in range(4000)]).numpy()
    for sample in (over_ids, over_positions, over_seeds):
        assert stats.kstest(sample, "gumbel_r").pvalue > 1e-3
        assert abs(stats.spearmanr(sample[1:], sample[:-1]).statistic) < 0.06


def test_draws_follow_the_distribution() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    s = SamplingSettings(1.0, 1.0, seed=4)
    counts = torch.zeros(4)
    for position in range(4000):
        counts[draw(p.log(), None, s, position)] += 1
    assert stats.chisquare(counts.numpy(), 4000 * p[0].numpy()).pvalue > 1e-3


def test_greedy_ignores_the_seed() -> None:
    logits = random_logits(8, rows=4)
    for seed in range(3):
        s = SamplingSettings(temperature=0, seed=seed)
        assert torch.equal(draw(logits, None, s, seed), logits.argmax(-1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"top_k": -1}, "top-k"),
        ({"repetition_penalty": 0.0}, "repetition"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingSettings(**values)  # type: ignore[arg-type]
