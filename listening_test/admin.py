"""What whoever runs a study needs to see and do: `python -m listening_test.admin STUDY_DIR`.

    python -m listening_test.admin STUDY_DIR           progress, raters, exclusions, alarms
    python -m listening_test.admin STUDY_DIR --close   no new sessions; results become public
    python -m listening_test.admin STUDY_DIR --leave-out RATER --reason WHY    and --take-back RATER
    python -m listening_test.admin STUDY_DIR --internal RATER    a test run; and --not-internal

The Gradio page Admin shows the same behind a secret (`gate.py`). Progress and raters are told while
a study runs, scores are not: results stay shut until the study is closed (`ui.results_page`).
Counts are read beside a running server. This module knows neither Gradio nor HTTP.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pandas as pd

from listening_test import enrolment
from listening_test.columns import SCORED_TRIALS
from listening_test.decisions import (
    BY_HAND,
    DECISIONS,
    INTERNAL,
    STATUS,
    BadDecision,
    decide,
)
from listening_test.exclusion import RULES, Ends, apply_rules
from listening_test.export import (
    ExportError,
    closed_and_withdrawn,
    decisions_frame,
    exported_frame,
    sessions_frame,
)
from listening_test.gate import SECRET_VARIABLE, WINDOW_S, Gate
from listening_test.hosting import Hosted
from listening_test.limit import VARIABLE as LIMIT_VARIABLE
from listening_test.limit import Limiter
from listening_test.prepared import NotPrepared, load_prepared
from listening_test.store import NotSaved, Store, StoreMismatch
from listening_test.study import Study

SHORT_SECRET = 12
# From so many raters on a share is worth an alarm.
_ENOUGH = 5
_SCREENED_SHARE = 0.5
_EXCLUDED_SHARE = 0.3
_GONE_SHARE = 0.4

Row = dict[str, Any]
T = TypeVar("T")
# Options of the command line, and what they decide.
_OPTIONS = dict(
    zip(("leave-out", "take-back", "internal", "not-internal"), DECISIONS, strict=True)
)  # fmt: skip


@dataclass(frozen=True)
class Overview:
    """A study's state, without a score in it. Rows are for tables; alarms are sentences."""

    title: str
    closed_utc: str | None
    planned_sessions: int
    sessions: dict[str, int]
    withdrawn: int
    drop_out: str
    cells: list[Row]
    wanted: int
    raters: list[Row]
    excluded: list[Row]
    decisions: list[Row]
    alarms: list[str]

    @property
    def summary(self) -> str:
        """Sessions by state, in a sentence."""
        told = ", ".join(f"{n} {state}" for state, n in self.sessions.items() if n)
        closed = f" Closed since {self.closed_utc}." if self.closed_utc else ""
        return (
            f"{self.planned_sessions} sessions planned; {told or 'none begun'}; "
            f"{self.withdrawn} withdrawn.{closed} {self.drop_out}"
        )


def overview(study_dir: Path, now: float, problems: tuple[str, ...] = ()) -> Overview:
    """The state of a study.

    Args:
        now: seconds since 1970.
        problems: what the server has to say besides (`server_alarms`); they become alarms.

    Raises:
        ExportError: key or ratings are missing or cannot be read.
    """
    ratings, study = exported_frame(study_dir)
    sessions = sessions_frame(study_dir)
    prepared = load_prepared(study_dir)
    closed, withdrawn = closed_and_withdrawn(study_dir, now)
    states = _states(sessions, now)
    incomplete = frozenset(sessions.loc[states != "complete", "session_id"])
    judged = apply_rules(ratings, study.exclusion, Ends.of(study), incomplete)
    counting = sessions["status"] == "use"
    counts = _counts(states, sessions["status"])
    cells = _cells(ratings[ratings["status"] == "use"], study)
    alarms = [
        *problems,
        *_rater_alarms(sessions[counting], counts, judged),
        *_progress_alarms(counts, prepared.planned_sessions, cells, study, closed),
    ]
    return Overview(
        title=study.title, closed_utc=closed, planned_sessions=prepared.planned_sessions,
        sessions=counts, withdrawn=withdrawn,
        drop_out=_drop_out(sessions[counting], states[counting]), cells=cells,
        wanted=study.ratings_per_stimulus, raters=_raters(sessions, states, judged),
        excluded=_excluded(judged, study, sessions), decisions=_decisions(study_dir), alarms=alarms,
    )  # fmt: skip


def server_alarms(
    hosted: Hosted, gate: Gate | None = None, limiter: Limiter | None = None
) -> tuple[str, ...]:
    """What only the running server knows."""
    found = [told for told in (hosted.store.save_error, hosted.store.csv_error) if told]
    if hosted.copy and (alarm := hosted.copy.status().alarm):
        found.append(alarm)
    if gate is not None and gate.wrong:
        found.append(f"Wrong secrets in the last {WINDOW_S // 60} minutes: {gate.wrong}.")
    if limiter is not None and (refused := limiter.refused):
        found.append(
            f"Requests refused in the last {WINDOW_S // 60} minutes, since one address made more "
            f"than {limiter.rate:g} a second: {refused}. If many raters share an address, set "
            f"{LIMIT_VARIABLE} higher."
        )
    if 0 < len(os.environ.get(SECRET_VARIABLE, "")) < SHORT_SECRET:
        found.append(
            f"The secret is short enough to be guessed; take {SHORT_SECRET} characters or more."
        )
    return tuple(found)


def _states(sessions: pd.DataFrame, now: float) -> pd.Series:
    """A session's state; one that has begun is at work, or gone after half an hour of silence."""
    seen = pd.to_datetime(sessions["last_seen_utc"], utc=True, format="ISO8601")
    gone = seen < pd.Timestamp(now - enrolment.IDLE_S, unit="s", tz="UTC")
    begun = sessions["state"] == "started"
    states = sessions["state"].astype(object)
    return states.where(~(begun & gone), "gone").where(~(begun & ~gone), "at work")


def _counts(states: pd.Series, status: pd.Series) -> dict[str, int]:
    """Sessions that count, by state; then those that a decision leaves out."""
    counting = states[status == "use"]
    counts = {name: int((counting == name).sum()) for name in ("complete", "at work", "gone")}
    counts["screened out"] = int((counting == "screened_out").sum())
    counts["left out by hand"] = int((status == STATUS[BY_HAND]).sum())
    counts["internal"] = int((status == STATUS[INTERNAL]).sum())
    return counts


def _decisions(study_dir: Path) -> list[Row]:
    names = {(d.rule, d.holds): name for name, d in DECISIONS.items()}
    return [
        {
            "when (UTC)": row.server_utc[:16].replace("T", " "),
            "rater": row.rater_id,
            "decision": names[row.rule, bool(row.holds)],
            "reason": row.reason,
        }
        for row in decisions_frame(study_dir).itertuples()
    ]


def _drop_out(sessions: pd.DataFrame, states: pd.Series) -> str:
    gone, through = sessions[states == "gone"], int((states == "complete").sum())
    if not len(gone):
        return "Nobody dropped out."
    share = len(gone) / (len(gone) + through)
    at, of = median(gone["n_done"]), median(gone["trials"])
    return f"Drop-out {share:.0%}: {len(gone)} left, half of them by trial {at:g} of {of:g}."


def _columns(study: Study) -> list[str]:
    """The conditions of a text as the table names them."""
    kind = study.layout.conditions
    if kind == "pair":
        return [" – ".join(pair) for pair in combinations(study.names, 2)]
    if kind == "reference":
        return [name for name in study.names if name != study.reference]
    return study.names


def _cells(ratings: pd.DataFrame, study: Study) -> list[Row]:
    """Answered trials of each text under each condition, practice and checks left out."""
    scored = ratings[ratings["trial_type"].isin(SCORED_TRIALS)]
    order = {system.name: place for place, system in enumerate(study.systems)}
    if study.layout.conditions == "pair":
        pairs = zip(scored["system"], scored["system_b"], strict=True)
        where = [" – ".join(sorted(pair, key=order.__getitem__)) for pair in pairs]
    else:
        where = list(scored["system"])
    trial = pd.DataFrame(
        {
            "text": scored["item_id"], "where": where, "session": scored["session_id"],
            "trial": scored["trial_index"],
        }
    )  # fmt: skip
    counts = trial.drop_duplicates().groupby(["text", "where"]).size().to_dict()
    return [
        {"text": item.id, **{name: counts.get((item.id, name), 0) for name in _columns(study)}}
        for item in study.items
    ]


def _reasons(judged: pd.DataFrame) -> pd.DataFrame:
    """Scored rows that a rule took out."""
    scored = judged["trial_type"].isin(SCORED_TRIALS)
    return judged[scored & (judged["status"] != "use")]


def _raters(sessions: pd.DataFrame, states: pd.Series, judged: pd.DataFrame) -> list[Row]:
    out = judged[judged["status"] != "use"]
    why = out.groupby("session_id")["status_reason"].first().to_dict()
    return [
        {
            "rater": session["rater_id"],
            "from": session["platform"],
            "state": state.replace("_", " "),
            "trials": f"{session['n_done']} of {session['trials']}",
            "began (UTC)": session["consent_utc"][:16].replace("T", " "),
            "last seen (UTC)": session["last_seen_utc"][:16].replace("T", " "),
            "headphones": _headphones(session),
            "left out by": why.get(session["session_id"], session["status_reason"] or ""),
        }
        for (_, session), state in zip(sessions.iterrows(), states, strict=True)
    ]


def _headphones(session: pd.Series) -> str:
    if pd.isna(session["headphones_passed"]):
        return "not tested"
    return "passed" if session["headphones_passed"] else "failed"


def _excluded(judged: pd.DataFrame, study: Study, sessions: pd.DataFrame) -> list[Row]:
    """One row a rule that the study file sets, fitting somebody or not; then what was decided."""
    given = [name for name, _ in RULES if getattr(study.exclusion, name) is not None]
    rules = ["incomplete session"] * study.exclusion.incomplete_sessions
    rules += [name.replace("_", " ") for name in given]
    out = _reasons(judged)
    decided = sessions[sessions["status"] != "use"]
    who = [*zip(out["status_reason"], out["rater_id"], strict=True),
           # Who is left out before they rated anything.
           *zip(decided["status_reason"], decided["rater_id"], strict=True)]  # fmt: skip
    return [
        {
            "rule": rule,
            "raters": len({rater for why, rater in who if why == rule}),
            "ratings": int((out["status_reason"] == rule).sum()),
        }
        for rule in [*rules, *decided["status_reason"].drop_duplicates()]
    ]


def _rater_alarms(
    sessions: pd.DataFrame, counts: dict[str, int], judged: pd.DataFrame
) -> list[str]:
    """A gate that turns away too many may be broken itself."""
    found = []
    tested = sessions["headphones_passed"].dropna()
    failed = int((tested == 0).sum())
    if len(tested) >= _ENOUGH and failed > _SCREENED_SHARE * len(tested):
        found.append(
            f"The headphone check failed {failed} of {len(tested)} raters. Take it yourself: is "
            "the sound right, and do the instructions say that headphones are needed?"
        )
    through = judged[judged["session_id"].isin(
        sessions.loc[sessions["state"] == "complete", "session_id"])]  # fmt: skip
    raters = through["rater_id"].nunique()
    left_out = _reasons(through)["rater_id"].nunique()
    if raters >= _ENOUGH and left_out > _EXCLUDED_SHARE * raters:
        found.append(
            f"The exclusion rules leave out {left_out} of {raters} raters who came to the end. "
            "Are the traps and gold clips clear, and do they play?"
        )
    settled = counts["gone"] + counts["complete"]
    if settled >= 2 * _ENOUGH and counts["gone"] > _GONE_SHARE * settled:
        found.append(
            f"{counts['gone']} of {settled} raters left before the end. Take the test yourself: "
            "is it too long, or does something not work?"
        )
    return found


def _progress_alarms(
    counts: dict[str, int], planned: int, cells: list[Row], study: Study, closed: str | None
) -> list[str]:
    if closed is not None or counts["complete"] < planned:
        return []
    wanted = study.ratings_per_stimulus
    short = sum(row[name] < wanted for row in cells for name in _columns(study))
    if short:
        return [f"All {planned} planned sessions are complete, but {short} cells lack ratings."]
    return [f"All {planned} planned sessions are complete. Close the study."]


def _table(rows: list[Row]) -> str:
    return pd.DataFrame(rows).to_string(index=False) if rows else "none"


def _run(study_dir: Path, operation: Callable[[sqlite3.Connection], T]) -> T:
    """Run an operation on a study's ratings, beside its server if there is one."""
    study = load_prepared(study_dir)
    store = Store(study_dir / "data", study.study_id, study.config_sha256)
    try:
        return store.run(operation).result()
    finally:
        store.close()


def _decision(rater: str, name: str, reason: str) -> Callable[[sqlite3.Connection], None]:
    return lambda db: decide(db, rater, DECISIONS[name], reason, time.time())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m listening_test.admin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study_dir", type=Path)
    parser.add_argument("--close", action="store_true", help="close the study; not to be undone")
    for option, name in _OPTIONS.items():
        parser.add_argument(f"--{option}", metavar="RATER", help=f"{name} (see raters below)")
    parser.add_argument("--reason", default="", help="of the decision; printed with the results")
    options = parser.parse_args(arguments)
    try:
        if options.close:
            closed = _run(options.study_dir, lambda db: enrolment.close_study(db, time.time()))
            print(f"closed since {closed}: no new sessions, results are public")
        for option, name in _OPTIONS.items():
            if rater := getattr(options, option.replace("-", "_")):
                _run(options.study_dir, _decision(rater, name, options.reason))
                print(f"{name}: {rater}")
        seen = overview(options.study_dir, time.time())
    except (ExportError, NotPrepared, NotSaved, StoreMismatch, BadDecision) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{seen.title}\n{seen.summary}")
    print(f"\nratings of each text, {seen.wanted} wanted\n{_table(seen.cells)}")
    print(f"\nraters\n{_table(seen.raters)}\n\nleft out by rule\n{_table(seen.excluded)}")
    print(f"\ndecisions\n{_table(seen.decisions)}")
    print("\nalarms\n" + ("\n".join(seen.alarms) or "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
