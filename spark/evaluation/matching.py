"""The threshold at which confidence exit reads as much as SPAR-K, found before they are compared.

How much an exit by confidence reads can only be known by running it, and differs from item to item
much more than a schedule does (on the embedded model from half of full depth to a fifth above it).
So items of the run are replied to, few at first, and the threshold is halved in on. Knows engine
and policies, no scores: what is right or wrong of a reply has no say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from spark import jsonl, policies
from spark.engine import Engine, decode_batch
from spark.evaluation.answering import Job, prefill_of, sampling_of
from spark.evaluation.suite import Item, limited
from spark.models.base import SpokenLM
from spark.schedule import Policy

MATCHED = "matched.json"
_BATCH = 8
# Items replied to at a time, how far from the last stage's threshold it may lie, and the gap in
# traffic that will do: a claim allows for 0.02, of which 200 items' mean takes about 0.01.
_STAGES = ((32, 0.5, 0.01), (200, 0.064, 0.003))


def kept(folder: Path, found: Callable[[], float]) -> float:
    """A folder's threshold; the first call measures it, so that a run resumes with the same."""
    path = folder / MATCHED
    try:
        return float(json.loads(path.read_text("utf-8"))["threshold"])
    except (OSError, ValueError, KeyError, TypeError):
        threshold = found()
    folder.mkdir(parents=True, exist_ok=True)
    jsonl.replace(path, json.dumps({"threshold": threshold}) + "\n")
    return threshold


def threshold(lm: SpokenLM, job: Job, items: Sequence[Item]) -> float:
    """Threshold of confidence exit whose traffic ratio is nearest to that of SPAR-K.

    Args:
        lm: the model.
        job: whose settings hold for both; its policies have no part.
        items: of the run; some of them, spread over families, are replied to.

    Returns:
        Between 0 and 1, to three decimals. The nearest there is, where none reads as much.

    Raises:
        ValueError: no item that the model can take.
    """
    engine, found = Engine(lm, head=job.settings.head, outside_mass=False), 0.5
    for count, reach, close in _STAGES:
        low, high = max(0.0, found - reach), min(1.0, found + reach)
        found = _halved(engine, job, limited(items, count), low, high, close)
    return found


def _halved(
    engine: Engine, job: Job, items: Sequence[Item], low: float, high: float, close: float
) -> float:
    """The threshold between two whose gap in traffic is smallest, or the first that is `close`."""
    lm, settings = engine.lm, job.settings
    wanted = _traffic(engine, job, items, policies.named("spark", lm, settings))
    gaps: dict[float, float] = {}
    while (middle := round((low + high) / 2, 3)) not in gaps:
        sure = policies.named(f"confidence:{middle:g}", lm, settings)
        gaps[middle] = gap = _traffic(engine, job, items, sure) - wanted
        if abs(gap) <= close:
            break
        # A higher threshold lets fewer tokens go and reads more.
        low, high = (middle, high) if gap < 0 else (low, middle)
    return min(gaps, key=lambda one: abs(gaps[one]))


def _traffic(engine: Engine, job: Job, items: Sequence[Item], policy: Policy) -> float:
    """Mean traffic ratio of the items' replies under a policy."""
    replies = []
    for item in items:
        try:
            start = prefill_of(engine, job, item)
        except ValueError:  # the run itself says of each what the model refused
            continue
        limit = job.settings.limit(engine.lm)
        replies.append(engine.generate(start, policy, sampling_of(job, item), limit))
    read = [made.trace.summary()["traffic_ratio"] for made in decode_batch(replies, _BATCH)]
    found = [ratio for ratio in read if ratio is not None]
    if not found:
        raise ValueError("the model takes none of the items, so no threshold can be matched")
    return sum(found) / len(found)
