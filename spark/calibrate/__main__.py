"""Command line of the calibration.

`python -m spark.calibrate --model embedded --out DIR` finds a schedule by position that keeps given
limits; `python -m spark.calibrate confirm DIR` asks fresh prompts whether it is non-inferior.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from spark.calibrate import confirm, policy_heads, report, trials
from spark.calibrate.calibration import PAGE, RESULT, SCHEDULE, Calibration
from spark.calibrate.front import Limits
from spark.calibrate.report import Wanted
from spark.calibrate.stages import read_json
from spark.calibrate.trials import Setting, workers_for
from spark.comparison import CompareSettings
from spark.compiled import prepare
from spark.evaluation.report import table
from spark.heads import HeadKind
from spark.models import load
from spark.models.base import SpokenLM
from spark.models.loading import placement, say


def _arguments() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(
        "python -m spark.calibrate",
        description="Find each speech position's exit layer: the least weights read within limits.",
        epilog="`python -m spark.calibrate confirm DIR` asks fresh prompts whether it holds; "
        "`python -m spark.calibrate heads DIR` fits exit heads on histories with shallow tokens.",
    )
    parser.add_argument("--model", default="embedded", help="a known model, a folder or OWNER/NAME")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--minutes", type=float, default=Wanted.minutes,
                        help="for everything: decides how many prompts are tried")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--head", choices=get_args(HeadKind), default="fitted")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    parser.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    group = parser.add_argument_group("limits, against full depth")
    group.add_argument("--min-saving", type=float, default=limits.saving, metavar="SHARE",
                       help="of speech depth; twice the paper's 11 %% by default")  # fmt: skip
    group.add_argument("--max-accuracy-loss", type=float, default=limits.accuracy_loss,
                       metavar="SHARE", help="of answers heard right")  # fmt: skip
    group.add_argument("--max-wer-gain", type=float, default=limits.wer_gain, metavar="SHARE")
    group.add_argument("--max-mos-loss", type=float, default=limits.mos_loss, metavar="SCORE")
    group = parser.add_argument_group("amounts")
    for name, told in (
        ("sweep", "prompts of the teacher-forced sweep"),
        ("candidates", "schedules of the first round"),
        ("finalists", "schedules of the second"),
        ("trials", "prompts of the first round, in place of what the minutes allow"),
        ("finals", "more prompts for the finalists, likewise"),
    ):
        group.add_argument(f"--{name}", type=int, default=getattr(Wanted, name), help=told)
    group.add_argument("--workers", type=int, help=trials.WORKERS)
    return parser


def _wanted(given: argparse.Namespace, lm: SpokenLM, setting: Setting) -> Wanted:
    limits = Limits(
        given.max_accuracy_loss, given.max_wer_gain, given.max_mos_loss, given.min_saving
    )
    names = ("minutes", "sweep", "candidates", "finalists", "trials", "finals")
    amounts = {name: getattr(given, name) for name in names}
    workers = workers_for(lm) if given.workers is None else given.workers
    return Wanted(setting, limits, workers=workers, **amounts)


def _calibrate(asked: Sequence[str]) -> int:
    given = _arguments().parse_args(asked)
    try:
        options = placement(given)
        lm = load(given.model, told=say, aloud=True, **options)
        prepare(lm.transformer, wait=True)
        settings = CompareSettings.of(lm, seed=given.seed, temperature=given.temperature)
        setting = Setting(given.model, given.head, settings.sampling(), given.max_tokens, **options)
        result = Calibration(lm, _wanted(given, lm, setting), given.out).run()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    held = read_json(given.out / RESULT)
    print(table(report.lines(held), report.HEADER))
    print(f"\n{report.verdict(held)}")
    for name in (SCHEDULE, RESULT, PAGE) if result.chosen else (RESULT, PAGE):
        print(given.out / name)
    return 0 if result.within else 1


_COMMANDS = {"confirm": confirm.main, "heads": policy_heads.main}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or resume; 0 where a schedule was found or confirmed, 1 where not, 2 after a refusal."""
    asked = sys.argv[1:] if arguments is None else list(arguments)
    other = _COMMANDS.get(asked[0]) if asked else None
    try:
        return other(asked[1:]) if other else _calibrate(asked)
    except KeyboardInterrupt:
        print("\nStopped: the same command goes on where it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
