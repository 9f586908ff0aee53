"""MOS with intervals from a folder of ratings: `python -m listening_test.analyse DIR [--json]`.

DIR holds `ratings.csv`, of this project's export or of another tool: the columns in `REQUIRED`
are enough. A `study.json` beside it gives the margin and which system is the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from listening_test.analysis import Plan, analyse, told_counts
from listening_test.columns import SCORED_TRIALS, uncell
from listening_test.methods import CHOICE_METHODS
from listening_test.preference import CHOICES
from listening_test.study import Study
from listening_test.tables import (
    as_table,
    notes,
    pair_rows,
    preference_rows,
    strength_rows,
    system_rows,
    verdicts,
)

REQUIRED = (
    "session_id", "rater_id", "item_id", "stimulus_id", "system", "score", "trial_type", "status",
)  # fmt: skip


class RatingsError(ValueError):
    """The ratings cannot be analysed; the message names file, row and remedy."""


def load_ratings(path: Path) -> pd.DataFrame:
    """Read and check a ratings file; ids are text, `score` is float (missing: nan).

    Raises:
        RatingsError: absent, not a CSV in UTF-8, columns missing, or a score is no number.
    """
    if not path.exists():
        raise RatingsError(
            f"{path} does not exist. DIR must hold ratings.csv; "
            "`python -m listening_test.export STUDY_DIR --out DIR` makes it."
        )
    try:
        frame = cells(path)
    except UnicodeDecodeError:
        raise RatingsError(f"{path} is not UTF-8. Save it as CSV UTF-8.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RatingsError(f"{path} is not a CSV file: {str(error).strip()}") from None
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        hint = ""
        if missing == ["system"]:
            hint = (
                " This looks like blinded ratings: join the key first with "
                "`python -m listening_test.export STUDY_DIR --out DIR`."
            )
        raise RatingsError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} "
            f"(it has: {', '.join(map(str, frame.columns))}).{hint}"
        )
    if frame.empty:
        raise RatingsError(f"{path} holds no ratings yet.")
    try:
        return checked_ratings(frame)
    except RatingsError as error:
        raise RatingsError(f"{path} {error}") from None


def cells(path: Path) -> pd.DataFrame:
    """A CSV file as text, without the quotes that guard formulas."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").map(
        uncell, na_action="ignore"
    )


def checked_ratings(frame: pd.DataFrame) -> pd.DataFrame:
    """Ratings as `analyse` takes them; a `rating_id` that is there again is excluded.

    Args:
        frame: text, with the columns in `REQUIRED`; row 2 is the one labelled 0.

    Raises:
        RatingsError: a score is no number, or an id is empty; names the row, not the file.
    """
    text = frame["score"].str.strip()
    scores = pd.to_numeric(text, errors="coerce")
    bad = frame.index[(scores.isna() & (text != "")) | scores.abs().eq(float("inf"))]
    if len(bad):
        raise RatingsError(
            f"row {bad[0] + 2}: score {frame['score'][bad[0]]!r} is not a number "
            f"({len(bad)} such row{'s' * (len(bad) > 1)}). Give a number, or leave it empty."
        )
    frame = frame.assign(score=scores)
    # A check, of which the answer is known, is no system's.
    scored = frame["trial_type"].isin(SCORED_TRIALS)
    for name in ("rater_id", "item_id", "system"):
        empty = frame.index[(frame[name].str.strip() == "") & (scored | (name != "system"))]
        if len(empty):
            raise RatingsError(f"row {empty[0] + 2}: {name} is empty. Fill it in.")
    _check_pairs(frame)
    if "check_passed" in frame:
        frame["check_passed"] = pd.to_numeric(frame["check_passed"], errors="coerce")
    if "rating_id" in frame:
        # The same rating twice (a file joined with its own copy) must not count twice.
        again = (frame["rating_id"] != "") & frame["rating_id"].duplicated()
        frame.loc[again, "status"] = "exclude"
        if "status_reason" not in frame:
            frame["status_reason"] = ""
        frame.loc[again, "status_reason"] = "duplicate rating_id"
    return frame


def _check_pairs(frame: pd.DataFrame) -> None:
    """Raise RatingsError for a comparison without its second system, or a choice not known."""
    if "method" not in frame:
        return
    scored = frame["trial_type"].isin(SCORED_TRIALS)
    pairs = frame["method"].isin(("ccr", *CHOICE_METHODS)) & scored
    if pairs.any() and "system_b" not in frame:
        raise RatingsError("holds comparisons but lacks the column system_b.")
    lacking = frame.index[pairs & (frame.get("system_b", "") == "")]
    if len(lacking):
        raise RatingsError(f"row {lacking[0] + 2}: system_b is empty. Fill it in.")
    chosen = frame["method"].isin(CHOICE_METHODS) & scored
    choice = frame["choice"] if "choice" in frame else pd.Series("", index=frame.index)
    bad = frame.index[chosen & ~choice.isin((*CHOICES, ""))]
    if len(bad):
        raise RatingsError(
            f"row {bad[0] + 2}: choice {choice[bad[0]]!r} is none of {', '.join(CHOICES)}."
        )


def load_plan(folder: Path) -> Plan:
    """What DIR/study.json fixed beforehand; nothing without one."""
    study = load_recorded_study(folder)
    return Plan() if study is None else Plan.of(study)


def load_recorded_study(folder: Path) -> Study | None:
    """The study of DIR/study.json as it was prepared; None without the file."""
    path = folder / "study.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Study.model_validate(record["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise RatingsError(
            f"{path} is not a study record of this project ({error}). Move it away."
        ) from None


def load_incomplete(folder: Path) -> frozenset[str]:
    """Ids of the sessions of DIR/sessions.csv that are not complete; none without the file."""
    path = folder / "sessions.csv"
    if not path.exists():
        return frozenset()
    sessions = cells(path)
    if not {"session_id", "state"} <= set(sessions.columns):
        raise RatingsError(f"{path} lacks the columns session_id and state. Move it away.")
    return frozenset(sessions.loc[sessions["state"] != "complete", "session_id"])


def report(result: dict[str, Any]) -> str:
    """The analysis as text for a terminal."""
    tables = (system_rows, pair_rows, preference_rows, strength_rows)
    parts = [as_table(r).to_string(index=False) for rows in tables if (r := rows(result))]
    return "\n\n".join([*parts, *verdicts(result), *notes(result)])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.analyse", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--margin", type=float, help="of non-inferiority, in points")
    options = parser.parse_args(arguments)
    try:
        if options.margin is not None and not options.margin > 0:
            raise RatingsError("--margin must be above 0, for example 0.2.")
        frame = load_ratings(options.folder / "ratings.csv")
        plan = load_plan(options.folder)
        if options.margin is not None:
            plan = replace(plan, margin=options.margin)
        result = analyse(frame, plan, load_incomplete(options.folder))
        if not result["n"]:
            raise RatingsError(
                f"no rating counts. Left out: {told_counts(result['excluded'])}. Only rows with "
                "status `use` and trial_type `rating` or `null_pair` are analysed."
            )
    except RatingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result, allow_nan=False) if options.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
