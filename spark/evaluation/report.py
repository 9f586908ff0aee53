"""An evaluation's figures in words and tables. Knows a summary only, no lines and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark.evaluation.figures import FEWEST, LEAST_RIGHT


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


def depth_label(summary: Mapping[str, Any]) -> str:
    """The fixed exit by the mean speech depth that was measured."""
    policies = summary["policies"]
    depth, full = (_get(policies.get(name), "mean_depth_speech") for name in ("fixed", "full"))
    if depth is None or full is None:
        return "fixed exit"
    return f"fixed exit (speech depth {depth:.2f} of {full:.2f})"


def goals(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, bar) for the embedded model's goals, in words."""
    policies, said, codec = summary["policies"], summary["teacher"], summary["codec"]
    full, spark, fixed = (policies.get(name) for name in ("full", "spark", "fixed"))
    hears = _get(said, "correct_heard")
    bar = _percent(None if hears is None else 0.9 * hears)
    ours, theirs = _get(full, "wer"), _percent(_get(said, "wer"))
    voice = _plain(_get(full, "mos_predicted")), _plain(_get(said, "mos_predicted"))
    kept = (
        f"lower end above {-100 * summary['margin']:.0f} points; decided from {FEWEST} answers and "
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


def policy_rows(summary: Mapping[str, Any]) -> list[list[str]]:
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
