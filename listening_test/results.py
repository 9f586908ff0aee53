"""What the Results page shows and hands out: nothing until the study is closed, then everything
that tells of systems and nothing that tells of people.

Comments and what raters said about themselves were written for whoever runs the study: they are
left out of all that is public. Knows no page; `ui` does.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from listening_test.analyse import RatingsError
from listening_test.columns import SESSION_COLUMNS
from listening_test.export import (
    ExportError,
    exported_csv,
    exported_files,
    judged_frame,
    sessions_csv,
)
from listening_test.figures import Shown, figures
from listening_test.hosting import Studies, StudyState
from listening_test.report import load_evidence, write_report
from listening_test.report_factors import factors
from listening_test.report_text import first_question, paper
from listening_test.tables import (
    as_table,
    notes,
    pair_rows,
    preference_rows,
    strength_rows,
    system_rows,
    verdicts,
)

_NO_KEY = (
    "Its ratings cannot be joined with their systems here; the Admin page tells whoever runs the "
    "study why."
)


@dataclass(frozen=True)
class Results:
    """A closed study's outcome; of one that is not, a note alone.

    Attributes:
        note: what there is, or why there is nothing; Markdown.
        words: what the ratings show, sentence by sentence.
        figures: each with its sentence, by name.
        tables: of `means` (or strengths) and of `differences` (or preferences), where there are.
        text: methods and results, ready to paste; Markdown.
    """

    note: str
    words: tuple[str, ...] = ()
    figures: Mapping[str, Shown] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Files:
    """What a visitor can take home."""

    ratings_csv: bytes
    report_html: bytes
    bundle_zip: bytes


def _closed(studies: Studies) -> StudyState | str:
    """The study whose results are public, or why there is nothing to see."""
    state = studies.shown()
    if state is None:
        return "No study is open."
    if state.closed_utc is None:
        return (
            f"**{html.escape(state.title)}** is running: {state.sessions_complete} of "
            f"{state.planned_sessions} planned sessions complete. Its results are shut to "
            "everyone until it is closed: who has seen them does not judge blind, and who stops "
            "when they please has no honest interval. Whoever runs it closes it on the Admin "
            "page or with `python -m listening_test.admin`."
        )
    return state


def _when(utc: str) -> str:
    return f"{utc[:10]} {utc[11:16]} UTC"


def _stamp(state: StudyState) -> tuple[int | None, ...]:
    """Changes with what counts: people may still finish, withdraw, or be left out by hand."""
    return (
        state.ratings, state.sessions_started, state.sessions_complete, state.withdrawn,
        state.decisions,
    )  # fmt: skip


def show_results(studies: Studies) -> Results:
    """The outcome of the study, once it is closed."""
    state = _closed(studies)
    if isinstance(state, str):
        return Results(state)
    assert state.study_dir is not None
    warning = f"\n\n**Warning:** {html.escape(state.message)}" if state.message else ""
    try:
        found = _analysed(state.study_dir, _stamp(state))
    except RatingsError:
        return Results(f"**{html.escape(state.title)}** is closed, and no rating counts.{warning}")
    except ExportError:  # of whose folders its text tells
        return Results(f"**{html.escape(state.title)}** is closed. {_NO_KEY}{warning}")
    assert state.closed_utc is not None
    note = (
        f"**{html.escape(state.title)}**, closed {_when(state.closed_utc)}: {state.ratings} "
        f"ratings, {state.sessions_complete} of {state.planned_sessions} sessions complete. "
        f"Intervals: 95 %, two-way clustered (rater and text).{warning}"
    )
    return Results(note, found.words, found.figures, found.tables, found.text)


def public_files(studies: Studies) -> Files | str:
    """The files of a closed study, or why there are none."""
    state = _closed(studies)
    if isinstance(state, str):
        return state
    assert state.study_dir is not None
    try:
        return _files(state.study_dir, _stamp(state))
    except RatingsError as error:
        return f"No report: {html.escape(str(error))}"
    except ExportError:
        return f"No report. {_NO_KEY}"


def _write_public(study_dir: Path, folder: Path) -> None:
    """The export without what raters wrote and said about themselves."""
    files, _ = exported_files(study_dir)
    ratings = judged_frame(study_dir)
    files["ratings.csv"] = exported_csv(ratings.assign(comment=None)).encode()
    files["sessions.csv"] = sessions_csv(study_dir, SESSION_COLUMNS).encode()
    del files["raters.csv"]
    for name, data in files.items():
        (folder / name).write_bytes(data)


@lru_cache(maxsize=4)  # the page is public, and an analysis takes seconds
def _analysed(study_dir: Path, stamp: tuple[int | None, ...]) -> Results:
    with tempfile.TemporaryDirectory() as scratch:
        _write_public(study_dir, Path(scratch))
        evidence = load_evidence(Path(scratch))
    used, result = first_question(evidence)
    return Results(
        note="",
        words=(*verdicts(result), *notes(result)),
        figures={shown.name: shown for shown in figures(used, result)},
        tables=_tables(result),
        text=paper(evidence, factors(evidence)),
    )


@lru_cache(maxsize=2)
def _files(study_dir: Path, stamp: tuple[int | None, ...]) -> Files:
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "data", Path(scratch) / "report"
        folder.mkdir()
        _write_public(study_dir, folder)
        write_report(folder, out)
        return Files(
            (folder / "ratings.csv").read_bytes(),
            (out / "report.html").read_bytes(),
            (out / "bundle.zip").read_bytes(),
        )


def _tables(result: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    found = {
        "means": system_rows(result) or strength_rows(result),
        "differences": pair_rows(result) or preference_rows(result),
    }
    return {name: as_table(rows) for name, rows in found.items() if rows}
