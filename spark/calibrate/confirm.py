"""Is a schedule non-inferior to full depth? Asked once, of prompts that calibration never saw.

    python -m spark.calibrate confirm DIR

DIR is a calibration's folder, or one with its schedule.json. Replies go to confirmation.jsonl as
they are made, figures and verdict to confirmation.json. Intervals are paired over prompts. How
many prompts is fixed before the first reply: nobody stops when it looks good.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spark import schedule_file
from spark.calibrate import front, prompts, report, stages, trials
from spark.calibrate.calibration import SCHEDULE
from spark.calibrate.front import Limits
from spark.calibrate.stages import Line
from spark.calibrate.trials import FULL, Setting, workers_for
from spark.evaluation.statistics import paired_mean
from spark.models import load
from spark.models.base import SpokenLM
from spark.models.loading import say
from spark.sampling import SamplingSettings
from spark.schedule_file import ScheduleFile

LINES, RESULT, RUN = "confirmation.jsonl", "confirmation.json", "confirmation.run.json"
FEWEST = 1500


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m spark.calibrate confirm", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="of a calibration; schedule.json is read there")
    parser.add_argument("--prompts", type=int, default=FEWEST, help="fresh ones, fixed beforehand")
    parser.add_argument(
        "--margin", type=float, default=0.02, help="of accuracy and WER, as a share"
    )
    parser.add_argument("--seed", type=int, help="default: the calibration's")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the calibration's")
    parser.add_argument("--workers", type=int, help=trials.WORKERS)
    return parser


def setting_of(
    file: ScheduleFile, seed: int | None, max_tokens: int | None, device: str | None = None
) -> Setting:
    """How a schedule's replies were made when it was found, but for what is given.

    Raises:
        ValueError: the file does not say.
    """
    found = file.provenance.get("setting")
    if not isinstance(found, dict) or not isinstance(found.get("sampling"), dict):
        raise ValueError(
            "the schedule's file does not say how its replies were made: calibrate with "
            "`python -m spark.calibrate`"
        )
    sampling = {**found["sampling"], **({} if seed is None else {"seed": seed})}
    limit = found.get("max_tokens") if max_tokens is None else max_tokens
    return Setting(
        str(found.get("model")), file.head, SamplingSettings(**sampling), limit,
        device=device or found.get("device"), bits=found.get("bits"),
    )  # fmt: skip


def verdict(ours: front.Tried, base: Sequence[Line], lines: Sequence[Line], margin: float) -> Line:
    """Both questions answered, with paired intervals, in figures and in words.

    Accuracy has the bootstrap's interval and Newcombe's; the wider end counts.
    """
    answers, answers_full = ([x for x in ls if x["family"] != "read_aloud"] for ls in (lines, base))
    accuracy = ours.figures["against_full"]["accuracy"]
    resampled = paired_mean(answers, answers_full, "correct_heard")
    wer = ours.figures["against_full"]["wer"]
    if accuracy is None or resampled is None or wer is None:
        raise ValueError("nothing was heard that could be compared with full depth")
    lowest = min(accuracy["ci95"][0], resampled["ci95"][0])
    kept = {"accuracy": lowest > -margin, "wer": wer["ci95"][1] < margin}
    worse = {
        "accuracy": max(accuracy["ci95"][1], resampled["ci95"][1]) < -margin,
        "wer": wer["ci95"][0] > margin,
    }
    return {
        "accuracy": {**resampled, "ci95_newcombe": accuracy["ci95"]},
        "wer": wer,
        "margin": margin,
        "non_inferior": {**kept, "both": all(kept.values())},
        "inferior": worse,
        "words": _words(ours, resampled, wer, kept, worse, margin),
    }


def _words(
    ours: front.Tried,
    accuracy: Line,
    wer: Line,
    kept: dict[str, bool],
    worse: dict[str, bool],
    margin: float,
) -> str:
    """The verdict as a sentence for each question."""
    title = f"{ours.notation} saves {100 * ours.saving:.1f} % of speech depth"
    told = {
        "accuracy": f"right as heard {report.gap_text(accuracy)} points",
        "wer": f"WER {report.gap_text(wer)} points",
    }
    found = []
    for name, text in told.items():
        state = "non-inferior" if kept[name] else "inferior" if worse[name] else "not decided"
        found.append(f"{text} against full depth: {state} at a margin of {100 * margin:g} points")
    end = "Confirmed." if all(kept.values()) else "Not confirmed."
    return f"{title}, {ours.n} fresh prompts. {'; '.join(found)}. {end}"


def confirm(
    lm: SpokenLM,
    folder: Path,
    setting: Setting,
    schedule: str,
    count: int,
    margin: float,
    workers: int,
) -> dict[str, Any]:
    """Make the replies that are missing, and answer.

    Args:
        lm: the model.
        folder: for the files.
        setting: how replies are made.
        schedule: the one asked about, by notation.
        count: prompts.
        margin: of both questions, as a share.
        workers: processes.

    Raises:
        ValueError: the folder holds another confirmation.
    """
    run = {"setting": setting.record(), "schedule": schedule, "prompts": count, "margin": margin,
           "torch": torch.__version__}  # fmt: skip
    stages.claim(folder / RUN, run)
    items = prompts.draw("confirmation", count, setting.sampling.seed)
    tell, path = stages.teller("confirmation"), folder / LINES
    for made, total in trials.run(lm, setting, [FULL, schedule], items, path, workers):
        tell(made, total)
    lines = trials.read_lines(path)
    ours, base = ([x for x in lines if x["policy"] == name] for name in (schedule, FULL))
    limits = Limits(margin, margin)
    tried = front.tried(lines, schedule, limits)
    result = {
        **run, "saving": tried.saving, "traffic_ratio": tried.traffic,
        **verdict(tried, base, ours, margin), "figures": tried.figures,
        "full": front.tried(lines, FULL, limits).figures,
    }  # fmt: skip
    stages.write_json(folder / RESULT, result)
    return result


def main(arguments: Sequence[str]) -> int:
    """Run or resume; 0 where confirmed, 1 where not, 2 after a message about what was asked."""
    given = _arguments().parse_args(arguments)
    try:
        if given.prompts < 1 or (given.workers is not None and given.workers < 1):
            raise ValueError("--prompts and --workers: at least 1")
        if not 0 < given.margin < 1:
            raise ValueError("--margin: a share between 0 and 1, for example 0.02")
        file = schedule_file.read(given.folder / SCHEDULE)
        setting = setting_of(file, given.seed, given.max_tokens, given.device)
        lm = load(setting.model, told=say, **setting.options)
        schedule, workers = file.schedule(lm).notation, given.workers or workers_for(lm)
        found = confirm(lm, given.folder, setting, schedule, given.prompts, given.margin, workers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(found["words"])
    return 0 if found["non_inferior"]["both"] else 1
