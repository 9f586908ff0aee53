"""A study that is ready to be served: what `prepare` wrote and the server reads.

STUDY_DIR/serve/  design.json and audio/<stimulus id>.wav: opaque ids only, read by the server.
STUDY_DIR/key/    stimuli.csv (the key), study.json and secret: system names, read by export only.
STUDY_DIR/data/   ratings.sqlite3 and ratings.csv, written by the store.

Systems appear here as numbered arms, in an order that the names do not tell.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from listening_test.design import session_order

TrialType = Literal["practice", "rating", "null_pair"]


class NotPrepared(ValueError):
    """The folder holds no prepared study."""


@dataclass(frozen=True)
class Stimulus:
    """One WAV as the server knows it. `arm` is the anonymous system, `duration_s` seconds."""

    stimulus_id: str
    item_id: str
    arm: int
    duration_s: float
    trial_type: TrialType


@dataclass(frozen=True)
class PreparedStudy:
    """Everything the server may know of a study."""

    study_id: str
    config_sha256: str
    title: str
    method: str
    dimension: str
    question: str
    labels: tuple[str, ...]
    consent: str
    instructions: str
    language: str
    seed: int
    arms: int
    items_per_rater: int
    planned_sessions: int
    stimuli: tuple[Stimulus, ...]

    @cached_property
    def by_id(self) -> dict[str, Stimulus]:
        """The stimuli by their ids."""
        return {stimulus.stimulus_id: stimulus for stimulus in self.stimuli}

    @cached_property
    def practice_ids(self) -> list[str]:
        """Stimulus ids of the practice clips, in the order heard."""
        return [s.stimulus_id for s in self.stimuli if s.trial_type == "practice"]

    @cached_property
    def _places(self) -> dict[tuple[str, int], str]:
        rated = [s for s in self.stimuli if s.trial_type != "practice"]
        return {(s.item_id, s.arm): s.stimulus_id for s in rated}

    def trials(self, row: int) -> list[str]:
        """Stimulus ids of design row `row` (from 0), practice first, in the order heard."""
        items = list(dict.fromkeys(item for item, _ in self._places))
        order = session_order(len(items), self.arms, self.items_per_rater, self.seed, row)
        return self.practice_ids + [self._places[items[item], arm] for item, arm in order]

    def save(self, serve: Path) -> None:
        """Write `design.json` into the folder `serve`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (serve / "design.json").write_text(text + "\n", encoding="utf-8")


def load_prepared(study_dir: Path) -> PreparedStudy:
    """Read STUDY_DIR/serve/design.json.

    Raises:
        NotPrepared: it is absent or not ours.
    """
    path = study_dir / "serve" / "design.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["stimuli"] = tuple(Stimulus(**stimulus) for stimulus in data["stimuli"])
        data["labels"] = tuple(data["labels"])
        return PreparedStudy(**data)
    except FileNotFoundError:
        raise NotPrepared(
            f"{study_dir} holds no prepared study. Make one with "
            "`python -m listening_test.prepare STUDY.yaml --out STUDY_DIR`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotPrepared(
            f"{path} cannot be used ({error}). Prepare the study again into a new folder."
        ) from None
