"""What a calibration came to, as calibration.json holds it and as a terminal shows it.

Knows results and their fields; runs nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from spark.calibrate import front
from spark.calibrate.front import Limits, Tried
from spark.calibrate.search import Predicted
from spark.calibrate.sweep import Sweep
from spark.calibrate.trials import Setting


@dataclass(frozen=True)
class Wanted:
    """What is asked of a calibration.

    Attributes:
        setting: how replies are made.
        limits: what is looked for.
        minutes: for everything; turned into numbers of prompts by timing replies.
        sweep: prompts of the sweep.
        candidates: schedules of the first round.
        finalists: of the second.
        trials: prompts of the first round, in whole batches; None: as many as the time allows.
        finals: more prompts, for finalists only; None: as many as the time allows.
        workers: processes.
    """

    setting: Setting
    limits: Limits
    minutes: float = 30.0
    sweep: int = 96
    candidates: int = 8
    finalists: int = 3
    trials: int | None = None
    finals: int | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("minutes", "sweep", "candidates", "finalists", "trials", "finals", "workers"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0")


@dataclass(frozen=True)
class Plan:
    """Prompts of the two rounds, and the seconds a reply that gave the numbers (None: given)."""

    trials: int
    finals: int
    seconds_a_reply: float | None


@dataclass(frozen=True)
class Result:
    """What a calibration came to.

    Attributes:
        sweep: the teacher-forced figures.
        predicted: the schedules tried, by notation, as the sweep sees them.
        reference: SPAR-K Triple at the model's own exit, tried too.
        plan: how many prompts.
        rows: every schedule tried, finalists first.
        chosen: of least traffic within the limits, or else the nearest; None: none saves enough.
        within: whether it keeps the limits.
    """

    sweep: Sweep
    predicted: dict[str, Predicted]
    reference: str
    plan: Plan
    rows: list[Tried]
    chosen: Tried | None
    within: bool


def record(result: Result, wanted: Wanted) -> dict[str, Any]:
    """calibration.json."""
    on_front = {row.notation for row in front.front(result.rows)}
    plan, setting, limits = result.plan, wanted.setting, wanted.limits
    return {
        "command": command(wanted, plan),
        "setting": setting.record(),
        "limits": asdict(limits),
        "confidence": front.CONFIDENCE,
        "prompts": {"sweep": wanted.sweep, "trials": plan.trials, "finals": plan.finals},
        "torch": torch.__version__,
        "chosen": result.chosen and result.chosen.notation,
        "within_limits": result.within,
        "reference": result.reference,
        "schedules": [
            {
                "notation": row.notation, "n": row.n, "saving": row.saving,
                "traffic_ratio": row.traffic, "kept": row.kept(limits),
                "front": row.notation in on_front,
                "losses": {name: asdict(loss) for name, loss in row.losses.items()},
                "predicted": asdict(result.predicted[row.notation]), "figures": row.figures,
            }
            for row in result.rows
        ],
        "sweep": result.sweep.record(),
    }  # fmt: skip


def command(wanted: Wanted, plan: Plan) -> str:
    """The command that gives the same figures again: numbers of prompts in place of minutes."""
    setting, limits = wanted.setting, wanted.limits
    apart = {"max-tokens": setting.max_tokens, "device": setting.device, "bits": setting.bits}
    more = "".join(f" --{name} {value}" for name, value in apart.items() if value is not None)
    return (
        f"python -m spark.calibrate --model {setting.model} --seed {setting.sampling.seed} "
        f"--head {setting.head} --sweep {wanted.sweep} --candidates {wanted.candidates} "
        f"--finalists {wanted.finalists} --trials {plan.trials} --finals {plan.finals} "
        f"--max-accuracy-loss {limits.accuracy_loss} --max-wer-gain {limits.wer_gain} "
        f"--max-mos-loss {limits.mos_loss} --min-saving {limits.saving}{more}"
    )


def gap_text(gap: dict[str, Any] | None, scale: float = 100.0) -> str:
    """A difference from full depth with its 95 % interval; "-" where there is none."""
    if gap is None:
        return "-"
    value, low, high = (scale * x for x in (gap["value"], *gap["ci95"]))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def lines(held: dict[str, Any]) -> list[list[str]]:
    """calibration.json's schedules as rows of text, below `HEADER`."""
    return [
        [
            row["notation"] + (" *" if row["notation"] == held["chosen"] else ""),
            str(row["n"]),
            f"{100 * row['saving']:.1f} %",
            f"{100 * row['traffic_ratio']:.1f} %",
            gap_text(row["figures"]["against_full"]["accuracy"]),
            gap_text(row["figures"]["against_full"]["wer"]),
            gap_text(row["figures"]["against_full"]["mos"], 1.0),
            "yes" if row["kept"] else "no",
        ]
        for row in held["schedules"]
    ]


HEADER = ("schedule", "prompts", "speech depth saved", "weights read", "right as heard, points",
          "WER, points", "predicted MOS", "within limits")  # fmt: skip


def verdict(held: dict[str, Any]) -> str:
    """What was found, in a sentence or two."""
    name, wanted = held["chosen"], 100 * held["limits"]["saving"]
    if name is None:
        return f"No schedule that was tried saved {wanted:.0f} % of speech depth."
    row = next(row for row in held["schedules"] if row["notation"] == name)
    saved = f"{name} saves {100 * row['saving']:.1f} % of speech depth and reads "
    saved += f"{100 * row['traffic_ratio']:.1f} % of full depth's weights"
    if held["within_limits"]:
        return (
            f"{saved}, within the limits with {100 * held['confidence']:.0f} % confidence. Confirm "
            "it on fresh prompts: python -m spark.calibrate confirm DIR."
        )
    return (
        f"No schedule that saves {wanted:.0f} % keeps the limits with "
        f"{100 * held['confidence']:.0f} % confidence on these prompts. The nearest: {saved}. Try "
        "more minutes, looser limits, or a lower --min-saving."
    )
