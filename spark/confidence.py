"""How sure a head is of its token: the measures of confidence exit, all larger where surer.

Knows logits and states only; `schedule.py` says what is sure enough.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spark.schedule import Measure


def confidence(measure: Measure, logits: Tensor) -> Tensor:
    """A head's confidence at temperature 1.

    Args:
        measure: `max_prob`; `margin`, the two largest probabilities' difference; `entropy`, as
            1 - H / log R, so that 1 is certain and 0 uniform.
        logits: (..., R).

    Returns:
        (...), float32, 0 to 1.

    Raises:
        ValueError: the measure does not come from logits.
    """
    if measure == "max_prob":
        return logits.float().softmax(dim=-1).amax(dim=-1)
    if measure == "margin":
        top = logits.float().softmax(dim=-1).topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
    if measure == "entropy":
        log_p = logits.float().log_softmax(dim=-1)
        return 1 + (log_p.exp() * log_p).sum(dim=-1) / math.log(logits.shape[-1])
    raise ValueError(f"{measure} is not a measure of logits")


def state_similarity(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of states (..., D) one layer apart: a state that settled is likely to stay (CALM)."""
    return F.cosine_similarity(before.float(), after.float(), dim=-1)


def mass_outside(all_logits: Tensor, ids: Tensor) -> Tensor:
    """Probability (...) of the tokens not in `ids` (R,), from logits (..., V) of all tokens."""
    inside = all_logits.float()[..., ids].logsumexp(dim=-1)
    return -torch.expm1(inside - all_logits.float().logsumexp(dim=-1))
