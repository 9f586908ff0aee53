"""Weight traffic: bytes of weights a reply read, against full depth's for the same reply.

Decoding at batch 1 is bound by reading weights, so this is what an exit can save. A catch-up
reads nothing of its own: its rows ride through layers that the step reads anyway, and through a
head where full depth is asked about them. The prefill, which all policies share, and single
embedding rows are left out on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spark.trace import Step, Trace, WeightBytes


def step_bytes(step: Step, weights: WeightBytes, propagated: bool) -> int:
    """Bytes of weights one step read; none where its token was read off a flush.

    Args:
        step: with its depth and every head it evaluated.
        weights: bytes by part.
        propagated: whether layers above an exit got keys and values from the exit state.
    """
    if not step.heads:
        return 0
    body = sum(weights.layers[: step.depth])
    if propagated:
        body += sum(weights.projections[step.depth :])
    return body + sum(weights.heads[name] for name in step.heads)


def full_depth_bytes(step: Step, weights: WeightBytes) -> int:
    """Bytes full depth would have read for the step, with the head it uses there."""
    return sum(weights.layers) + weights.heads[step.full_head]


def traffic_bytes(trace: Trace) -> int:
    """Bytes of weights read for the whole reply: body, every head evaluated, flushes.

    Steps whose tokens were rejected, or drawn ahead of a stop, have read their weights too.
    """
    propagated, weights = trace.kv_policy == "propagate", trace.weights
    every = (*trace.steps, *trace.ahead, *trace.rejected)
    steps = (step_bytes(step, weights, propagated) for step in every)
    flushed = (
        sum(weights.layers[flush.low : flush.high]) + sum(weights.heads[h] for h in flush.heads)
        for flush in trace.flushes
    )
    return sum(steps) + sum(flushed)


def traffic_ratio(trace: Trace) -> float:
    """Weight bytes read over full depth's for the same tokens; less than 1 is less.

    Those that were drawn ahead of a stop are among them: full depth would have drawn them too.

    Raises:
        ValueError: the trace has no steps.
    """
    if not trace.steps:
        raise ValueError("a reply without tokens has no traffic ratio")
    full = sum(full_depth_bytes(step, trace.weights) for step in (*trace.steps, *trace.ahead))
    return traffic_bytes(trace) / full


def steps_ratio(steps: Sequence[Step], trace: Trace) -> float:
    """Weight bytes that some of a reply's steps read, over full depth's for them.

    Steps that were rejected and flushes belong to no step, so they are left out.
    """
    propagated, weights = trace.kv_policy == "propagate", trace.weights
    read = sum(step_bytes(step, weights, propagated) for step in steps)
    return read / sum(full_depth_bytes(step, weights) for step in steps)
