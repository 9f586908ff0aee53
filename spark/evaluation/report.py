"""Tables of an evaluation: accuracy, word errors, predicted MOS, cost, paired with full depth.

Intervals: Wilson for a share; percentile bootstrap over items (2,000 draws, fixed seed) for means
and paired differences. What was not measured is None. Knows lines only, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

Line = dict[str, Any]
QUESTIONS = ("reasoning", "factual", "dialogue")
MARGIN = 0.05  # non-inferiority margin of heard accuracy, as a share
_DRAWS = 2000


def share(lines: Sequence[Line], field: str) -> dict[str, Any] | None:
    """A share with its Wilson 95 % interval."""
    if not lines:
        return None
    hits = sum(bool(line[field]) for line in lines)
    low, high = proportion_confint(hits, len(lines), method="wilson")
    return {"value": hits / len(lines), "ci95": [float(low), float(high)], "n": len(lines)}


def _draws(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(n, size=(_DRAWS, n))


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def corpus_wer(lines: Sequence[Line], edits: str = "edits", words: str = "words") -> Any:
    """All edits over all reference words, with a bootstrap interval over items."""
    if not lines or not sum(line[words] for line in lines):
        return None
    e = np.array([line[edits] for line in lines], float)
    w = np.array([line[words] for line in lines], float)
    index = _draws(len(lines))
    value = float(e.sum() / w.sum())
    above = sum(1 for a, b in zip(e, w, strict=True) if b and a / b > 0.5)
    spread = _interval(e[index].sum(1) / np.maximum(w[index].sum(1), 1))
    return {"value": value, "ci95": spread, "n": len(lines), "above_half": above / len(lines)}


def mean(lines: Sequence[Line], field: str) -> float | None:
    """Mean over the lines where the field was measured."""
    values = [line[field] for line in lines if line.get(field) is not None]
    return float(np.mean(values)) if values else None


def paired(lines: Sequence[Line], base: Sequence[Line], field: str) -> dict[str, Any] | None:
    """Mean of `field` minus the base's on the same items, with a bootstrap interval."""
    theirs = {line["item_id"]: line[field] for line in base}
    gaps = np.array([
        float(line[field]) - float(theirs[line["item_id"]])
        for line in lines
        if line[field] is not None and theirs.get(line["item_id"]) is not None
    ])  # fmt: skip
    if not len(gaps):
        return None
    spread = _interval(gaps[_draws(len(gaps))].mean(1))
    return {"value": float(gaps.mean()), "ci95": spread, "n": len(gaps)}


def _where(lines: Sequence[Line], keep: Callable[[Line], bool]) -> list[Line]:
    return [line for line in lines if keep(line)]


def of_policy(lines: Sequence[Line], full: Sequence[Line]) -> dict[str, Any]:
    """All figures of one policy (or of the teacher) beside full depth's."""
    asked = _where(lines, lambda x: x["family"] in QUESTIONS and x["split"] != "unseen_pair")
    aloud = _where(lines, lambda x: x["family"] == "read_aloud")
    families = dict.fromkeys(line["family"] for line in lines)
    figures = {
        "correct_text": share(asked, "correct_text"),
        "correct_heard": share(asked, "correct_heard"),
        "unseen_pairs_text": share(
            _where(lines, lambda x: x["split"] == "unseen_pair"), "correct_text"
        ),
        "families": {
            family: {
                field: share(_where(lines, lambda x, f=family: x["family"] == f), field)  # type: ignore[misc]
                for field in ("correct_text", "correct_heard")
            }
            for family in families
        },
        "read_aloud_text_wer": corpus_wer(aloud, "text_edits", "text_words"),
        "wer": corpus_wer(lines),
        "wer_read_aloud": corpus_wer(aloud),
        "wer_answers": corpus_wer(_where(lines, lambda x: x["family"] != "read_aloud")),
        "mos_predicted": mean(lines, "mos_predicted"),
        "mean_depth_speech": mean(lines, "mean_depth_speech"),
        "mean_depth_text": mean(lines, "mean_depth_text"),
        "traffic_ratio": mean(lines, "traffic_ratio"),
        "ms_per_token": mean(lines, "ms_per_token"),
        "stopped": share(lines, "stopped") if lines and "finish" in lines[0] else None,
    }
    if full is not lines:
        gaps = {field: paired(lines, full, field) for field in ("correct_heard", "mos_predicted")}
        gaps["wer"] = paired(lines, full, "wer")
        judged = _where(lines, lambda x: x["family"] != "read_aloud")
        gap = paired(judged, full, "correct_heard")
        gaps["correct_heard_answers"] = gap
        figures["against_full"] = gaps
        figures["non_inferior"] = gap["ci95"][0] > -MARGIN if gap else None
    return figures


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


def goals(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, bar) for the embedded model's goals, in words."""
    policies, said, codec = summary["policies"], summary["teacher"], summary["codec"]
    full, spark, fixed = (policies.get(name) for name in ("full", "spark", "fixed"))
    hears = _get(said, "correct_heard")
    bar = None if hears is None else 0.9 * hears
    ours, theirs = _get(full, "wer"), _get(said, "wer")
    gap = (spark or {}).get("against_full", {}).get("correct_heard_answers")
    gap_text = "not measured" if not gap else (
        f"{100 * gap['value']:+.1f} points, 95 % {100 * gap['ci95'][0]:+.1f} to "
        f"{100 * gap['ci95'][1]:+.1f}, n = {gap['n']}"
    )  # fmt: skip
    damage = (fixed or {}).get("against_full", {}).get("correct_heard")
    damage_text = f"{100 * damage['value']:+.1f} points" if damage else "not measured"
    voice = _get(full, "mos_predicted"), _plain(_get(said, "mos_predicted"))
    hears_text = f"{_percent(bar)}, that is 90 % of the teacher's {_percent(hears)}"
    return [
        ("right in text, unseen phrasings", _percent(_get(full, "correct_text")), "95 %"),
        ("right in text, unseen pairs", _percent(_get(full, "unseen_pairs_text")), "no bar"),
        ("right as heard", _percent(_get(full, "correct_heard")), hears_text),
        ("read aloud, WER of text", _percent(_get(full, "read_aloud_text_wer")), "5 %"),
        ("speech against own text, WER", _percent(ours), f"{_percent(theirs)} + 10 points"),
        ("codec alone, WER", _percent(_get(codec, "wer")), f"{_percent(theirs)} + 5 points"),
        ("predicted MOS (DNSMOS P.808)", _plain(voice[0]), f"{voice[1]} - 0.3"),
        ("SPAR-K minus full depth, right as heard", gap_text, "lower end above -5 points"),
        ("half depth minus full depth, right as heard", damage_text, "clearly worse"),
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
