"""What the tests of both large models share: greedy replies, and replies of scripted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from spark import engine, worker
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import Policy
from spark.trace import Trace

GREEDY = SamplingSettings(temperature=0)


def reply(
    lm: SpokenLM, policy: Policy, ids: Sequence[int], tokens: int, head: str = "fitted"
) -> Trace:
    """A greedy reply to a prompt's ids."""
    runner = engine.Engine(lm, head="untrained" if head == "untrained" else "fitted",
                           outside_mass=False)  # fmt: skip
    generation = runner.generate(runner.prefill(ids), policy, GREEDY, tokens)
    for _ in generation:
        pass
    return generation.trace


def scripted(patch: pytest.MonkeyPatch, choose: Callable[[int, Tensor | None], int]) -> None:
    """Replace the drawing of tokens: `choose` gets the reply's index and the ids on offer."""
    count = iter(range(10**6))

    def draw(logits: Tensor, ids: Tensor | None, *rest: object) -> Tensor:
        return torch.tensor([choose(next(count), ids)])

    patch.setattr(worker, "draw", draw)


def offered(ids: Tensor | None, token: int) -> bool:
    """Whether a head with these rows can emit a token."""
    return ids is None or token in ids.tolist()
