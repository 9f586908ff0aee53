"""One zip with everything that a reader needs to check a listening test's report.

Data, study, analysis and report as files, with what they were made by. A platform's completion
codes are left out: whoever holds one could claim a payment.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from listening_test.columns import csv_text, uncell
from listening_test.study_parts import WITHHELD

# What decides the numbers of an analysis, and what made the stimuli.
_PACKAGES = (
    "numpy", "scipy", "pandas", "statsmodels", "choix", "plotly", "pydantic", "soundfile", "soxr",
    "pyloudnorm",
)  # fmt: skip
_DATA = ("ratings.csv", "sessions.csv", "stimuli.csv")
# Of sessions.csv: a code has so few digits that all of them can be tried against its hash.
_OF_PAYMENT = {"submission_id", "payment_class", "completion_code_id"}
_READ_ME = """\
report.html, report.md   methods and results; what is not known is marked MISSING
analysis.json            every figure: python -m listening_test.analyse . --json
ratings.csv              one row an answer, with its system; comments are as raters wrote them,
                         so read them before you publish this bundle
sessions.csv             one row a session; rater ids are keyed hashes, answers to a questionnaire
                         as raters gave them; what payment hangs on is withheld
stimuli.csv              what was done to each clip, and its SHA-256
study.json               the whole study file and the hash that is on every rating; a platform's
                         completion codes are withheld, so it does not hash to that any more
versions.json            of Python and packages
SHA256SUMS               check with: sha256sum -c SHA256SUMS
"""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; absent ones left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_bundle(path: Path, folder: Path, files: dict[str, bytes]) -> None:
    """Write the zip: `files`, and the data and study that lie in the results folder."""
    content = dict(files)
    for name in _DATA:
        if (folder / name).exists():
            content[name] = (folder / name).read_bytes()
    if "sessions.csv" in content:
        content["sessions.csv"] = _without_payment(content["sessions.csv"])
    if (folder / "study.json").exists():
        record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        content["study.json"] = _text(_without_codes(record))
    content["versions.json"] = _text(versions())
    content["README.txt"] = _READ_ME.encode()
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in content.items()]
    content["SHA256SUMS"] = ("\n".join(sums) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def _without_codes(record: dict[str, Any]) -> dict[str, Any]:
    given = record["config"].get("platform") or {}
    for name in ("completed", "screened_out", "failed_check"):
        if given.get(name):
            given[name] = WITHHELD
    return record


def _without_payment(sessions: bytes) -> bytes:
    reader = csv.DictReader(io.StringIO(sessions.decode("utf-8-sig"), newline=""))
    kept = tuple(name for name in reader.fieldnames or () if name not in _OF_PAYMENT)
    rows = [{name: uncell(row[name] or "") for name in kept} for row in reader]
    return csv_text(rows, kept).encode()


def _text(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
