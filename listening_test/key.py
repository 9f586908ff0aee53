"""The key of a study, STUDY_DIR/key: which opaque stimulus id is which system's sound.

    secret        keys the ids; made once, or LISTENING_TEST_KEY instead
    stimuli.csv   one row a stimulus
    study.json    the study as it was prepared, and with what software

Ratings mean something only together with the key they were made under, so what would part them
is refused here. Read by preparation and export, never by the server.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import secrets
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile
import soxr

from listening_test.columns import csv_text
from listening_test.study import Study

# A secret of one's own, for the same ids in every folder.
VARIABLE = "LISTENING_TEST_KEY"
_SECRET_BYTES = 32
_COLUMNS = (
    "stimulus_id", "system", "item_id", "trial_type", "talker", "audio_sha256", "duration_s",
    "sample_rate", "lufs_in", "lufs_out", "true_peak_dbtp", "gain_db", "leading_silence_ms",
    "trailing_silence_ms", "identical_to",
)  # fmt: skip


class KeyMismatch(ValueError):
    """The folder holds ratings of other clips than those to be written."""


def secret(study_dir: Path) -> bytes:
    """What keys the stimulus ids: the variable's value, else this folder's own random bytes.

    Nobody can compute the ids from the study file, and preparing again gives the same ones.
    """
    if given := os.environ.get(VARIABLE):
        return given.encode()
    path = study_dir / "key" / "secret"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name("secret.part")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        os.replace(new, path)
    found = path.read_bytes()
    if len(found) != _SECRET_BYTES:
        raise KeyMismatch(
            f"{path} is damaged: it must hold {_SECRET_BYTES} bytes. Restore it, or give a new "
            "folder to --out."
        )
    return found


def _has_ratings(study_dir: Path) -> bool:
    return (study_dir / "data" / "ratings.sqlite3").exists()


def check_version(study_dir: Path, study: Study) -> None:
    """Raise KeyMismatch if there are ratings of another version of the study."""
    if not _has_ratings(study_dir):
        return
    try:
        record = json.loads((study_dir / "key" / "study.json").read_text(encoding="utf-8"))
        same = record["config_sha256"] == study.sha256
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise KeyMismatch(
            f"{study_dir} holds ratings of another version of this study. Versions never mix: "
            "give a new folder to --out."
        )


def check_same_sound(study_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Raise KeyMismatch if there are ratings of other ids, or of other sounds, than in `rows`."""
    if not _has_ratings(study_dir):
        return
    path = study_dir / "key" / "stimuli.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rated = {row["stimulus_id"]: row["audio_sha256"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise KeyMismatch(
            f"{study_dir} holds ratings, but {path.name} of its key cannot be read ({error}), so "
            "nobody can tell what was rated. Restore it, or give a new folder to --out."
        ) from error
    if set(rated) != {row["stimulus_id"] for row in rows}:
        raise KeyMismatch(
            f"{study_dir} holds ratings under other stimulus ids. Prepare with the {VARIABLE} or "
            "the key/secret of those ratings, or give a new folder to --out."
        )
    other = [row for row in rows if rated[row["stimulus_id"]] != row["audio_sha256"]]
    if other:
        raise KeyMismatch(
            f"{study_dir} holds ratings, but {len(other)} of {len(rows)} clips sound different "
            f"now (first: {other[0]['system']}/{other[0]['item_id']}). Ratings of different "
            "sounds never mix: give a new folder to --out."
        )


def write(folder: Path, study: Study, rows: list[dict[str, Any]]) -> None:
    """Write stimuli.csv and study.json into `folder`."""
    (folder / "stimuli.csv").write_text(csv_text(rows, _COLUMNS), encoding="utf-8")
    record = {
        "config": study.model_dump(mode="json"),
        "config_sha256": study.sha256,
        "software": {
            "python": platform.python_version(),
            "pyloudnorm": version("pyloudnorm"),
            "soundfile": soundfile.__version__,
            "soxr": soxr.__version__,
        },
    }
    text = json.dumps(record, ensure_ascii=False, indent=1)
    (folder / "study.json").write_text(text + "\n", encoding="utf-8")
