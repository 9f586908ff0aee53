"""An item of an evaluation answered anew, to be heard and looked into.

A folder keeps no sound. With the item's seed and the run's settings the same model says the same
again; on another machine or version a token may differ, so what is said is held against the
folder's words. Knows models and rows; no page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.evaluation.answering import Job, policies_of, prefill_of, sampling_of
from spark.evaluation.experiment import Experiment, Row
from spark.evaluation.suite import Item
from spark.lens import LensMap, lens_map
from spark.models.base import Pcm, SpokenLM


@dataclass(frozen=True)
class Again:
    """A reply made anew.

    Attributes:
        policy: its word.
        text: what it says now.
        same: whether those are the words in the folder.
        pcm: int16 samples (n,); None without speech or vocoder.
        rate: of the samples, in Hz.
    """

    policy: str
    text: str
    same: bool
    pcm: Pcm | None
    rate: int


@dataclass(frozen=True)
class Replayed:
    """An item's replies, and the map of full depth's; None where that has no token."""

    replies: tuple[Again, ...]
    lens: LensMap | None


def replay(lm: SpokenLM, experiment: Experiment, row: Row) -> Replayed:
    """Every policy's reply to an item, made anew.

    Raises:
        ValueError: it cannot be made from what the folder holds, with the reason.
    """
    told = experiment.told
    if told["spoken"]:
        raise ValueError(
            "This evaluation asked aloud, and its folder keeps no recordings: the items' sound "
            "cannot be made here."
        )
    job, item = _job(experiment), _item(row)
    engine = Engine(lm, head=job.settings.head)
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)  # rounding, and so a token now and then, hangs on it
    try:
        return _answered(engine, job, item, row)
    finally:
        torch.set_num_threads(before)


def _answered(engine: Engine, job: Job, item: Item, row: Row) -> Replayed:
    lm, prefill, sampling = engine.lm, prefill_of(engine, job, item), sampling_of(job, item)
    found, lens = list[Again](), None
    for reply in row.replies:
        (policy,) = policies_of(job, lm, [reply.policy])
        made = engine.generate(prefill, policy, sampling, job.settings.limit(lm))
        for _ in made:
            pass
        trace = made.trace
        codes, text = trace.codes(), lm.decode_text(trace.text_ids())
        pcm = lm.vocoder.decode(codes) if lm.vocoder and codes else None
        rate = lm.vocoder.sample_rate if lm.vocoder else 0
        found.append(Again(reply.policy, text, text == reply.text, pcm, rate))
        if reply.policy == "full" and trace.steps:
            ids = [step.token_id for step in trace.steps]
            lens = lens_map(lm, prefill.ids, ids, sampling, job.settings.head)
    return Replayed(tuple(found), lens)


def _job(experiment: Experiment) -> Job:
    """What the folder's run was asked for, as far as a reply hangs on it."""
    told = experiment.told
    settings: dict[str, Any] = dict(told["settings"])
    settings["candidates"] = tuple(settings.get("candidates", ()))
    try:
        made = CompareSettings(**settings)
    except TypeError as error:
        raise ValueError(
            "This evaluation was made by another version of the lab, whose settings are not known "
            "here: run its command again."
        ) from error
    return Job(told["model"], made, told["fixed_exit"], Path(), policies=experiment.policies,
               threads=told.get("threads", 1))  # fmt: skip


def _item(row: Row) -> Item:
    return Item(row.item_id, row.family, row.split, row.prompt, row.expected, key="")
