"""Writes an evaluation's tables into README.md and the model card, between their marks.

`python -m spark.evaluation.readme DIR` reads DIR/summary.json and, where they are there, what the
benchmarks wrote (decode.json, growth.json, first_audio.json) and the claims.json of
`python -m spark.evaluation.claims DIR`; figures get into those pages no other way. Knows these
files only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spark.evaluation import claims_text, report, speed

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "assets/embedded/README.md")
_BLOCK = re.compile(r"(<!-- measured: begin[^>]*-->\n).*?(<!-- measured: end -->)", re.DOTALL)
_SPEED = re.compile(r"(<!-- speed: begin[^>]*-->\n).*?(<!-- speed: end -->)", re.DOTALL)
_CLAIMS = re.compile(r"(<!-- claims: begin[^>]*-->\n).*?(<!-- claims: end -->)", re.DOTALL)


def tables(summary: dict[str, Any]) -> str:
    """The command, the goals and the policies, in Markdown."""
    answers = summary["policies"]["full"]["correct_heard"]
    goals = report.table(
        report.goals(summary), ("full depth, where not said otherwise", "measured", "bar")
    )
    policies = report.table(report.policy_rows(summary), report.POLICY_HEADER)
    return (
        f"`{summary['command']}`: {summary['items']} items, paired over policies, seed "
        f"{summary['settings']['seed']}, torch {summary['torch']}. Right: of all "
        f"{answers['n'] if answers else 0} answers, reading aloud apart. Heard by pocketsphinx; "
        f"the teacher is flite's slt saying the right answers.\n\n{goals}\n\n{policies}\n"
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
        heard = _gap(figures, "correct_heard", 100, " points")
        return f"right as heard {heard}, WER {_gap(figures, 'wer', 100, ' points')}"

    return {
        "accuracy": f"right as heard {_gap(spark, 'correct_heard', 100, ' points')}",
        "speech": f"predicted MOS {_gap(spark, 'mos_predicted', 1, '')}, "
        f"WER {_gap(spark, 'wer', 100, ' points')}",
        "fixed": f"half depth instead of the same depth: {report.depth_label(summary)}: "
        f"{both(fixed)}",
        "confidence": both(sure),
    }


def time_saved(decode: dict[str, Any]) -> str:
    """The decode benchmark's last line, in words."""
    spark = next(row for row in decode["rows"] if row["policy"] == "spark")
    over = decode["speedup_over_compiled_generate"]
    compiled = "not measured" if over is None else f"{over:.1f} times"
    faster = speed.number(decode["speedup_over_generate"], ".1f")
    return (
        f"SPAR-K takes {100 * spark['time_ratio']:.1f} % of full depth's time a token and reads "
        f"{100 * spark['traffic_ratio']:.1f} % of its weights; full depth is "
        f"{faster} times as fast as transformers' generate, compiled "
        f"{compiled} ({decode['device']}, {decode['dtype']}, threads: {decode['threads']})"
    )


def fill(
    page: str,
    summary: dict[str, Any],
    benchmarks: Mapping[str, dict[str, Any]] | None = None,
    claims: dict[str, Any] | None = None,
) -> str:
    """The page with its measured blocks and its cells replaced; other text untouched.

    Args:
        page: Markdown with marks.
        summary: of the evaluation.
        benchmarks: objects by benchmark's name; without any, what stands there stays.
        claims: as tested; without them, what stands there stays.
    """
    page = _BLOCK.sub(lambda m: f"{m[1]}{tables(summary)}{m[2]}", page)
    if claims:
        page = _CLAIMS.sub(lambda m: f"{m[1]}{claims_text.table(claims)}\n{m[2]}", page)
    cells = beside_the_paper(summary)
    if benchmarks:
        page = _SPEED.sub(lambda m: f"{m[1]}{speed.tables(benchmarks)}{m[2]}", page)
    if benchmarks and "decode" in benchmarks:
        cells["time"] = time_saved(benchmarks["decode"])
    for name, text in cells.items():
        mark = f"<!-- ours: {name} -->"
        page = re.sub(rf"{mark}[^|\n]*", f"{mark}{text} ", page)
    return page


def _held(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def main() -> int:
    """Command line; 0, or 2 after a message about what cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of an evaluation")
    given = parser.parse_args()
    summary = json.loads((given.folder / "summary.json").read_text())
    claims = _held(given.folder / "claims.json")
    held = {name: _held(given.folder / f"{name}.json") for name in speed.COMMANDS}
    benchmarks = {name: found for name, found in held.items() if found}
    try:
        pages = {
            ROOT / name: fill((ROOT / name).read_text("utf-8"), summary, benchmarks, claims)
            for name in PAGES
        }
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in pages.items():
        path.write_text(text, "utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
