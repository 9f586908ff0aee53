"""The columns of `ratings.csv`, and how a value becomes a cell that is safe to open anywhere.

One row per answer, UTF-8, comma, UTC ISO-8601, empty = missing. The blinded file has opaque
stimulus ids only; `system` and `system_b` are joined from the key at export.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

SCHEMA_VERSION = "2"

RATING_COLUMNS = (
    "schema_version", "study_id", "config_sha256", "rating_id", "session_id", "rater_id",
    "platform", "block_id", "design_row", "trial_index", "trial_type", "method", "dimension",
    "item_id", "stimulus_id", "stimulus_b_id", "score", "score_signed", "choice", "scale_id",
    "label_shown", "ui_lang", "plays", "listened_ms", "listened_fraction", "plays_b",
    "listened_ms_b", "listened_fraction_b", "rt_ms", "first_play_to_submit_ms", "hidden_ms",
    "changed_n", "client_utc", "server_utc", "expected_score", "check_passed", "status",
    "status_reason", "comment",
)  # fmt: skip
SESSION_COLUMNS = (
    "session_id", "rater_id", "platform", "submission_id", "design_row", "state", "n_done",
    "trials", "consent_utc", "consent_version", "ui_lang", "started_utc", "ended_utc",
    "last_seen_utc", "device", "browser", "headphones", "headphones_right", "headphones_passed",
    "environment_right", "environment_passed", "volume_utc", "traps_wrong", "payment_class",
    "completion_code_id", "status", "status_reason",
)  # fmt: skip
RATER_COLUMNS = ("rater_id", "platform", "sessions", "sessions_complete", "ratings")
# Kinds of trial whose scores speak for a system. A null pair is the same sound under two
# systems: leaving it out would overstate their difference.
SCORED_TRIALS = ("rating", "null_pair")
KEY_COLUMNS = ("system", "system_b")

# A spreadsheet runs a cell that starts with one of these as a formula; a quote before it, and the
# cell is text. Text that begins like a cell so guarded takes a quote more: what is read back is
# then always what was written.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def clean_text(text: str) -> str:
    """Text without control characters (line breaks and tabs become spaces) or lone surrogates."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if c in "\r\n\t\x0b\x0c\u2028\u2029" else c for c in text)
    return "".join(c for c in text if c.isprintable() or c in "\u200c\u200d").strip()


def cell(value: Any) -> str:
    """One CSV cell: numbers as they are, text with a quote before it if it could be a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return value.__format__("")  # numpy's own repr names its type
    text = str(value)
    return "'" + text if _FORMULA.match(text) else text


def uncell(text: str) -> str:
    """The text that `cell` made a cell of: without the quote that keeps it from being run."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def csv_text(
    rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...], header: bool = True
) -> str:
    """Rows as quoted CSV text; a column that a row lacks is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    if header:
        writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(row.get(column)) for column in columns])
    return out.getvalue()
