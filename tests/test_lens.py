"""The heat map's values against transformers' hidden states, head by head, token by token."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.baseline import reference_model
from spark.engine import Engine
from spark.heads import HeadBank
from spark.lens import lens_map
from spark.modality import Slot
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import FullDepth
from tests.tiny import tiny_lm

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, seed=3)


def reply_of(lm: SpokenLM) -> tuple[list[int], list[int]]:
    prompt = lm.encode_prompt("hello there")
    engine = Engine(lm)
    made = engine.generate(engine.prefill(prompt), FullDepth(), SETTINGS, 60)
    return list(prompt), [step.token_id for step in made]


def drawn(logits: torch.Tensor, ids: list[int]) -> dict[int, float]:
    """Probability of each token id that can be drawn: temperature, then the likeliest mass."""
    warm = [math.exp(float(x) / SETTINGS.temperature) for x in logits]
    total, before, kept = sum(warm), 0.0, {}
    for value, token in sorted(zip(warm, ids, strict=True), reverse=True):
        if before >= SETTINGS.top_p:
            break
        kept[token] = value / total
        before += value / total
    return {token: p / sum(kept.values()) for token, p in kept.items()}


@pytest.mark.parametrize("kind", ["fitted", "untrained"])
def test_agreement_is_that_of_the_heads_on_a_plain_forward_pass(kind) -> None:
    lm = tiny_lm(1, exits=(1, 3))
    prompt, reply = reply_of(lm)
    found = lens_map(lm, prompt, reply, SETTINGS, kind)
    bank, layout = HeadBank(lm, True, kind), lm.layout.start(lm.vocabulary, prompt[-1])
    model = reference_model(lm)
    taken: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: taken.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model.model(torch.tensor([[*prompt, *reply][:-1]]))
    for hook in hooks:
        hook.remove()
    assert found.heads == (
        ("fitted", "untrained", "fitted", "own")
        if kind == "fitted"
        else ("untrained", "untrained", "untrained", "own")
    )
    assert len(taken) == 4
    speech_seen = 0
    for at, token in enumerate(reply):
        speech = layout.slot is Slot.SPEECH and not layout.disagreed
        assert found.slots[at] is (None if layout.disagreed else layout.slot)
        speech_seen += speech
        for layer in range(1, 5):
            sides = []
            for depth in (layer, 4):
                head = bank.heads[bank.name(None if depth == 4 else depth, speech)]
                row = taken[depth - 1].reshape(-1, 32)[len(prompt) - 1 + at]
                ids = list(range(len(head.rows))) if head.row_ids is None else head.row_ids.tolist()
                sides.append((head.logits(row), ids))
            shared = set(sides[0][1]) & set(sides[1][1])
            kept = []
            for logits, ids in sides:
                columns = [i for i, token_id in enumerate(ids) if token_id in shared]
                kept.append((logits[columns], [ids[i] for i in columns]))
            (ours, ids), (theirs, others) = kept
            p, q = drawn(ours, ids), drawn(theirs, others)
            overlap = sum(min(p.get(i, 0.0), q.get(i, 0.0)) for i in shared)
            assert found.overlap[layer - 1, at] == pytest.approx(overlap, abs=2e-4)
            assert bool(found.same[layer - 1, at]) == (
                ids[int(ours.argmax())] == others[int(theirs.argmax())]
            )
        layout.advance(token)
    assert 0 < speech_seen < len(reply)
    assert (found.overlap[-1] > 1 - 1e-5).all()
    assert found.same[-1].all()
    assert found.overlap[:-1].min() < 0.9  # shallow layers do differ
    assert all(name for name in found.tokens)


def test_no_reply_no_map() -> None:
    lm = tiny_lm()
    with pytest.raises(ValueError, match="empty"):
        lens_map(lm, lm.encode_prompt("hello"), [], SETTINGS)
