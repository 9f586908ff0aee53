"""Writes an evaluation's tables into README.md and the model card, between their marks.

`python -m spark.evaluation.readme DIR` reads DIR/summary.json; figures get into those pages no
other way. Knows the summary only.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from spark.evaluation import report

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "assets/embedded/README.md")
_BLOCK = re.compile(r"(<!-- measured: begin[^>]*-->\n).*?(<!-- measured: end -->)", re.DOTALL)


def tables(summary: dict[str, Any]) -> str:
    """The command, the goals and the policies, in Markdown."""
    command = f"python -m spark.evaluation --model {summary['model']} --suite {summary['suite']}"
    if summary["limit"] is not None:
        command += f" --limit {summary['limit']}"
    goals = report.table(
        report.goals(summary), ("full depth, where not said otherwise", "measured", "bar")
    )
    policies = report.table(report.policy_rows(summary), report.POLICY_HEADER)
    return (
        f"`{command}`: {summary['items']} items, paired over policies, seed "
        f"{summary['settings']['seed']}, torch {summary['torch']}. Heard by pocketsphinx; the "
        f"teacher is flite's slt saying the right answers.\n\n{goals}\n\n{policies}\n"
    )


def _gap(figures: dict[str, Any] | None, name: str, scale: float, unit: str) -> str:
    gap = (figures or {}).get("against_full", {}).get(name)
    if not gap:
        return "not measured"
    low, high = (scale * value for value in gap["ci95"])
    return f"{scale * gap['value']:+.2f}{unit} ({low:+.2f} to {high:+.2f})"


def beside_the_paper(summary: dict[str, Any]) -> dict[str, str]:
    """Our side of the README's table of findings, by the name of its mark."""
    spark, fixed, sure = (summary["policies"].get(n) for n in ("spark", "fixed", "confidence"))

    def both(figures: dict[str, Any] | None) -> str:
        heard = _gap(figures, "correct_heard_answers", 100, " points")
        return f"right as heard {heard}, WER {_gap(figures, 'wer', 100, ' points')}"

    return {
        "accuracy": f"right as heard {_gap(spark, 'correct_heard_answers', 100, ' points')}",
        "speech": f"predicted MOS {_gap(spark, 'mos_predicted', 1, '')}, "
        f"WER {_gap(spark, 'wer', 100, ' points')}",
        "fixed": f"at half depth: {both(fixed)}",
        "confidence": both(sure),
    }


def fill(page: str, summary: dict[str, Any]) -> str:
    """The page with its measured block and its cells replaced; other text untouched."""
    page = _BLOCK.sub(lambda m: f"{m[1]}{tables(summary)}{m[2]}", page)
    for name, text in beside_the_paper(summary).items():
        mark = f"<!-- ours: {name} -->"
        page = re.sub(rf"{mark}[^|\n]*", f"{mark}{text} ", page)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    given = parser.parse_args()
    summary = json.loads((given.folder / "summary.json").read_text())
    for name in PAGES:
        path = ROOT / name
        path.write_text(fill(path.read_text("utf-8"), summary), "utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
