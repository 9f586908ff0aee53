"""`python -m spark.evaluation --model embedded --suite builtin --limit N --out DIR`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from spark.compare import CompareSettings
from spark.evaluation import report, runner
from spark.evaluation.suite import Item, builtin, limited


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m spark.evaluation")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--suite", choices=("builtin",), default="builtin")
    parser.add_argument("--limit", type=int, help="items in all, shared out over families")
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=CompareSettings().temperature)
    parser.add_argument("--exit-layer", type=int, help="of SPAR-K; default: the model's own")
    parser.add_argument("--fixed-exit", type=int, help="of the fixed exit; default: half the model")
    parser.add_argument("--head", choices=("fitted", "untrained"), default="fitted")
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="replies decoded together; above 1 no time a token is measured",
    )
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    return parser


def command(given: argparse.Namespace) -> str:
    """The command that gives the same figures: what was asked, but for folder and processes."""
    usual = vars(_arguments().parse_args([]))
    words = [f"python -m spark.evaluation --model {given.model} --suite {given.suite}"]
    words += [
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(given).items()
        if name not in ("model", "suite", "out", "workers") and value != usual[name]
    ]
    return " ".join(words)


def _run(job: runner.Job, items: Sequence[Item], workers: int | None) -> None:
    """Runs what is missing, with a line of progress."""
    begun = time.time()
    for done, tasks in runner.run(job, items, workers):
        left = (time.time() - begun) / done * (tasks - done)
        print(f"\r{done} of {tasks}, {left / 60:.1f} min left ", end="", file=sys.stderr)
    print(file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or resumes an evaluation and prints its tables; 2 after a message about a refusal."""
    given = _arguments().parse_args(arguments)
    settings = CompareSettings(
        seed=given.seed, temperature=given.temperature, exit_layer=given.exit_layer, head=given.head
    )
    items = limited(builtin(), given.limit)
    job = runner.Job(given.model, settings, given.fixed_exit, given.out, given.batch)
    try:
        _run(job, items, given.workers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = {item.item_id for item in items}
    lines, said = (
        [line for line in runner.read_lines(given.out / name) if line["item_id"] in wanted]
        for name in (runner.ITEMS, runner.TEACHER)
    )
    summary = report.summarise(lines, said)
    summary |= {
        "command": command(given),
        "model": given.model, "suite": given.suite, "items": len(items), "limit": given.limit,
        "settings": asdict(settings), "fixed_exit": given.fixed_exit, "torch": version("torch"),
    }  # fmt: skip
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(report.table(report.goals(summary), ("what", "measured", "bar")), end="\n\n")
    print(report.table(report.policy_rows(summary), report.POLICY_HEADER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
