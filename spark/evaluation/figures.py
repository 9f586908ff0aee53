"""Figures of an evaluation: accuracy, word errors, predicted MOS, cost, paired with full depth.

"Right" is always a share of the same replies: every answer, reading aloud apart. Intervals and
p-values are those of `statistics`, corrected by Holm over the policies; what was not measured is
None. Prompts that the model did not take are counted and have no part in anything else. Knows
lines only, no model and no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark.evaluation.statistics import (
    Line,
    corpus_wer,
    holm,
    mean,
    mean_of_sets,
    paired_mean,
    paired_sets,
    paired_share,
    paired_wer,
    share,
)
from spark.policies import DEFAULT

MARGIN = 0.05  # non-inferiority margin of heard accuracy and of WER, as a share
# Below these the margin is not judged: an interval of 5 points needs some hundred answers, and
# a model that is hardly ever right at full depth has nothing to lose.
FEWEST, LEAST_RIGHT = 300, 0.2
_MEANS = ("mos_predicted", "mos_utmosv2", "mean_depth_speech", "mean_depth_text", "traffic_ratio",
          "traffic_ratio_text", "traffic_ratio_speech", "ms_per_token", "ms_per_text_token",
          "ms_per_speech_token")  # fmt: skip


def summarise(
    items: Sequence[Line],
    teacher: Sequence[Line],
    order: Sequence[str] = DEFAULT,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """The whole summary.json but for the run's own settings.

    Args:
        items: lines of the policies.
        teacher: its lines and the codec's.
        order: of the policies; lines of others are left out.
        margin: of non-inferiority, as a share.
    """
    groups: dict[str, list[Line]] = {}
    refused: dict[str, int] = {}
    for line in (*items, *teacher):
        if "refused" in line:
            refused[line["policy"]] = refused.get(line["policy"], 0) + 1
            continue
        if "finish" in line:
            line = {**line, "stopped": line["finish"] == "stop"}
        groups.setdefault(line["policy"], []).append(line)
    full = groups.get("full", [])
    policies = {
        name: of_policy(groups[name], full, margin) | {"refused": refused.get(name, 0)}
        for name in order
        if name in groups
    }
    _correct(policies)
    return {
        "policies": policies,
        "teacher": of_policy(groups["teacher"], [], margin) if "teacher" in groups else None,
        "codec": of_policy(groups["codec"], [], margin) if "codec" in groups else None,
        "margin": margin,
    }


def of_policy(lines: Sequence[Line], full: Sequence[Line], margin: float) -> dict[str, Any]:
    """All figures of one policy (or of the teacher) beside full depth's."""
    answers, aloud = answers_of(lines), [x for x in lines if x["family"] == "read_aloud"]
    figures = {
        "correct_text": share(answers, "correct_text"),
        "correct_heard": share(answers, "correct_heard"),
        "correct_text_numbers": share(answers, "correct_text_numbers"),
        "correct_heard_numbers": share(answers, "correct_heard_numbers"),
        "unseen_phrasings_text": share(_of(lines, "split", "unseen_phrasing"), "correct_text"),
        "unseen_pairs_text": share(_of(lines, "split", "unseen_pair"), "correct_text"),
        "families": _families(lines),
        "sets": mean_of_sets(_sets(answers)),
        "judged": _judged(lines),
        "read_aloud_text_wer": corpus_wer(aloud, "text_edits", "text_words"),
        "wer": corpus_wer(lines),
        "wer_read_aloud": corpus_wer(aloud),
        "wer_answers": corpus_wer(answers),
        **{name: mean(lines, name) for name in _MEANS},
        "stopped": share(lines, "stopped") if lines and "finish" in lines[0] else None,
        "words": mean(lines, "words"),
        "wordless": sum(line["words"] == 0 for line in lines),
    }
    return figures if full is lines else figures | _against(lines, full, margin)


def _against(lines: Sequence[Line], full: Sequence[Line], margin: float) -> dict[str, Any]:
    """Differences from full depth on the same items, and whether they keep the margin."""
    gap = paired_share(answers_of(lines), answers_of(full), "correct_heard")
    sets = paired_sets(answers_of(lines), answers_of(full), points)
    right, base = gap, share(answers_of(full), "correct_heard")
    if gap is None:  # judges alone have a say
        right, base = sets, mean_of_sets(_sets(answers_of(full)))
    errors = paired_wer(lines, full)
    return {
        "against_full": {
            "correct_heard": gap,
            "sets": sets,
            "mos_predicted": paired_mean(lines, full, "mos_predicted"),
            "mos_utmosv2": paired_mean(lines, full, "mos_utmosv2"),
            "wer": errors,
        },
        "non_inferior": non_inferior(right, base, margin),
        "non_inferior_wer": None
        if errors is None or errors["n"] < FEWEST
        else bool(errors["ci95"][1] < margin),
    }


def non_inferior(
    gap: dict[str, Any] | None, full: dict[str, Any] | None, margin: float = MARGIN
) -> bool | None:
    """Whether the gap's lower end is above the margin; None where that cannot be decided."""
    if gap is None or full is None or gap["n"] < FEWEST or full["value"] < LEAST_RIGHT:
        return None
    return bool(gap["ci95"][0] > -margin)


def points(line: Line) -> float | None:
    """What a reply is worth, 0 to 1: the judge's score where there is one, else right or wrong."""
    scores = line.get("judged") or {}
    if scores:
        found: float | None = next(iter(scores.values()))["score"]
        return found
    right = line.get("correct_heard")
    return None if right is None else float(right)


def _sets(lines: Sequence[Line]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in lines:
        if (value := points(line)) is not None:
            found.setdefault(line["family"], []).append(value)
    return found


def _families(lines: Sequence[Line]) -> dict[str, Any]:
    """Accuracies and points of each family, or public set."""
    found = {}
    for family in dict.fromkeys(line["family"] for line in lines):
        members = _of(lines, "family", family)
        fields = ("correct_text", "correct_heard", "correct_heard_numbers")
        shares = {field: share(members, field) for field in fields}
        judged = any("judged" in line for line in members)
        points_of = mean_of_sets(_sets(members)) if judged else shares["correct_heard"]
        found[family] = {**shares, "points": points_of}
    return found


def _judged(lines: Sequence[Line]) -> dict[str, Any]:
    """Mean score of each judge with its interval, and how often it could not be read."""
    names = dict.fromkeys(name for line in lines for name in line.get("judged", {}))
    found = {}
    for name in names:
        scores = [line["judged"][name] for line in lines if name in line.get("judged", {})]
        read = [one["score"] for one in scores if one["score"] is not None]
        invalid = sum(one["invalid"] for one in scores)
        found[name] = (mean_of_sets({name: read}) or {"value": None}) | {"invalid": invalid}
    return found


def _correct(policies: dict[str, dict[str, Any]]) -> None:
    """Adds to every p-value the one that Holm's method makes of it, over the policies."""
    gaps = [figures["against_full"] for figures in policies.values() if "against_full" in figures]
    for measure in gaps[0] if gaps else ():
        tested = [gap[measure] for gap in gaps if gap[measure]]
        for one, p in zip(tested, holm([gap["p"] for gap in tested]), strict=True):
            one["p_holm"] = p


def answers_of(lines: Sequence[Line]) -> list[Line]:
    """The one population of every accuracy: all replies that answer something."""
    return [line for line in lines if line["family"] != "read_aloud"]


def _of(lines: Sequence[Line], field: str, value: str) -> list[Line]:
    return [line for line in lines if line[field] == value]
