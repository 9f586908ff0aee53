"""Tables of an evaluation: accuracy, word errors, predicted MOS, cost, paired with full depth.

"Right" is always a share of the same replies: every answer, reading aloud apart. Intervals are
those of `statistics`; what was not measured is None. Knows lines only, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark.evaluation.statistics import (
    Line,
    corpus_wer,
    mean,
    paired_mean,
    paired_share,
    paired_wer,
    share,
)

MARGIN = 0.05  # non-inferiority margin of heard accuracy, as a share
# Below these the margin is not judged: an interval of 5 points needs some hundred answers, and
# a model that is hardly ever right at full depth has nothing to lose.
FEWEST, LEAST_RIGHT = 300, 0.2


def of_policy(lines: Sequence[Line], full: Sequence[Line]) -> dict[str, Any]:
    """All figures of one policy (or of the teacher) beside full depth's."""
    answers, aloud = _answers(lines), [x for x in lines if x["family"] == "read_aloud"]
    figures = {
        "correct_text": share(answers, "correct_text"),
        "correct_heard": share(answers, "correct_heard"),
        "unseen_phrasings_text": share(_of(lines, "split", "unseen_phrasing"), "correct_text"),
        "unseen_pairs_text": share(_of(lines, "split", "unseen_pair"), "correct_text"),
        "families": {
            family: {
                field: share(_of(lines, "family", family), field)
                for field in ("correct_text", "correct_heard")
            }
            for family in dict.fromkeys(line["family"] for line in lines)
        },
        "read_aloud_text_wer": corpus_wer(aloud, "text_edits", "text_words"),
        "wer": corpus_wer(lines),
        "wer_read_aloud": corpus_wer(aloud),
        "wer_answers": corpus_wer(answers),
        "mos_predicted": mean(lines, "mos_predicted"),
        "mean_depth_speech": mean(lines, "mean_depth_speech"),
        "mean_depth_text": mean(lines, "mean_depth_text"),
        "traffic_ratio": mean(lines, "traffic_ratio"),
        "ms_per_token": mean(lines, "ms_per_token"),
        "stopped": share(lines, "stopped") if lines and "finish" in lines[0] else None,
    }
    return figures if full is lines else figures | _against(lines, full)


def _against(lines: Sequence[Line], full: Sequence[Line]) -> dict[str, Any]:
    """Differences from full depth on the same items, and whether accuracy keeps the margin."""
    gap = paired_share(_answers(lines), _answers(full), "correct_heard")
    return {
        "against_full": {
            "correct_heard": gap,
            "mos_predicted": paired_mean(lines, full, "mos_predicted"),
            "wer": paired_wer(lines, full),
        },
        "non_inferior": non_inferior(gap, share(_answers(full), "correct_heard")),
    }


def non_inferior(gap: dict[str, Any] | None, full: dict[str, Any] | None) -> bool | None:
    """Whether the gap's lower end is above the margin; None where that cannot be decided."""
    if gap is None or full is None or gap["n"] < FEWEST or full["value"] < LEAST_RIGHT:
        return None
    return bool(gap["ci95"][0] > -MARGIN)


def _answers(lines: Sequence[Line]) -> list[Line]:
    """The one population of every accuracy: all replies that answer something."""
    return [line for line in lines if line["family"] != "read_aloud"]


def _of(lines: Sequence[Line], field: str, value: str) -> list[Line]:
    return [line for line in lines if line[field] == value]


def summarise(items: Sequence[Line], teacher: Sequence[Line]) -> dict[str, Any]:
    """The whole summary.json but for the run's own settings."""
    groups: dict[str, list[Line]] = {}
    for line in (*items, *teacher):
        if "finish" in line:
            line = {**line, "stopped": line["finish"] == "stop"}
        groups.setdefault(line["policy"], []).append(line)
    full = groups.get("full", [])
    order = [name for name in ("full", "spark", "confidence", "fixed") if name in groups]
    return {
        "policies": {name: of_policy(groups[name], full) for name in order},
        "teacher": of_policy(groups["teacher"], []) if "teacher" in groups else None,
        "codec": of_policy(groups["codec"], []) if "codec" in groups else None,
        "margin": MARGIN,
    }


def _get(figures: dict[str, Any] | None, name: str) -> float | None:
    if figures is None or figures.get(name) is None:
        return None
    value = figures[name]
    return float(value["value"] if isinstance(value, dict) else value)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _plain(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _gap(figures: dict[str, Any] | None) -> str:
    """The accuracy gap to full depth in words."""
    gap = (figures or {}).get("against_full", {}).get("correct_heard")
    if not gap:
        return "not measured"
    low, high = (100 * end for end in gap["ci95"])
    return f"{100 * gap['value']:+.1f} points, 95 % {low:+.1f} to {high:+.1f}, n = {gap['n']}"


def _wer_gap(figures: dict[str, Any] | None) -> str:
    """The difference in word errors to full depth in words."""
    gap = (figures or {}).get("against_full", {}).get("wer")
    if not gap:
        return "not measured"
    low, high = (100 * end for end in gap["ci95"])
    return f"{100 * gap['value']:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"


def _verdict(figures: dict[str, Any] | None) -> str:
    verdict = (figures or {}).get("non_inferior")
    return {True: "kept", False: "not kept", None: "not decided"}[verdict]


def depth_label(summary: dict[str, Any]) -> str:
    """The fixed exit by the mean speech depth that was measured."""
    policies = summary["policies"]
    depth, full = (_get(policies.get(name), "mean_depth_speech") for name in ("fixed", "full"))
    if depth is None or full is None:
        return "fixed exit"
    return f"fixed exit (speech depth {depth:.2f} of {full:.2f})"


def goals(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, bar) for the embedded model's goals, in words."""
    policies, said, codec = summary["policies"], summary["teacher"], summary["codec"]
    full, spark, fixed = (policies.get(name) for name in ("full", "spark", "fixed"))
    hears = _get(said, "correct_heard")
    bar = _percent(None if hears is None else 0.9 * hears)
    ours, theirs = _get(full, "wer"), _percent(_get(said, "wer"))
    voice = _plain(_get(full, "mos_predicted")), _plain(_get(said, "mos_predicted"))
    kept = (
        f"lower end above {-100 * MARGIN:.0f} points; decided from {FEWEST} answers and "
        f"{100 * LEAST_RIGHT:.0f} % right at full depth on"
    )
    return [
        (
            "right in text, unseen phrasings",
            _percent(_get(full, "unseen_phrasings_text")),
            "95 %",
        ),
        ("right in text, unseen pairs", _percent(_get(full, "unseen_pairs_text")), "no bar"),
        (
            "right as heard, all answers",
            _percent(_get(full, "correct_heard")),
            f"{bar}, that is 90 % of the teacher's {_percent(hears)}",
        ),
        ("read aloud, WER of text", _percent(_get(full, "read_aloud_text_wer")), "5 %"),
        ("speech against own text, WER", _percent(ours), f"{theirs} + 10 points"),
        ("codec alone, WER", _percent(_get(codec, "wer")), f"{theirs} + 5 points"),
        ("predicted MOS (DNSMOS P.808)", voice[0], f"{voice[1]} - 0.3"),
        (
            "SPAR-K minus full depth, right as heard, all answers",
            f"{_gap(spark)}: {_verdict(spark)}",
            kept,
        ),
        (
            f"{depth_label(summary)} minus full depth, right as heard, all answers",
            _gap(fixed),
            "clearly worse: upper end below 0",
        ),
        (
            f"{depth_label(summary)} minus full depth, WER of speech",
            _wer_gap(fixed),
            "clearly worse: lower end above 0",
        ),
    ]


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def policy_rows(summary: dict[str, Any]) -> list[list[str]]:
    """One row a policy, then teacher and codec."""
    rows = []
    extra = {name: summary[name] for name in ("teacher", "codec") if summary[name]}
    for name, figures in {**summary["policies"], **extra}.items():
        depth, traffic = figures["mean_depth_speech"], figures["traffic_ratio"]
        rows.append([
            name, _percent(_get(figures, "correct_text")), _percent(_get(figures, "correct_heard")),
            _percent(_get(figures, "wer")), _plain(figures["mos_predicted"]),
            "-" if depth is None else f"{depth:.2f}",
            "-" if traffic is None else _percent(traffic),
        ])  # fmt: skip
    return rows


POLICY_HEADER = ("policy", "right in text", "right as heard", "WER", "predicted MOS",
                 "speech depth", "weights read")  # fmt: skip
