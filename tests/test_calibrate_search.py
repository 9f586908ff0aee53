"""Calibration without replies of its own: prompts, the sweep's figures, the search, the front."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spark.calibrate import front, prompts, search
from spark.calibrate.calibration import costs_of, triple
from spark.calibrate.front import Limits, Loss, Tried
from spark.calibrate.search import Costs
from spark.calibrate.sweep import Cell, Masses, Sweep, Sweeper, compared
from spark.calibrate.trials import Setting
from spark.engine import Engine
from spark.evaluation.suite import builtin
from spark.lens import slots
from spark.modality import Interleave, Slot
from spark.positions import parse
from spark.sampling import SamplingSettings
from spark.schedule import FullDepth
from tests.tiny import tiny_lm


def test_no_prompt_and_no_answer_is_in_two_sets_or_in_the_evaluation() -> None:
    sets = {part: prompts.draw(part, 400, 1) for part in prompts.PARTS}
    assert len(sets) == 3
    answers = {part: {item.expected for item in items} for part, items in sets.items()}
    asked = {part: {item.prompt for item in items} for part, items in sets.items()}
    for one, other in itertools.combinations(sets, 2):
        assert not answers[one] & answers[other]
        assert not asked[one] & asked[other]
    suite = builtin()
    for part, items in sets.items():
        assert len(asked[part]) == len(items)
        assert not asked[part] & {item.prompt for item in suite}
        assert not answers[part] & {item.expected for item in suite}
        assert {item.family for item in items} == {"read_aloud", "reasoning", "factual"}


def test_more_prompts_begin_with_the_same() -> None:
    few, many = (prompts.draw("trial", count, 7) for count in (20, 60))
    assert many[:20] == few
    assert prompts.draw("trial", 20, 8) != few


def slow_comparison(ours: list[float], theirs: list[float], s: SamplingSettings) -> list[float]:
    """Overlap of what is drawn, KL and entropies of one pair, in numpy and scipy."""
    warm = s.temperature or 1.0
    q, p = (np.exp(np.array(x) / warm) / np.exp(np.array(x) / warm).sum() for x in (ours, theirs))

    def drawn(logits: list[float], probabilities: np.ndarray) -> np.ndarray:
        if not s.temperature:
            return np.eye(len(logits))[int(np.argmax(logits))]
        kept, mass = np.zeros(len(logits)), 0.0
        for i in np.argsort(-probabilities):
            if mass >= s.top_p:
                break
            kept[i] = probabilities[i]
            mass += probabilities[i]
        return kept / kept.sum()

    overlap = np.minimum(drawn(ours, q), drawn(theirs, p)).sum()
    return [overlap, stats.entropy(p, q), stats.entropy(q), stats.entropy(p)]


# On a grid: which of two that are equal to the last bit comes first is rounding.
rows = st.lists(
    st.integers(-4000, 4000).map(lambda n: n / 1000), min_size=5, max_size=5, unique=True
)


@given(rows, rows, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.5, 0.9, 1.0]))
def test_distributions_are_compared_as_they_are_drawn_from(ours, theirs, temperature, top_p):
    s = SamplingSettings(temperature, top_p)
    expected = slow_comparison(ours, theirs, s)
    if temperature:  # where a mass meets top-p to the last bit, rounding decides
        near = [
            abs(np.cumsum(np.sort(np.exp(np.array(x) / temperature))[::-1])
                / np.exp(np.array(x) / temperature).sum() - top_p).min()
            for x in (ours, theirs)
        ]  # fmt: skip
        if top_p < 1 and min(near) < 1e-5:
            return
    found = compared(torch.tensor([ours]), torch.tensor([theirs]), s)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_the_sweep_asks_each_exit_as_the_engine_would() -> None:
    """Against a loop over single tokens; two text slots and three of speech."""
    lm = tiny_lm(0, layers=5, layout=Interleave(2, 3), exits=(2, 4), dtype=torch.float64)
    engine, s = Engine(lm), SamplingSettings(0.8, 0.9, seed=4)
    body, bank = lm.transformer, engine.bank
    sweeper, sums, counts = Sweeper(lm, "fitted", s), {}, {}
    for prompt in (lm.encode_prompt("hello"), lm.encode_prompt("good day")):
        reply = engine.generate(engine.prefill(prompt), FullDepth(), s, 60)
        ids = [step.token_id for step in reply]
        sweeper.add(prompt, ids)
        layout, every = lm.layout.start(lm.vocabulary, prompt[-1]), list(prompt)
        for token in ids:
            states, cache = body.embed(torch.tensor([every])), body.new_cache(len(every))
            after = [states]
            for layer in range(5):
                positions = torch.arange(len(every))
                after.append(body.run_layers(layer, layer + 1, after[-1], positions, cache))
            speech = layout.slot is Slot.SPEECH
            if not layout.disagreed:
                key = (layout.slot, layout.position_in_chunk)
                counts[key] = counts.get(key, 0) + 1
                full = bank.heads[bank.name(None, speech)].logits(after[5][0, -1:])[0]
                for exit_layer in (2, 4):
                    head = bank.heads[bank.name(exit_layer, speech)]
                    ours = head.logits(after[exit_layer][0, -1:])[0]
                    one = slow_comparison(ours.tolist(), full.tolist(), s)
                    sums[key, exit_layer] = sums.get((key, exit_layer), 0) + np.array(one)
            layout.advance(token)
            every.append(token)
    swept = sweeper.result()
    assert {key: cells[2].n for key, cells in swept.cells.items()} == counts
    for (key, exit_layer), total in sums.items():
        cell = swept.cells[key][exit_layer]
        found = (cell.overlap, cell.kl, cell.entropy, cell.entropy_full)
        assert found == pytest.approx(tuple(total / counts[key]), abs=1e-4)
    assert Sweep.of_record(swept.record()) == swept


@torch.inference_mode()
def test_masses_are_the_base_heads_after_each_layer() -> None:
    lm = tiny_lm(0, dtype=torch.float64)
    engine, s = Engine(lm), SamplingSettings(1.0, seed=2)
    prompt = lm.encode_prompt("hello")
    ids = [step.token_id for step in engine.generate(engine.prefill(prompt), FullDepth(), s, 30)]
    sweeper = Sweeper(lm, "fitted", s)
    sweeper.add(prompt, ids)
    words, body = lm.vocabulary, lm.transformer
    every = torch.tensor([[*prompt, *ids][:-1]])
    states, cache = body.embed(every), body.new_cache(every.shape[1])
    states = body.run_layers(0, 2, states, torch.arange(every.shape[1]), cache)
    p = engine.bank.heads["full"].logits(states[0]).softmax(-1)[len(prompt) - 1 :]
    key = (Slot.SPEECH, 1)
    at = [i for i, place in enumerate(slots(lm, prompt, ids)) if place == key]
    masses = sweeper.result().masses[key]
    speech = p[at, words.speech_start : words.speech_end].sum(-1).mean()
    assert masses.speech[1] == pytest.approx(float(speech), abs=1e-5)
    text = [i for i in range(words.size) if words.modality(i) == "text"]
    assert masses.text[1] == pytest.approx(float(p[at][:, text].sum(-1).mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("speech", "overtakes"),
    [((0.1, 0.2, 0.9), 3), ((0.9, 0.9, 0.9), 1), ((0.9, 0.1, 0.9), 3), ((0.9, 0.9, 0.1), None)],
)
def test_speech_overtakes_text_where_it_stays_ahead(speech, overtakes) -> None:
    assert Masses(speech, tuple(1 - s for s in speech)).overtakes == overtakes


harms = st.lists(
    st.fixed_dictionaries({layer: st.floats(0.01, 9) for layer in (2, 3, 5)}),
    min_size=1, max_size=4,
)  # fmt: skip


@given(harms)
def test_the_search_leaves_out_nothing(harms: list[dict[int, float]]) -> None:
    """Against every schedule there is."""
    every = {}
    for exits in itertools.product((None, 2, 3, 5), repeat=len(harms)):
        ran = sum(6 if layer is None else layer for layer in exits)
        does = math.fsum(h[i] for h, i in zip(harms, exits, strict=True) if i is not None)
        every[ran] = min(every.get(ran, math.inf), does)
    found = search.least_harm(harms, 6)
    expected = {r: h for r, h in every.items() if all(h < every[o] for o in every if o < r)}
    assert list(found) == sorted(expected)
    for ran, exits in found.items():
        assert sum(6 if layer is None else layer for layer in exits) == ran
        does = math.fsum(h[i] for h, i in zip(harms, exits, strict=True) if i is not None)
        assert does == pytest.approx(expected[ran])


def swept(table: dict[int, dict[int, tuple[float, float]]]) -> Sweep:
    """A sweep with these overlaps and divergences by position and layer."""
    cells = {
        (Slot.SPEECH, place): {i: Cell(9, o, kl, 0.5, 0.5) for i, (o, kl) in layers.items()}
        for place, layers in table.items()
    }
    return Sweep(cells, {key: Masses((1.0,), (0.0,)) for key in cells})


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.1, 0.5), st.floats(0.5, 0.9)), min_size=4, max_size=4),
    st.sampled_from([0.1, 0.22, 0.4]),
    st.integers(1, 9),
)
def test_candidates_save_what_is_asked(overlaps, least, most) -> None:
    sweep = swept({i: {5: (a, 1 - a), 11: (b, 1 - b)} for i, (a, b) in enumerate(overlaps)})
    costs = Costs(14, 140, {None: 140, 11: 110, 5: 50}, 1)
    found = search.candidates(sweep, costs, 4, least, most)
    assert 1 <= len(found) <= most
    assert len({row.notation for row in found}) == len(found)
    for row in found:
        schedule = parse(row.notation)
        assert schedule is not None
        depth = sum(14 if layer is None else layer for layer in schedule.speech)
        assert row.saving == pytest.approx(1 - depth / 56)
        assert row.saving >= least - 1e-9
        assert row.traffic == pytest.approx((140 + 10 * depth) / 700)
    every = itertools.product((None, 5, 11), repeat=4)
    rows = [search.predicted(exits, sweep, costs) for exits in every]
    assert min(row.kl for row in found) == pytest.approx(
        min(row.kl for row in rows if row.saving >= least - 1e-9)
    )


def test_what_cannot_be_searched_is_said() -> None:
    costs = Costs(14, 140, {None: 140, 11: 110}, 1)
    sweep = swept({0: {11: (0.9, 0.1)}, 1: {11: (0.9, 0.1)}})
    with pytest.raises(ValueError, match="no schedule saves 50 %"):
        search.candidates(sweep, costs, 2, 0.5, 3)
    with pytest.raises(ValueError, match="no reply of the sweep reached speech position 2"):
        search.candidates(sweep, costs, 3, 0.1, 3)


def test_predicted_traffic_is_the_engines() -> None:
    """Of whole groups that keep to the layout."""
    lm = tiny_lm(0, layers=6, ends=False)
    setting = Setting("tiny", "fitted", SamplingSettings(0.0))
    schedule = parse("f-5-2-4")
    assert schedule is not None
    engine = Engine(lm)
    reply = engine.generate(
        engine.prefill(lm.encode_prompt("hello")), schedule, setting.sampling, 100
    )
    assert all(step.depth in (6, 5, 2, 4) for step in reply)
    costs = costs_of(lm, setting)
    layout = lm.layout.start(lm.vocabulary)
    for token in reply.trace.ids():
        layout.advance(token)
        assert not layout.disagreed
    assert costs.traffic(schedule.speech) == pytest.approx(reply.trace.summary()["traffic_ratio"])
    assert costs.saving(schedule.speech) == pytest.approx(7 / 24)


def test_triple_by_position() -> None:
    assert triple(tiny_lm(0, layers=14, exits=(11,))) == "f-11-11-f"
    assert triple(tiny_lm(0, layout=Interleave(3, 7))) == "f-3-3-f-3-3-f"


def row(name: str, traffic: float, accuracy: float, wer: float, error: float = 0.001) -> Tried:
    losses = {"accuracy": Loss(accuracy, error, 0.02), "wer": Loss(wer, error, 0.02)}
    return Tried(name, 100, 1 - traffic, traffic, losses, {})


figures = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=8)


@given(figures)
def test_the_front_holds_what_nothing_undercuts(points: list[tuple[int, int, int]]) -> None:
    rows = [row(str(i), *p) for i, p in enumerate(points)]
    kept = {r.notation for r in front.front(rows)}
    for i, p in enumerate(points):
        beaten = any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in points)
        assert (str(i) in kept) is not beaten


def test_the_choice_is_the_least_traffic_within_the_limits() -> None:
    limits = Limits(saving=0.2)
    rows = [row("a", 0.75, 0.01, 0.0), row("b", 0.6, 0.01, 0.01), row("c", 0.5, 0.03, 0.0)]
    chosen, within = front.choice(rows, limits)
    assert chosen is not None
    assert (chosen.notation, within) == ("b", True)
    unsure = [row("a", 0.75, 0.01, 0.0, error=0.02), row("c", 0.5, 0.03, 0.0, error=0.02)]
    chosen, within = front.choice(unsure, limits)
    assert chosen is not None
    assert (chosen.notation, within) == ("a", False)
    assert front.choice([row("a", 0.9, 0.0, 0.0)], limits) == (None, False)


def test_a_limit_is_kept_with_confidence() -> None:
    sure = stats.norm.ppf(front.CONFIDENCE)
    assert Loss(0.02 - sure * 0.01 - 1e-9, 0.01, 0.02).kept
    assert not Loss(0.02 - sure * 0.01 + 1e-9, 0.01, 0.02).kept


def test_the_safest_is_always_a_finalist() -> None:
    rows = [row("a", 0.75, 0.03, 0.03), row("b", 0.7, 0.0, 0.0), row("c", 0.6, 0.01, 0.01)]
    harm = {"a": 0.1, "b": 0.5, "c": 0.9}
    found = front.finalists([*rows, row("d", 0.9, 0.0, 0.0)], Limits(saving=0.2), 2, harm)
    assert [r.notation for r in found] == ["a", "b"]


def test_figures_are_those_of_the_paired_lines() -> None:
    def line(number: int, policy: str, **changes) -> dict:
        plain = {
            "item_id": f"x{number}", "policy": policy, "family": "factual", "correct_heard": True,
            "correct_text": True, "edits": 1, "words": 10, "mos_predicted": 3.0,
            "mean_depth_speech": 14.0, "traffic_ratio": 1.0,
        }  # fmt: skip
        return {**plain, **changes}

    exits = {"mean_depth_speech": 10.5, "traffic_ratio": 0.8, "edits": 2, "mos_predicted": 2.9}
    lines = [line(i, "f") for i in range(40)]
    lines += [line(i, "f-7", **exits, correct_heard=i % 10 > 0) for i in range(20)]
    lines += [line(99, "f-7", edits=10)]  # full depth has no reply to it
    found = front.tried(lines, "f-7", Limits())
    assert (found.n, found.saving, found.traffic) == (20, pytest.approx(0.25), pytest.approx(0.8))
    values = {name: loss.value for name, loss in found.losses.items()}
    assert values == pytest.approx({"accuracy": 0.1, "wer": 0.1, "mos": 0.1})
    with pytest.raises(ValueError, match="no replies with speech"):
        front.tried(lines, "f-9", Limits())


@pytest.mark.parametrize(
    "change", [{"accuracy_loss": 0.0}, {"wer_gain": 2.0}, {"mos_loss": -1}, {"saving": 1.0}]
)
def test_impossible_limits_are_refused(change) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(Limits(), **change)
