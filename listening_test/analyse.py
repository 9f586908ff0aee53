"""MOS with intervals from a folder of ratings: `python -m listening_test.analyse DIR [--json]`.

DIR holds `ratings.csv`, of this project's export or of another tool: the columns in `REQUIRED`
are enough. A `study.json` beside it gives the margin and which system is the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from listening_test.statistics import analyse, pair_rows, spread_note, system_rows

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
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
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
    return _checked(frame, path)


def _checked(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    text = frame["score"].str.strip()
    scores = pd.to_numeric(text, errors="coerce")
    bad = frame.index[(scores.isna() & (text != "")) | scores.abs().eq(float("inf"))]
    if len(bad):
        raise RatingsError(
            f"{path} row {bad[0] + 2}: score {frame['score'][bad[0]]!r} is not a number "
            f"({len(bad)} such row{'s' * (len(bad) > 1)}). Give a number, or leave it empty."
        )
    frame = frame.assign(score=scores)
    for name in ("rater_id", "item_id", "system"):
        empty = frame.index[frame[name].str.strip() == ""]
        if len(empty):
            raise RatingsError(f"{path} row {empty[0] + 2}: {name} is empty. Fill it in.")
    if "rating_id" in frame:
        # The same rating twice (a file joined with its own copy) must not count twice.
        again = (frame["rating_id"] != "") & frame["rating_id"].duplicated()
        frame.loc[again, "status"] = "exclude"
        if "status_reason" not in frame:
            frame["status_reason"] = ""
        frame.loc[again, "status_reason"] = "duplicate rating_id"
    return frame


def load_study_record(folder: Path) -> tuple[float | None, list[str] | None]:
    """(margin, systems with the reference first) of DIR/study.json; (None, None) without one."""
    path = folder / "study.json"
    if not path.exists():
        return None, None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        return config["non_inferiority_margin"], [s["name"] for s in config["systems"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RatingsError(
            f"{path} is not a study record of this project ({error}). Move it away."
        ) from None


def report(result: dict[str, Any]) -> str:
    """The analysis as text for a terminal."""
    parts = [pd.DataFrame(system_rows(result)).to_string(index=False)]
    if result["pairs"]:
        parts.append(pd.DataFrame(pair_rows(result)).to_string(index=False))
    for rule, n in result["excluded"].items():
        parts.append(f"excluded: {n} by {rule}")
    if note := spread_note(result):
        parts.append(note)
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.analyse", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--margin", type=float, help="non-inferiority margin in MOS")
    options = parser.parse_args(arguments)
    try:
        if options.margin is not None and not options.margin > 0:
            raise RatingsError("--margin must be above 0, for example 0.2.")
        frame = load_ratings(options.folder / "ratings.csv")
        margin, order = load_study_record(options.folder)
        result = analyse(frame, margin if options.margin is None else options.margin, order)
        if not result["systems"]:
            raise RatingsError(
                f"no rating counts: {result['excluded']}. Only rows with status `use` and "
                "trial_type `rating` or `null_pair` are analysed."
            )
    except RatingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result, allow_nan=False) if options.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
