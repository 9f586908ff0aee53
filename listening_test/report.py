"""Methods, results, figures and a bundle: `python -m listening_test.report FOLDER --out DIR`.

FOLDER is a prepared study that is closed, or what `python -m listening_test.export` wrote, or any
folder whose ratings.csv `analyse` takes. DIR gets `report.md`, `report.html` (with figures; needs
nothing from outside), `analysis.json` and `bundle.zip` with these, the data, the study and the
versions.

What must be told is in `report_factors.py`; a gap is marked MISSING and never guessed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from listening_test.analyse import (
    RatingsError,
    cells,
    load_incomplete,
    load_ratings,
    load_recorded_study,
)
from listening_test.analysis import Plan, analyse, counted, told_counts
from listening_test.bundle import write_bundle
from listening_test.decisions import INTERNAL, STATUS
from listening_test.document import markdown, page
from listening_test.exclusion import apply_rules
from listening_test.export import ExportError, closed_and_withdrawn, export
from listening_test.report_factors import Evidence, factors
from listening_test.report_text import report_blocks, title
from listening_test.study_parts import Reporting
from spark.plots.standalone import script

_PNG = b"\x89PNG\r\n\x1a\n"
MOST_SCREENSHOT_BYTES = 5_000_000


class ReportError(ValueError):
    """No report can be written; the message says why and what helps."""


def load_evidence(folder: Path, details: Reporting | None = None) -> Evidence:
    """What a report on the results in `folder` is written from.

    Args:
        folder: as `export` writes it; ratings.csv is enough.
        details: what goes before the study file's own `report:`.

    Raises:
        RatingsError: the files cannot be used, or no rating counts.
    """
    frame = load_ratings(folder / "ratings.csv")
    study = load_recorded_study(folder)
    plan = Plan() if study is None else Plan.of(study)
    incomplete = load_incomplete(folder)
    used, excluded = counted(frame, plan, incomplete)
    if used.empty:
        raise RatingsError(
            f"no rating counts. Left out: {told_counts(excluded)}. There is nothing to report yet."
        )
    own = study.report if study else Reporting()
    given = details.model_dump(exclude_none=True) if details else {}
    sessions, stimuli = (
        cells(path) if (path := folder / name).exists() else None
        for name in ("sessions.csv", "stimuli.csv")
    )
    if sessions is not None and "status" in sessions:
        sessions = sessions[sessions["status"] != STATUS[INTERNAL]]
    return Evidence(
        frame=apply_rules(frame, plan.exclusion, plan.ends, incomplete).fillna(
            {"status_reason": ""}
        ),
        used=used,
        result=analyse(frame, plan, incomplete),
        sessions=sessions,
        stimuli=stimuli,
        study=study,
        details=own.model_copy(update=given),
    )


def write_report(
    source: Path, out: Path, details: Reporting | None = None, screenshot: Path | None = None
) -> list[str]:
    """Write report, analysis and bundle of a study or of results into `out`.

    Returns:
        Names of the factors that are missing.

    Raises:
        RatingsError, ExportError, ReportError: what cannot be read, and the remedy.
    """
    picture = None if screenshot is None else _picture(screenshot)
    with tempfile.TemporaryDirectory() as scratch:
        folder = source
        if (source / "key").is_dir():
            folder = Path(scratch)
            export(source, folder)
            if closed_and_withdrawn(source)[0] is None:
                raise ReportError(
                    f"{source} is still open, and its results are shut until it is closed: who "
                    "sees them early stops when they please. Close it with `python -m "
                    f"listening_test.admin {source} --close`."
                )
        evidence = replace(load_evidence(folder, details), screenshot=picture is not None)
        found = factors(evidence)
        blocks = report_blocks(evidence, found)
        files: dict[str, bytes] = {
            "report.md": markdown(blocks).encode(),
            "report.html": page(title(evidence), blocks, script()).encode(),
            "analysis.json": _json(evidence.result),
        }
        if picture is not None:
            files["page.png"] = picture
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
        write_bundle(out / "bundle.zip", folder, files)
    return [factor.name for factor in found if factor.text is None]


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _picture(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path} cannot be read ({error}). Give a PNG file.") from None
    if not data.startswith(_PNG) or len(data) > MOST_SCREENSHOT_BYTES:
        raise ReportError(f"{path} is no PNG file of at most 5 MB. Save the picture as PNG.")
    return data


def load_details(path: Path) -> Reporting:
    """The keys of a study file's `report:` from a YAML file of their own.

    Raises:
        ReportError: it cannot be read, is not YAML, or holds another key.
    """
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        return Reporting.model_validate(tree or {})
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ReportError(f"{path} cannot be read as YAML ({error}).") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}"
            for p in error.errors(include_input=False)
        )
        known = ", ".join(Reporting.model_fields)
        raise ReportError(f"{path}: {problems}. Known keys: {known}.") from None


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--details", type=Path, metavar="FILE", help="YAML: what is MISSING")
    parser.add_argument("--screenshot", type=Path, metavar="PNG", help="of the rater's page")
    options = parser.parse_args(arguments)
    try:
        details = None if options.details is None else load_details(options.details)
        missing = write_report(options.folder, options.out, details, options.screenshot)
    except (RatingsError, ExportError, ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"report: {options.out / 'report.html'} and report.md")
    print(f"bundle: {options.out / 'bundle.zip'}")
    print(f"missing: {', '.join(missing) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
