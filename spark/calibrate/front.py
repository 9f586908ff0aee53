"""What free-running replies say of each schedule: figures, limits, Pareto front, choice.

Everything is paired with full depth's replies to the same prompts. Knows lines only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm

from spark.calibrate.trials import FULL, Line
from spark.evaluation.statistics import (
    corpus_wer,
    mean,
    paired_mean,
    paired_share,
    paired_wer,
    share,
)
from spark.pareto import unbeaten

# A limit counts as kept where the loss lies below it with this confidence, one-sided: enough not
# to run after luck. It is no claim; that is what the confirmation on fresh prompts is for.
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Limits:
    """What a schedule may cost and has to save.

    Attributes:
        accuracy_loss: share of answers heard right, at most this much less than full depth's.
        wer_gain: word error rate of speech against own text, at most this much more.
        mos_loss: predicted MOS, at most this much less.
        saving: share of full depth's speech layers left out, at least.
    """

    accuracy_loss: float = 0.02
    wer_gain: float = 0.02
    mos_loss: float = 0.05
    saving: float = 0.22

    def __post_init__(self) -> None:
        for name in ("accuracy_loss", "wer_gain", "mos_loss"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"the limit of {name.replace('_', ' ')} must be above 0, up to 1")
        if not 0 < self.saving < 1:
            raise ValueError("the saving must lie between 0 and 1, as a share of speech depth")


@dataclass(frozen=True)
class Loss:
    """A loss against full depth: larger is worse; None for what was not measured.

    Attributes:
        value: the estimate.
        error: its standard error, from the 95 % interval.
        limit: what it may be.
    """

    value: float
    error: float
    limit: float

    @property
    def kept(self) -> bool:
        """Whether it lies below the limit with `CONFIDENCE`."""
        return self.value + float(norm.ppf(CONFIDENCE)) * self.error <= self.limit


@dataclass(frozen=True)
class Tried:
    """A schedule after its replies.

    Attributes:
        notation: of the schedule.
        n: prompts.
        saving: share of full depth's speech layers left out, measured.
        traffic: weight bytes over full depth's, mean over replies.
        losses: by name: accuracy, wer, mos.
        figures: all of them, for the report.
    """

    notation: str
    n: int
    saving: float
    traffic: float
    losses: Mapping[str, Loss]
    figures: Mapping[str, Any]

    def kept(self, limits: Limits) -> bool:
        """Whether it keeps every limit that could be measured, and saves enough."""
        enough = self.saving >= limits.saving - 1e-9
        return enough and all(loss.kept for loss in self.losses.values())

    @property
    def strain(self) -> float:
        """The largest loss as a multiple of its limit; smaller is better."""
        return max(loss.value / loss.limit for loss in self.losses.values())


def tried(lines: Sequence[Line], notation: str, limits: Limits) -> Tried:
    """A schedule's figures beside full depth's on the same prompts.

    Raises:
        ValueError: it has no replies with speech, or full depth none to the same prompts.
    """
    sides = [[line for line in lines if line["policy"] == name] for name in (notation, FULL)]
    both = set.intersection(*({line["item_id"] for line in side} for side in sides))
    ours, full = ([line for line in side if line["item_id"] in both] for side in sides)
    answers, answers_full = ([x for x in ls if x["family"] != "read_aloud"] for ls in (ours, full))
    depth, depth_full = (mean(side, "mean_depth_speech") for side in (ours, full))
    if depth is None or depth_full is None:
        raise ValueError(f"{notation}: no replies with speech to compare with full depth's")
    gaps = {
        "accuracy": paired_share(answers, answers_full, "correct_heard"),
        "wer": paired_wer(ours, full),
        "mos": paired_mean(ours, full, "mos_predicted"),
    }
    bounds = {"accuracy": limits.accuracy_loss, "wer": limits.wer_gain, "mos": limits.mos_loss}
    losses = {
        name: Loss((1 if name == "wer" else -1) * gap["value"], _error(gap), bounds[name])
        for name, gap in gaps.items()
        if gap is not None
    }
    traffic = mean(ours, "traffic_ratio")
    assert traffic is not None
    figures = {
        "correct_heard": share(answers, "correct_heard"),
        "correct_text": share(answers, "correct_text"),
        "wer": corpus_wer(ours),
        "mos_predicted": mean(ours, "mos_predicted"),
        "mean_depth_speech": depth,
        "traffic_ratio": traffic,
        "against_full": gaps,
    }
    return Tried(notation, len(ours), 1 - depth / depth_full, traffic, losses, figures)


def _error(gap: Mapping[str, Any]) -> float:
    low, high = gap["ci95"]
    return float((high - low) / (2 * norm.ppf(0.975)))


def finalists(
    rows: Sequence[Tried], limits: Limits, most: int, harm: Mapping[str, float]
) -> list[Tried]:
    """The rows that save enough and strain the limits least.

    The one that the sweep predicts to harm least is always among them: few replies cannot yet tell
    it from one that was lucky.

    Args:
        rows: of the first round.
        limits: what is looked for.
        most: how many.
        harm: predicted, by notation.
    """
    enough = [row for row in rows if row.saving >= limits.saving - 1e-9]
    safest = min(enough, key=lambda row: harm[row.notation], default=None)
    return sorted(enough, key=lambda row: (row is not safest, row.strain))[:most]


def front(rows: Sequence[Tried]) -> list[Tried]:
    """Those that no other undercuts: none has as little traffic and as small losses, one less."""
    costs = {
        place: (row.traffic, *(row.losses[name].value for name in sorted(row.losses)))
        for place, row in enumerate(rows)
    }
    return [rows[place] for place in unbeaten(costs)]


def choice(rows: Sequence[Tried], limits: Limits) -> tuple[Tried | None, bool]:
    """The schedule of least traffic within the limits, and True; else the least strained, False."""
    kept = [row for row in rows if row.kept(limits)]
    if kept:
        return min(kept, key=lambda row: row.traffic), True
    enough = [row for row in rows if row.saving >= limits.saving - 1e-9]
    return min(enough, key=lambda row: row.strain, default=None), False
