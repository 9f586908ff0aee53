"""Are exit heads better for having been fitted on histories that hold shallow tokens?

    python -m spark.calibrate heads DIR

The paper fits its heads on full-depth histories only, while a schedule's own hold tokens that
exits drew. Here a model answers the same prompts at full depth and under a schedule; heads are
fitted to either, alike in all else; both are asked on held-out replies of either kind, and then
speak freely on prompts of the calibration's trials. Differences are paired. Knows the order of
these steps and their files; fitting is `spark.training.exit_fitting`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spark import jsonl, positions, schedule_file
from spark.calibrate import front, prompts, report, stages, trials
from spark.calibrate.calibration import SCHEDULE, triple
from spark.calibrate.front import Limits
from spark.calibrate.stages import Line
from spark.calibrate.sweep import compared
from spark.calibrate.trials import BATCH, FULL, Setting
from spark.comparison import CompareSettings
from spark.compiled import prepare
from spark.evaluation.report import table
from spark.evaluation.statistics import paired_mean, paired_share, paired_wer
from spark.heads import Head, base_hash, load_heads, untrained_head
from spark.models import load
from spark.models.base import SpokenLM
from spark.models.loading import placement, say
from spark.training.exit_fitting import Fitting, rate_for, slot_states
from spark.training.own_replies import Lesson, lesson

RUN, RESULT = "heads.run.json", "heads.json"
CLEAN, SHALLOW = "clean", "shallow"  # histories, and the heads fitted to them
HELD = 8  # every eighth reply is held out


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        setting: how replies are made.
        schedule: whose histories, by notation.
        prompts: answered both ways.
        epochs: times that each reply is learnt from.
        trials: prompts on which the heads speak freely.
    """

    setting: Setting
    schedule: str
    prompts: int
    epochs: int
    trials: int


def histories(lm: SpokenLM, plan: Plan, kind: str, folder: Path) -> dict[str, Lesson]:
    """Replies of one kind as lessons, by prompt; made where they are missing."""
    path = folder / f"{kind}.jsonl"
    schedule = FULL if kind == CLEAN else plan.schedule
    items = prompts.draw("sweep", plan.prompts, plan.setting.sampling.seed)
    held, tell = {x["item_id"]: x["ids"] for x in jsonl.read(path)}, stages.teller(kind)
    for at in range(0, len(items), BATCH):
        batch = items[at : at + BATCH]
        if any(item.item_id not in held for item in batch):
            traces = trials.replies(lm, plan.setting, schedule, batch)
            made = {i.item_id: t.ids() for i, t in zip(batch, traces, strict=True)}
            jsonl.append(path, [{"item_id": k, "ids": ids} for k, ids in made.items()])
            held |= made
        tell(at + len(batch), len(items))
    found = {i.item_id: lesson(lm, lm.encode_prompt(i.prompt), held[i.item_id]) for i in items}
    return {name: one for name, one in found.items() if one.keep.any()}


def fit(lm: SpokenLM, plan: Plan, kind: str, lessons: Sequence[Lesson], folder: Path) -> None:
    """Heads fitted to lessons, in the file of their kind; the same order whatever the kind."""
    path = folder / f"{kind}.safetensors"
    if path.is_file():
        return
    fitting, tell = Fitting(lm), stages.teller(f"heads on {kind} histories")
    total, peak = plan.epochs * len(lessons), rate_for(lm.transformer.config.hidden_size)
    for step in range(total):
        epoch, place = divmod(step, len(lessons))
        shuffle = torch.Generator().manual_seed(plan.setting.sampling.seed + epoch)
        order = torch.randperm(len(lessons), generator=shuffle)
        one = lessons[int(order[place])]
        states = slot_states(lm, one.ids, one.keep, fitting.exits)
        fitting.step(states, peak * max(0.02, 1 - step / total))
        tell(step + 1, total)
    jsonl.replace_by(path, fitting.save)


@torch.inference_mode()
def asked(
    lm: SpokenLM, heads: dict[int, Head], lessons: dict[str, Lesson], setting: Setting
) -> dict[int, list[Line]]:
    """By exit layer, a line a reply: mean overlap and divergence from full depth at its slots."""
    full = untrained_head(lm, "speech")
    rows: dict[int, list[Line]] = {layer: [] for layer in heads}
    for name, one in lessons.items():
        states = slot_states(lm, one.ids, one.keep, sorted(heads))
        top = full.logits(states[lm.transformer.num_layers]).float()
        for layer, head in heads.items():
            sums = compared(head.logits(states[layer]).float(), top, setting.sampling) / len(top)
            rows[layer].append({"item_id": name, "overlap": float(sums[0]), "kl": float(sums[1])})
    return rows


def fitted(lm: SpokenLM, kind: str, folder: Path) -> dict[int, Head]:
    """The heads of a kind, by exit layer, where the model is."""
    body = lm.transformer
    base = base_hash(body.final_gain, body.unembedding)
    heads = load_heads(folder / f"{kind}.safetensors", base)
    return {layer: head.to(body.device, body.dtype) for layer, head in heads.items()}


def teacher_forced(
    lm: SpokenLM, plan: Plan, held: dict[str, dict[str, Lesson]], folder: Path
) -> list[dict[str, Any]]:
    """Shallow-history heads against clean-history heads, by kind of history and exit layer."""
    found, heads = [], {kind: fitted(lm, kind, folder) for kind in (CLEAN, SHALLOW)}
    for history, lessons in held.items():
        rows = {kind: asked(lm, heads[kind], lessons, plan.setting) for kind in heads}
        for layer in sorted(heads[CLEAN]):
            pair = rows[SHALLOW][layer], rows[CLEAN][layer]
            gaps = {name: paired_mean(*pair, name) for name in ("overlap", "kl")}
            found.append({"histories": history, "layer": layer, "replies": len(lessons), **gaps})
    return found


def free_running(lm: SpokenLM, plan: Plan, folder: Path, workers: int) -> dict[str, Any]:
    """The schedule under either heads on fresh prompts, against each other and full depth."""
    items = prompts.draw("trial", plan.trials, plan.setting.sampling.seed)
    lines: dict[str, list[Line]] = {}
    for kind in (CLEAN, SHALLOW):
        setting = replace(plan.setting, heads=str(folder / f"{kind}.safetensors"))
        with_them = replace(lm, exit_heads=fitted(lm, kind, folder))
        path, tell = folder / f"{kind}.trials.jsonl", stages.teller(f"speaking with {kind} heads")
        asked_for = ([FULL, plan.schedule], items, path, workers)
        for made in trials.run(with_them, setting, *asked_for):
            tell(*made)
        lines[kind] = trials.read_lines(path)
    ours, theirs = (
        [x for x in lines[kind] if x["policy"] == plan.schedule] for kind in (SHALLOW, CLEAN)
    )
    answers, others = ([x for x in ls if x["family"] != "read_aloud"] for ls in (ours, theirs))
    return {
        "prompts": len(items),
        "shallow_against_clean": {
            "accuracy": paired_share(answers, others, "correct_heard"),
            "wer": paired_wer(ours, theirs),
            "mos": paired_mean(ours, theirs, "mos_predicted"),
        },
        "against_full": {
            kind: front.tried(lines[kind], plan.schedule, Limits()).figures for kind in lines
        },
    }


def compare(lm: SpokenLM, plan: Plan, folder: Path, workers: int) -> dict[str, Any]:
    """All steps; returns what heads.json holds.

    Raises:
        ValueError: the folder holds another comparison, or no reply holds speech.
    """
    run = {"setting": plan.setting.record(), "schedule": plan.schedule, "prompts": plan.prompts,
           "epochs": plan.epochs, "torch": torch.__version__}  # fmt: skip
    stages.claim(folder / RUN, run)
    held: dict[str, dict[str, Lesson]] = {}
    both = {kind: histories(lm, plan, kind, folder) for kind in (CLEAN, SHALLOW)}
    names = [name for name in both[CLEAN] if name in both[SHALLOW]]
    if len(names) < HELD:
        raise ValueError("too few replies hold speech: ask for more prompts, or longer replies")
    for kind, lessons in both.items():
        taught = [lessons[name] for place, name in enumerate(names) if place % HELD]
        fit(lm, plan, kind, taught, folder)
        held[kind] = {name: lessons[name] for name in names[::HELD]}
    result = {
        **run,
        "teacher_forced": teacher_forced(lm, plan, held, folder),
        "free_running": free_running(lm, plan, folder, workers),
    }
    stages.write_json(folder / RESULT, result)
    return result


def told(held: dict[str, Any]) -> str:
    """The comparison as two tables: differences, shallow-history heads minus clean-history."""
    rows = [
        [
            f"{row['histories']} histories, layer {row['layer']}",
            report.gap_text(row["overlap"]),
            report.gap_text(row["kl"], 1.0),
        ]
        for row in held["teacher_forced"]
    ]
    gaps = held["free_running"]["shallow_against_clean"]
    spoken = [
        ["right as heard, points", report.gap_text(gaps["accuracy"])],
        ["WER, points", report.gap_text(gaps["wer"])],
        ["predicted MOS", report.gap_text(gaps["mos"], 1.0)],
    ]
    header = ("held-out replies", "overlap, points", "KL, nats")
    count, schedule = held["free_running"]["prompts"], held["schedule"]
    return (
        "Heads fitted on histories with shallow tokens minus those fitted on clean ones\n\n"
        f"{table(rows, header)}\n\n"
        f"{table(spoken, (f'{schedule}, {count} prompts', 'difference, 95 %'))}"
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m spark.calibrate heads", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="for the files; its schedule.json is taken")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--schedule", metavar="NAME|FILE",
                        help="by position; default: the folder's, or else Triple")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=800, help="answered both ways")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=400, help="prompts to speak on")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    parser.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    parser.add_argument("--workers", type=int, help=trials.WORKERS)
    return parser


def _plan(given: argparse.Namespace, lm: SpokenLM) -> Plan:
    amounts = (given.prompts, given.epochs, given.trials)
    if min(amounts) < 1 or (given.workers is not None and given.workers < 1):
        raise ValueError("--prompts, --epochs, --trials and --workers: at least 1")
    own = given.folder / SCHEDULE
    name = given.schedule or (str(own) if own.is_file() else triple(lm))
    schedule = schedule_file.named(name, lm)
    settings = CompareSettings.of(lm, seed=given.seed, schedule=schedule)
    if positions.parse(schedule) is None:
        raise ValueError(f"--schedule {name}: give each position's exit, such as {triple(lm)}")
    settings.policies(lm)
    setting = Setting(
        given.model, "fitted", settings.sampling(), given.max_tokens, **placement(given)
    )
    return Plan(setting, schedule, *amounts)


def main(arguments: Sequence[str]) -> int:
    """Run or resume; 0, or 2 after a message about what was asked."""
    given = _arguments().parse_args(arguments)
    try:
        lm = load(given.model, told=say, aloud=True, **placement(given))
        prepare(lm.transformer, wait=True)
        plan, workers = _plan(given, lm), given.workers or trials.workers_for(lm)
        found = compare(lm, plan, given.folder, workers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(told(found))
    return 0
