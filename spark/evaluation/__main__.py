"""`python -m spark.evaluation --model embedded --suite builtin --limit N --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spark import policies
from spark.compare import CompareSettings
from spark.compiled import prepare
from spark.evaluation import (
    datasets,
    executors,
    matching,
    report,
    runner,
    summary,
    tables,
)
from spark.evaluation.answering import Job
from spark.evaluation.figures import MARGIN
from spark.evaluation.suite import Item, builtin, limited
from spark.metrics import utmos
from spark.metrics.recognisers import POCKETSPHINX, recogniser
from spark.models import load
from spark.models.base import SpokenLM
from spark.models.loading import placement, say

# Where and how the work is done, which the figures do not hang on.
_APART = ("model", "suite", "out", "workers", "executor")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m spark.evaluation")
    parser.add_argument(
        "--model", default="embedded",
        help="a known model, a folder with its files, or OWNER/NAME of the hub",
    )  # fmt: skip
    parser.add_argument(
        "--policies", default=",".join(policies.DEFAULT), metavar="LIST",
        help=f"{policies.FORMS}; commas between; full depth is always there",
    )  # fmt: skip
    parser.add_argument(
        "--suite", default="builtin", metavar="LIST",
        help=f"builtin, or of {', '.join(datasets.SETS)}; commas between",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PLACE",
        help="of the sets: a folder in OpenAudioBench's, VoiceBench's or UltraEval-Audio's "
        "layout, or OWNER/NAME of the hub; default: where each set is on the hub",
    )  # fmt: skip
    parser.add_argument(
        "--spoken", action="store_true", help="ask aloud, with the sets' recordings"
    )
    parser.add_argument("--limit", type=int, help="items in all, shared out over families")
    parser.add_argument("--out", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--top-p", type=float, help="default: the model's own")
    parser.add_argument("--repetition-penalty", type=float, help="default: the model's own")
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--exit-layer", type=int, help="of SPAR-K; default: the model's own")
    parser.add_argument("--fixed-exit", type=int, help="of the fixed exit; default: half the model")
    parser.add_argument("--head", choices=("fitted", "untrained"), default="fitted")
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="replies decoded together; above 1 no time a token is measured",
    )
    parser.add_argument(
        "--margin", type=float, default=100 * MARGIN, help="of non-inferiority, in points"
    )
    parser.add_argument(
        "--threads", type=int, default=1,
        help="of each worker; another number rounds otherwise and may draw another token",
    )  # fmt: skip
    parser.add_argument(
        "--recogniser", default=POCKETSPHINX, metavar="NAME",
        help="pocketsphinx, or a Whisper checkpoint: a folder, or OWNER/NAME of the hub",
    )  # fmt: skip
    parser.add_argument("--utmos", action="store_true", help="UTMOSv2 too, where it is installed")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    parser.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    parser.add_argument(
        "--workers", type=int,
        help="default: one a core for a small model on the CPU, one otherwise",
    )  # fmt: skip
    parser.add_argument("--executor", choices=executors.NAMES, default="processes")
    return parser


def command(given: argparse.Namespace) -> str:
    """The command that gives the same figures: what was asked, but for folder and processes."""
    usual = vars(_arguments().parse_args([]))
    words = [f"python -m spark.evaluation --model {given.model} --suite {given.suite}"]
    words += [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in vars(given).items()
        if name not in _APART and value != usual[name]
    ]
    return " ".join(words)


def _items(given: argparse.Namespace) -> list[Item]:
    """What is to be answered; raises ValueError for sets that are none or cannot be read."""
    names = [name.strip() for name in given.suite.split(",") if name.strip()]
    if "builtin" not in names:
        return datasets.load(names, given.data, given.spoken, given.out / "prompts")
    if len(names) > 1 or given.data or given.spoken:
        raise ValueError(
            "the built-in suite stands alone, and is typed: leave out --data, --spoken"
        )
    return builtin()


def _job(given: argparse.Namespace, items: Sequence[Item]) -> tuple[Job, SpokenLM]:
    """What is asked for, and its model; raises ValueError for what cannot be."""
    words = policies.words(given.policies)
    options = placement(given)
    lm = load(given.model, told=say, **options)
    prepare(lm.transformer, wait=True)
    if given.spoken and lm.listener is None:
        raise ValueError(f"{lm.title} takes no spoken prompt: {lm.deafness}. Leave out --spoken")
    asked = ("seed", "temperature", "top_p", "repetition_penalty", "max_tokens", "exit_layer",
             "head")  # fmt: skip
    settings = CompareSettings.of(lm, **{name: getattr(given, name) for name in asked})
    job = Job(given.model, settings, given.fixed_exit, given.out, given.batch, words,
              tuple(options.items()), given.threads, given.recogniser, given.utmos)  # fmt: skip
    words = policies.expanded(
        words, lm, settings, given.fixed_exit,
        lambda: matching.kept(given.out, lambda: matching.threshold(lm, job, items)),
    )  # fmt: skip
    job = replace(job, policies=words)
    if job.utmos and (reason := utmos.unavailable()):
        raise ValueError(reason)
    recogniser(job.recogniser)  # here, where a refusal has a reader
    return job, lm


def _told(given: argparse.Namespace, job: Job, lm: SpokenLM) -> dict[str, Any]:
    """What the summary says of the run."""
    return {
        "command": command(given), "model": given.model, "title": lm.title,
        "layers": lm.transformer.num_layers, "suite": given.suite, "limit": given.limit,
        "settings": asdict(job.settings), "fixed_exit": given.fixed_exit,
        "policies": job.policies, "margin": given.margin / 100, "torch": version("torch"),
        "recogniser": job.recogniser, "spoken": given.spoken, "threads": job.threads,
        "voice": lm.vocoder is not None,
    }  # fmt: skip


def _follow(steps: Iterator[runner.Progress]) -> None:
    """A bar of progress with the time that is left."""
    with tqdm(unit="item") as bar:
        for at in steps:
            bar.total, bar.initial, bar.n = at.total, at.before, at.done
            bar.refresh()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or resumes an evaluation and prints its tables; 2 after a message about a refusal."""
    given = _arguments().parse_args(arguments)
    try:
        items = limited(_items(given), given.limit)
        job, lm = _job(given, items)
        told = _told(given, job, lm)
        steps = runner.run(job, items, given.workers, given.executor, lm)
        del lm  # workers load their own, and may need its memory
        _follow(steps)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    summary.ask(given.out, told, [item.item_id for item in items])
    _show(summary.write(given.out))
    print(f"\n{given.out / summary.REPORT}")
    return 0


def _show(found: Mapping[str, Any]) -> None:
    """Tables on the terminal: the embedded model's goals, or the sets; then the policies."""
    if found["suite"] == "builtin":
        print(report.table(report.goals(found), ("what", "measured", "bar")), end="\n\n")
        print(report.table(report.policy_rows(found), report.POLICY_HEADER))
        print("".join(f"\n{sentence}" for sentence in tables.left_out(found)))
        return
    table = tables.main_table(found)
    print(report.table(table.rows, table.header), end="\n\n")
    print("\n".join((*tables.verdicts(found), *tables.left_out(found))))


if __name__ == "__main__":
    sys.exit(main())
