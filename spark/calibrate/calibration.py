"""A calibration from its beginning to its files, each stage kept so that a killed one goes on.

    run.json       what it was begun with     replies.jsonl  full depth's, for the sweep
    sweep.json     exit x position            plan.json      how many prompts the time allows
    trials.jsonl   free-running replies       schedule.json, calibration.json, calibration.html

Knows the order of stages; what each does is its own module's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spark import jsonl
from spark.calibrate import front, page, prompts, report, search, stages, trials
from spark.calibrate.front import Tried
from spark.calibrate.report import Plan, Result, Wanted
from spark.calibrate.search import Costs
from spark.calibrate.sweep import Sweep, Sweeper
from spark.calibrate.trials import BATCH, FULL, Setting
from spark.engine import Engine
from spark.evaluation.suite import Item
from spark.heads import HeadBank, base_hash
from spark.modality import Slot
from spark.models.base import SpokenLM
from spark.positions import PositionSchedule, parse
from spark.schedule import Place, Spark
from spark.schedule_file import ScheduleFile

RUN, REPLIES, SWEEP, PLAN = "run.json", "replies.jsonl", "sweep.json", "plan.json"
TRIALS, SCHEDULE, RESULT = "trials.jsonl", "schedule.json", "calibration.json"
PAGE = "calibration.html"
FINALS_SHARE = 0.5  # of the time for replies is kept for the finalists
_LEAST = 2 * BATCH  # prompts of a round
_PACE = "seconds_a_reply"
_SPARE = 0.97  # of the minutes: figures and page come at the end


class Calibration:
    """One folder's calibration.

    Args:
        lm: the model.
        wanted: what is looked for.
        out: the folder.

    Raises:
        ValueError: the folder holds another calibration, or the model cannot speak here.
    """

    def __init__(self, lm: SpokenLM, wanted: Wanted, out: Path) -> None:
        if lm.vocoder is None:
            raise ValueError(f"{lm.title} has no sound here: {lm.silence}")
        self._lm, self._wanted, self._out = lm, wanted, out
        self._begun = time.monotonic()
        stages.claim(out / RUN, self._record())

    def _record(self) -> dict[str, Any]:
        """What lines of one folder must share."""
        base = ScheduleFile.of(self._lm, PositionSchedule((None,))).base_head
        wanted, fitted = self._wanted, self._lm.exit_heads
        heads = {str(layer): base_hash(head.gain, head.rows) for layer, head in fitted.items()}
        return {
            "setting": wanted.setting.record(), "base_head": base, "exit_heads": heads,
            "sweep": wanted.sweep,
            "candidates": wanted.candidates, "least_saving": wanted.limits.saving,
            "torch": torch.__version__,
        }  # fmt: skip

    def run(self) -> Result:
        """All stages; writes their files."""
        wanted, limits = self._wanted, self._wanted.limits
        sweep = self._swept()
        n_speech, costs = self._lm.layout.n_speech, costs_of(self._lm, wanted.setting)
        found = search.candidates(sweep, costs, n_speech, limits.saving, wanted.candidates)
        reference = triple(self._lm)
        if reference not in {row.notation for row in found}:
            exits = _exits(reference)
            found.append(search.predicted(exits, sweep, costs))
        predicted = {row.notation: row for row in found}
        plan = self._planned(len(predicted))
        seed, notations = wanted.setting.sampling.seed, list(predicted)
        items = prompts.draw("trial", plan.trials, seed)
        plan = self._settled(plan, self._try("first round", notations, items))
        rows = [self._tried(name, items) for name in notations]
        harm = {name: row.kl for name, row in predicted.items()}
        last = [row.notation for row in front.finalists(rows, limits, wanted.finalists, harm)]
        items = prompts.draw("trial", plan.trials + plan.finals, seed)
        self._try("finalists", last, items)
        finals = [self._tried(name, items) for name in last]
        rows = finals + [row for row in rows if row.notation not in last]
        chosen, within = front.choice(finals, limits)
        result = Result(sweep, predicted, reference, plan, rows, chosen, within)
        self._write(result)
        return result

    def _swept(self) -> Sweep:
        path, setting = self._out / SWEEP, self._wanted.setting
        if held := stages.read_json(path):
            return Sweep.of_record(held)
        items = prompts.draw("sweep", self._wanted.sweep, setting.sampling.seed)
        sweeper = Sweeper(self._lm, setting.head, setting.sampling)
        tell = stages.teller("sweep")
        for done, (item, ids) in enumerate(self._replies(items), 1):
            sweeper.add(self._lm.encode_prompt(item.prompt), ids)
            tell(done, len(items))
        result = sweeper.result()
        stages.write_json(path, result.record())
        return result

    def _replies(self, items: Sequence[Item]) -> list[tuple[Item, list[int]]]:
        """Full depth's token ids for the sweep's prompts, made where they are missing."""
        path, tell = self._out / REPLIES, stages.teller("full-depth replies")
        held = {line["item_id"]: line["ids"] for line in jsonl.read(path)}
        for at in range(0, len(items), BATCH):
            batch = items[at : at + BATCH]
            if any(item.item_id not in held for item in batch):
                traces = trials.replies(self._lm, self._wanted.setting, FULL, batch)
                made = {i.item_id: t.ids() for i, t in zip(batch, traces, strict=True)}
                jsonl.append(path, [{"item_id": k, "ids": ids} for k, ids in made.items()])
                held |= made
            tell(at + len(batch), len(items))
        return [(item, held[item.item_id]) for item in items]

    def _planned(self, schedules: int) -> Plan:
        """How many prompts: those asked for, or else what the time allows, which then stays."""
        wanted = self._wanted
        held = stages.read_json(self._out / PLAN) or dict.fromkeys(("trials", "finals", _PACE))
        first, more = wanted.trials or held["trials"], wanted.finals or held["finals"]
        seconds = held[_PACE]
        if first is None or more is None:
            seconds = self._seconds_a_reply()
            able = self._able(seconds)
            first = first or _batches((1 - FINALS_SHARE) * able / (schedules + 1))
            more = more or _batches(FINALS_SHARE * able / (wanted.finalists + 1))
        return self._keep(Plan(_whole(first), _whole(more), seconds))

    def _settled(self, plan: Plan, seconds: float | None) -> Plan:
        """The plan with the second round that the time left allows.

        A reply takes longer when all processes are at work, and the first round shows how long.
        What was begun earlier keeps its plan: its time is not known here.

        Args:
            plan: from the pace of one process.
            seconds: a reply took each process in the first round; None where not all of it was made
                now.
        """
        if self._wanted.finals is not None or seconds is None:
            return plan
        more = _batches(self._able(seconds) / (self._wanted.finalists + 1))
        return self._keep(Plan(plan.trials, more, seconds))

    def _keep(self, plan: Plan) -> Plan:
        stages.write_json(self._out / PLAN, asdict(plan))
        return plan

    def _able(self, seconds: float) -> float:
        """Replies that the time left allows, at so many seconds a reply of each process."""
        left = _SPARE * self._wanted.minutes * 60 - (time.monotonic() - self._begun)
        return max(left, 0) * self._wanted.workers / seconds

    def _seconds_a_reply(self) -> float:
        """Of one process: making a reply, and hearing it."""
        setting = self._wanted.setting
        items, begun = prompts.draw("sweep", BATCH, setting.sampling.seed), 0.0
        for _ in range(2):  # the first time loads what hears
            begun = time.monotonic()
            traces = trials.replies(self._lm, setting, FULL, items)
            for pair in zip(items, traces, strict=True):
                trials.judged(self._lm, FULL, *pair)
        return (time.monotonic() - begun) / len(items)

    def _try(self, stage: str, notations: Sequence[str], items: Sequence[Item]) -> float | None:
        """Make the replies that are missing.

        Returns:
            Seconds that one took each process; None where some were there already.
        """
        tell, path = stages.teller(stage), self._out / TRIALS
        wanted, begun, made = self._wanted, time.monotonic(), 0
        asked = (wanted.setting, [FULL, *notations], items, path, wanted.workers)
        for made, total in trials.run(self._lm, *asked):
            tell(made, total)
        if made < (1 + len(notations)) * len(items):
            return None
        return (time.monotonic() - begun) * wanted.workers / made

    def _tried(self, notation: str, items: Sequence[Item]) -> Tried:
        names = {item.item_id for item in items}
        lines = [x for x in trials.read_lines(self._out / TRIALS) if x["item_id"] in names]
        return front.tried(lines, notation, self._wanted.limits)

    def _write(self, result: Result) -> None:
        record = report.record(result, self._wanted)
        stages.write_json(self._out / RESULT, record)
        jsonl.replace(self._out / PAGE, page.html(record))
        if result.chosen is None:
            return
        exits = PositionSchedule(_exits(result.chosen.notation))
        kept = ("command", "setting", "limits", "within_limits", "prompts", "torch")
        ScheduleFile.of(
            self._lm,
            exits,
            self._wanted.setting.head,
            {name: record[name] for name in kept},
            {"n": result.chosen.n, "saving": result.chosen.saving, **result.chosen.figures},
        ).write(self._out / SCHEDULE)


def _exits(notation: str) -> tuple[int | None, ...]:
    schedule = parse(notation)
    assert schedule is not None
    return schedule.speech


def triple(lm: SpokenLM) -> str:
    """SPAR-K Triple at the model's own exit, by position."""
    policy, length = Spark(lm.default_exit, variant="triple"), lm.layout.n_speech
    found = (policy.exits(Place(Slot.SPEECH, i, length)) for i in range(length))
    return PositionSchedule(tuple(exits[0] if exits else None for exits in found)).notation


def costs_of(lm: SpokenLM, setting: Setting) -> Costs:
    """Bytes of a step by depth."""
    weights, bank = Engine(lm, head=setting.head).weight_bytes(), HeadBank(lm, True, setting.head)
    body, heads = weights.layers, weights.heads
    speech: dict[int | None, int] = {None: sum(body) + heads[bank.name(None, True)]}
    speech |= {i: sum(body[:i]) + heads[bank.name(i, True)] for i in lm.candidate_exits}
    text = sum(body) + heads[bank.name(None, False)]
    return Costs(len(body), text, speech, lm.layout.n_text)


def _batches(prompts_: float) -> int:
    """Whole batches, at least `_LEAST`."""
    return max(_LEAST, int(prompts_) // BATCH * BATCH)


def _whole(prompts_: int) -> int:
    """Whole batches, none of which the second round makes again."""
    return -(-prompts_ // BATCH) * BATCH
