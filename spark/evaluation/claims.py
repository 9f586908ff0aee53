"""The paper's claims, tested on an evaluation: `python -m spark.evaluation.claims DIR`.

Reads the lines that `python -m spark.evaluation --policies claims --out DIR` wrote, prints a table
and writes DIR/claims.json, from which the Evidence page and the README are made. Policies are told
apart by their words and matched by what was measured of them, so that any model will do. Knows
lines, no model; sentences are `claims_text`'s.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark import jsonl
from spark.evaluation import claims_text, summary
from spark.evaluation.figures import FEWEST, LEAST_RIGHT, answers_of, points
from spark.evaluation.statistics import (
    Line,
    holm,
    mean,
    mean_of_sets,
    paired_mean,
    paired_sets,
    paired_share,
    paired_wer,
    share,
)

CLAIMS = "claims.json"
SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
CONTRADICTED, NOT_DECIDED = "contradicted", "not decided"
TRAFFIC_TOLERANCE = 0.02  # of full depth's weights, within which traffic counts as equal
DEPTH_TOLERANCE = 0.04  # of the model's layers: half a layer of 14, one of 28
MOS_MARGIN = 0.1  # of "stays good"; for accuracy and WER it is the evaluation's own margin
_SIGNIFICANT = 0.05  # of p-values corrected by Holm over all comparisons of a claim
_EXACT = 0.01  # of the layers: at this distance of a fixed exit no second one is asked for
_UPWARD = {"right": 1, "text": 1, "mos": 1, "wer": -1, "text_wer": -1}  # which way is better

Groups = Mapping[str, Sequence[Line]]
Pair = dict[str, Any]


def tested(told: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """The four claims with figures and verdicts.

    Args:
        told: of the run (`summary.read`): model, layers, margin, command, policies.
        lines: of all policies; refused prompts have no part.
    """
    groups = {
        name: [line for line in lines if line["policy"] == name and "refused" not in line]
        for name in told["policies"]
    }
    groups = {name: own for name, own in groups.items() if own}
    found = {
        "traffic": _decided(_at_equal_traffic(groups), good=True),
        "refresh": _decided(_at_equal_depth(groups, told["layers"]), good=True),
        "text": _decided(_with_text(groups), good=False),
        "sound": _sounding(groups, told["margin"]),
    }
    kept = ("model", "title", "layers", "suite", "command", "margin", "recogniser", "torch")
    claims = [
        {"claim": name, "verdict": overall(pairs), "pairs": pairs} for name, pairs in found.items()
    ]
    rules = {"traffic": TRAFFIC_TOLERANCE, "depth": DEPTH_TOLERANCE, "mos": MOS_MARGIN}
    head = {name: told[name] for name in kept}
    return {
        **head,
        "items": len({line["item_id"] for line in lines}),
        "tolerances": rules,
        "claims": [{**one, **claims_text.words(one, head, rules)} for one in claims],
    }


def overall(pairs: Sequence[Pair]) -> str:
    """One verdict of a claim's pairs: theirs where those that were tested agree."""
    verdicts = {pair["verdict"] for pair in pairs if pair["equal"]}
    return verdicts.pop() if len(verdicts) == 1 else NOT_DECIDED


# The pairs of each claim


def _at_equal_traffic(groups: Groups) -> list[Pair]:
    """Each SPAR-K beside the confidence exit that read most nearly as much."""
    sure, found = _of_kind(groups, "confidence"), []
    for name in _schedules(groups):
        gaps = {other: _gap(groups, name, other, "traffic_ratio") for other in sure}
        known = {other: gap for other, gap in gaps.items() if gap is not None}
        if known:
            other = min(known, key=lambda one: abs(known[one]))
            found.append(_pair(groups, name, other, "traffic_ratio", TRAFFIC_TOLERANCE, heard))
    return found


def _at_equal_depth(groups: Groups, layers: int) -> list[Pair]:
    """Each SPAR-K beside the fixed exits next to its mean speech depth, one on either side."""
    fixed, found = _of_kind(groups, "fixed"), []
    for name in _schedules(groups):
        gaps = {other: _gap(groups, name, other, "mean_depth_speech") for other in fixed}
        known = {other: gap for other, gap in gaps.items() if gap is not None}
        near = sorted(known, key=lambda one: abs(known[one]))
        chosen = near[:1]
        if near and abs(known[near[0]]) > _EXACT * layers:
            side = known[near[0]] > 0
            chosen += [one for one in near if (known[one] > 0) != side][:1]
        within = DEPTH_TOLERANCE * layers
        pairs = [_pair(groups, name, one, "mean_depth_speech", within, heard) for one in chosen]
        found += [pair for pair in pairs if pair["equal"]] or pairs[:1]
    return found


def _with_text(groups: Groups) -> list[Pair]:
    """Each policy whose text exits beside the same one on speech only."""
    found = []
    for name in groups:
        alone, _, last = name.rpartition(":")
        if last == "text" and alone in groups:
            found.append(_pair(groups, name, alone, "mean_depth_text", None, read))
    return found


def _sounding(groups: Groups, margin: float) -> list[Pair]:
    """Each SPAR-K beside full depth: how many tokens are the same, and what is heard."""
    full, found = groups.get("full", ()), []
    for name in _schedules(groups) if full else ():
        pair = _pair(groups, name, "full", "mean_depth_speech", None, heard)
        lines = [line for line in groups[name] if line.get("same_speech") is not None]
        pair["same_speech"] = mean_of_sets({name: [line["same_speech"] for line in lines]})
        marked = [{**line, "same": line["same_speech"] == 1} for line in lines]
        pair["identical"] = share(marked, "same")
        pair["first_divergence_s"] = mean(lines, "first_divergence_s")
        apart = [line for line in lines if line["same_speech"] < 1]
        pair["apart"] = heard(apart, full)
        pair["verdict"] = good_sound(pair, share(answers_of(full), "correct_heard"), margin)
        found.append(pair)
    return found


def heard(lines: Sequence[Line], base: Sequence[Line]) -> dict[str, Any]:
    """Differences that can be heard, on the same items: right answers, word errors, MOS."""
    ours, theirs = answers_of(lines), answers_of(base)
    right = paired_share(ours, theirs, "correct_heard") or paired_sets(ours, theirs, points)
    return {
        "right": right,
        "wer": paired_wer(lines, base),
        "mos": paired_mean(lines, base, "mos_predicted"),
    }


def read(lines: Sequence[Line], base: Sequence[Line]) -> dict[str, Any]:
    """Differences in the text: right answers, and word errors where a sentence is read aloud."""
    copied, theirs = (
        [{**line, "edits": line["text_edits"], "words": line["text_words"]}
         for line in group if line["family"] == "read_aloud"]
        for group in (lines, base)
    )  # fmt: skip
    return {
        "text": paired_share(answers_of(lines), answers_of(base), "correct_text"),
        "text_wer": paired_wer(copied, theirs),
    }


def _pair(
    groups: Groups, name: str, other: str, field: str, tolerance: float | None,
    measure: Callable[[Sequence[Line], Sequence[Line]], dict[str, Any]],
) -> Pair:  # fmt: skip
    """Two policies, what makes them comparable, and their differences."""
    ours, theirs = mean(groups[name], field), mean(groups[other], field)
    gap = _gap(groups, name, other, field)
    equal = tolerance is None or (gap is not None and abs(gap) <= tolerance)
    return {
        "policy": name, "against": other, "equal": equal,
        "at": {"field": field, "policy": ours, "against": theirs, "tolerance": tolerance},
        "measures": measure(groups[name], groups[other]),
    }  # fmt: skip


# Verdicts


def _decided(pairs: list[Pair], good: bool) -> list[Pair]:
    """The pairs with corrected p-values, what each difference shows, and a verdict.

    Args:
        pairs: of one claim.
        good: whether the claim is that the first policy is better; else that it is worse.
    """
    gaps = [(name, gap) for pair in pairs for name, gap in pair["measures"].items() if gap]
    for (name, gap), p in zip(gaps, holm([gap["p"] for _, gap in gaps]), strict=True):
        gap["p_holm"] = p
        way = _UPWARD[name] * gap["value"]
        gap["shows"] = "no difference" if p >= _SIGNIFICANT else "better" if way > 0 else "worse"
    for pair in pairs:
        pair["verdict"] = verdict(pair, "better" if good else "worse")
    return pairs


def verdict(pair: Pair, claimed: str) -> str:
    """What a pair says of a claim that its first policy is `claimed`, better or worse.

    Supported: so in one measure at least, and in none the other way round; contradicted: the
    reverse; not supported: no difference in any. Not decided: not at equal cost, both ways at
    once, or no difference in fewer answers than could show one.
    """
    gaps = [gap for gap in pair["measures"].values() if gap]
    shown = {gap["shows"] for gap in gaps} - {"no difference"}
    first = next(iter(pair["measures"].values()))
    if not pair["equal"] or first is None or first["n"] < FEWEST or len(shown) == 2:
        return NOT_DECIDED
    if not shown:
        return NOT_SUPPORTED
    return SUPPORTED if shown == {claimed} else CONTRADICTED


def good_sound(pair: Pair, full: Mapping[str, Any] | None, margin: float) -> str:
    """Whether tokens differ from full depth's while the sound keeps its margins.

    Supported: some tokens differ for certain and all three measures keep their margin;
    contradicted: a whole interval lies beyond one; not supported: some measure is not shown to
    keep it. Not decided: too few answers, hardly any right at full depth, no token differs, or no
    figure.

    Args:
        pair: with measures and `same_speech`.
        full: share of full depth's answers that are right as heard; None where only judges say.
        margin: of accuracy and WER, as a share.
    """
    same, gaps = pair["same_speech"], pair["measures"]
    if same is None or None in gaps.values() or same["ci95"][1] >= 1:
        return NOT_DECIDED
    if gaps["right"]["n"] < FEWEST or (full is not None and full["value"] < LEAST_RIGHT):
        return NOT_DECIDED
    ends = []
    for name, gap in gaps.items():
        limit = MOS_MARGIN if name == "mos" else margin
        low, high = sorted(_UPWARD[name] * end for end in gap["ci95"])
        ends.append((low > -limit, high < -limit))
    if any(beyond for _, beyond in ends):
        return CONTRADICTED
    return SUPPORTED if all(kept for kept, _ in ends) else NOT_SUPPORTED


# Policies by their words


def _schedules(groups: Groups) -> list[str]:
    return [*_of_kind(groups, "spark"), *_of_kind(groups, "schedule")]


def _of_kind(groups: Groups, kind: str) -> list[str]:
    """Policies of a kind whose text runs in full."""
    return [name for name in groups if name.split(":")[0] == kind and not name.endswith(":text")]


def _gap(groups: Groups, name: str, other: str, field: str) -> float | None:
    """Mean difference of a field over the items that both answered."""
    found = paired_mean(groups[name], groups[other], field)
    return None if found is None else float(found["value"])


def write(folder: Path) -> dict[str, Any]:
    """Tests the claims on a folder, writes its claims.json and returns it.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    told, lines, _ = summary.read(folder)
    found = tested(told, lines)
    jsonl.replace(folder / CLAIMS, json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 after a message about a refusal."""
    parser = argparse.ArgumentParser(
        "python -m spark.evaluation.claims", description="Test the paper's claims."
    )
    parser.add_argument("folder", type=Path, help="of an evaluation with --policies claims")
    given = parser.parse_args(arguments)
    try:
        found = write(given.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(claims_text.table(found))
    print(f"\n{given.folder / CLAIMS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
