"""The paper's claims, their tests and what came of them, in sentences. Knows figures only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark.evaluation import report

CLAIMS = {
    "traffic": "A schedule beats confidence exit at equal traffic",
    "refresh": "Refresh matters: SPAR-K beats a fixed exit of equal depth",
    "text": "Text must stay deep",
    "sound": "Tokens may differ while the sound stays good",
}
COMMAND = "python -m spark.evaluation --model embedded --suite builtin --policies claims --out DIR"
_HEARD = "answers right as heard, word errors of the speech against its own text and predicted MOS"
_NAMES = {
    "right": ("right as heard", 100, " points", 1),
    "text": ("right in text", 100, " points", 1),
    "wer": ("WER", 100, " points", 1),
    "text_wer": ("WER of text read aloud", 100, " points", 1),
    "mos": ("predicted MOS", 1, "", 3),
}


def words(claim: Mapping[str, Any], told: Mapping[str, Any], limits: Any) -> dict[str, Any]:
    """A claim's title, test, findings and command.

    Args:
        claim: its name, verdict and pairs.
        told: of the run: layers, margin, command.
        limits: tolerances by name.
    """
    name, pairs = claim["claim"], claim["pairs"]
    speak = _sound if name == "sound" else _between
    found = [speak(pair) for pair in pairs]
    return {
        "title": CLAIMS[name],
        "test": _test(name, told, limits),
        "findings": found or [_missing(name)],
        "command": f"{told['command']} --out DIR && python -m spark.evaluation.claims DIR",
    }


def table(found: Mapping[str, Any]) -> str:
    """The claims as a Markdown table, then the commands."""
    rows = [
        (one["title"], one["test"], "<br>".join(one["findings"]), f"**{one['verdict']}**")
        for one in found["claims"]
    ]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    header = ("the paper claims", "our test", "found", "verdict")
    return f"{report.table(cells, header)}\n\n`{found['claims'][0]['command']}`"


def _test(name: str, told: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    layers = limits["depth"] * told["layers"]
    margin = 100 * told["margin"]
    return {
        "traffic": "each SPAR-K policy against the confidence exit that reads most nearly as many "
        f"weights (equal: within {100 * limits['traffic']:.0f} points of full depth's), in "
        f"{_HEARD}",
        "refresh": "each SPAR-K policy against the fixed exits without refresh next to its mean "
        f"speech depth, on either side where none has it (equal: within {layers:.2f} layers), in "
        f"{_HEARD}",
        "text": "a policy whose text exits too against the same one on speech only, in answers "
        "right in text and word errors of text read aloud; the model's own head decides exits of "
        "text, since fitted exit heads know speech only",
        "sound": "each SPAR-K policy against full depth: share of speech tokens that are the same "
        f"at the same place, beside margins of {margin:g} points of right answers and of word "
        f"errors and {limits['mos']:g} of predicted MOS",
    }[name]


def _missing(name: str) -> str:
    needs = {
        "traffic": "SPAR-K and a confidence exit",
        "refresh": "SPAR-K and a fixed exit near its mean speech depth",
        "text": "a policy whose text exits too and the same one without",
        "sound": "SPAR-K and full depth",
    }
    return f"Not measured: the evaluation lacks {needs[name]} (--policies claims has them)."


def _between(pair: Mapping[str, Any]) -> str:
    """A pair's cost, its differences, and what they show."""
    at = pair["at"]
    match at["field"]:
        case "traffic_ratio":
            cost = (f"weights read {_percent(at['policy'])} against {_percent(at['against'])} of "
                    "full depth's")  # fmt: skip
        case "mean_depth_speech":
            cost = f"speech depth {_depth(at['policy'])} against {_depth(at['against'])}"
        case _:
            cost = f"text depth {_depth(at['policy'])} against {_depth(at['against'])}"
    head = f"{pair['policy']} minus {pair['against']} ({cost}"
    if not pair["equal"]:
        what = "traffic" if at["field"] == "traffic_ratio" else "depth"
        head += f": not tested at equal {what}"
    return f"{head}): {_differences(pair['measures'])}."


def _sound(pair: Mapping[str, Any]) -> str:
    """How many tokens are the same, and what the ear makes of the others."""
    same = pair["same_speech"]
    if same is None:
        return f"{pair['policy']}: which speech tokens are full depth's was not measured."
    low, high = (100 * end for end in same["ci95"])
    told = (
        f"{pair['policy']}: {_percent(same['value'])} of speech tokens are full depth's (95 % "
        f"{low:.1f} to {high:.1f}), all of them in {_percent(pair['identical']['value'])} of "
        "replies"
    )
    if pair["first_divergence_s"] is not None:
        told += f", the others part after {pair['first_divergence_s']:.2f} s in the mean"
    told += f"; minus full depth: {_differences(pair['measures'])}"
    apart = _differences(pair["apart"])
    return f"{told}. Only replies that differ: {apart}."


def _differences(measures: Mapping[str, Any]) -> str:
    return "; ".join(_difference(name, gap) for name, gap in measures.items())


def _difference(name: str, gap: Mapping[str, Any] | None) -> str:
    title, scale, unit, digits = _NAMES[name]
    if gap is None:
        return f"{title} not measured"
    low, high = (scale * end for end in gap["ci95"])
    shows = f", {gap['shows']}" if "shows" in gap else ""
    return (
        f"{title} {scale * gap['value']:+.{digits}f}{unit} (95 % {low:+.{digits}f} to "
        f"{high:+.{digits}f}, n = {gap['n']}{shows})"
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _depth(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
