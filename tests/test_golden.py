"""The golden models: stored weights must go on giving the stored logits and tokens."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spark.heads import base_head
from tests.golden.make import FAMILIES, PATH, PROMPT, golden_lm, replies


def stored(family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and what they gave."""
    tensors = load_file(PATH / f"{family}.safetensors")
    given = {n.removeprefix("expected."): t for n, t in tensors.items() if n[:9] == "expected."}
    return {n: t for n, t in tensors.items() if n[:9] != "expected."}, given


def test_the_files_stay_small() -> None:
    assert all(path.stat().st_size < 100_000 for path in PATH.glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_and_greedy_tokens(family: str) -> None:
    weights, given = stored(family)
    lm = golden_lm(family, weights)
    body, head = lm.transformer, base_head(lm)
    cache, ids = body.new_cache(100), torch.tensor([PROMPT])
    states = body.run_layers(0, 3, body.embed(ids), torch.arange(len(PROMPT)), cache)
    logits = head.logits(states)[0]
    torch.testing.assert_close(logits, given["logits"], atol=1e-5, rtol=1e-5)
    greedy = []
    for position in range(len(PROMPT), len(PROMPT) + 40):
        greedy.append(int(logits[-1].argmax()))
        states = body.embed(torch.tensor([greedy[-1:]]))
        states = body.run_layers(0, 3, states, torch.tensor([position]), cache)
        logits = head.logits(states)[0]
    assert greedy == given["greedy"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_replies(family: str) -> None:
    weights, given = stored(family)
    for name, reply in replies(golden_lm(family, weights)).items():
        assert reply.tolist() == given[name].tolist(), name
        assert name == "full" or reply[1].unique().numel() > 1, "the policy never exits"
