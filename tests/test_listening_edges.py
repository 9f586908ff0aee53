"""The analysis at its edges: next to nothing, too much of one kind, very much."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from listening_test import analyse as command
from listening_test.analysis import Plan, analyse
from listening_test.tables import notes, verdicts
from tests.test_listening_analysis import compared, votes
from tests.test_listening_statistics import crossed, write


def absolute(raters: int, items: int, systems: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    return crossed(np.random.default_rng(1), raters, items, systems)


def with_holes(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[np.random.default_rng(2).random(len(frame)) < 0.4]


def with_a_guest(frame: pd.DataFrame) -> pd.DataFrame:
    """Somebody who rated one clip and left."""
    return pd.concat([frame, frame.iloc[:1].assign(rater_id="guest", session_id="guest")])


def between(frame: pd.DataFrame) -> pd.DataFrame:
    """Each system has raters of its own, so that no rater has a difference."""
    return frame.assign(rater_id=frame["rater_id"] + frame["system"])


def choices(choice: str, names: tuple[str, ...] = ("x", "y", "z")) -> pd.DataFrame:
    strengths = dict.fromkeys(names, 0.0)
    return votes(np.random.default_rng(3), strengths, 6).assign(choice=choice)


EDGES: dict[str, pd.DataFrame] = {
    "one rater": absolute(1, 6),
    "one text": absolute(6, 1),
    "one system": absolute(6, 6, ("a",)),
    "one of each": absolute(1, 1),
    "all scores equal": absolute(6, 6).assign(score=4.0),
    "one rater differs": absolute(6, 6).assign(score=lambda f: 4.0 + (f["rater_id"] == "r1")),
    "cells missing": with_holes(absolute(9, 7)),
    "a guest": with_a_guest(absolute(6, 6)),
    "raters between systems": between(absolute(6, 6)),
    "votes all ties": choices("tie"),
    "votes all for the first": choices("a"),
    "votes of one rater": votes(np.random.default_rng(4), {"x": 0.0, "y": 1.0, "z": 2.0}, 1),
    "comparisons of one rater": compared(np.random.default_rng(5), 0.3, 0.1, raters=1),
    "comparisons all nought": compared(np.random.default_rng(5), 0.3, 0.1).assign(score=0.0),
    "comparisons in one order": compared(np.random.default_rng(5), 0.3, 0.1, a_first=1.0),
}  # fmt: skip


def pairs_of(value: Any) -> list[tuple[dict[str, Any], str]]:
    """Every object of an analysis that holds a p-value, and the name of that value."""
    found = []
    if isinstance(value, dict):
        found += [(value, key) for key, p in value.items() if key[:2] == "p_" and p is not None]
        value = list(value.values())
    if isinstance(value, list):
        found += [pair for part in value for pair in pairs_of(part)]
    return found


@pytest.mark.parametrize("edge", EDGES)
def test_next_to_nothing_gives_an_answer_without_a_warning_and_no_p_without_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edge: str
) -> None:
    write(tmp_path, EDGES[edge])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arguments in ([str(tmp_path), "--json"], [str(tmp_path), "--margin", "0.2"]):
            assert command.main(arguments) == 0
            told = capsys.readouterr().out
            assert "nan" not in re.split(r"\W", told.lower())
            if "--json" in arguments:
                result = json.loads(told)
    for part, name in pairs_of(result):
        interval = part.get("ci95") or part.get("share_ci95") or part.get("share_ci95_naive")
        assert interval, f"{name} of {part}"
    strengths = (result.get("bradley_terry") or {}).values()
    for part in [*result["systems"].values(), *strengths]:
        middle = part.get("mos", part.get("strength"))
        assert part["ci95"] is None or part["ci95"][0] < middle < part["ci95"][1]


def test_one_rater_and_ties_alone_prove_nothing() -> None:
    (pair,) = analyse(EDGES["one rater"], Plan(0.2))["pairs"]
    assert pair["ci95"] is pair["p_holm"] is pair["non_inferior"] is pair["equivalent"] is None
    result = analyse(EDGES["votes all ties"])
    assert result["bradley_terry"] is None
    assert {p["share_a"] for p in result["preferences"]} == {None}
    assert {p["ties"] for p in result["preferences"]} == {12}
    (pair,) = analyse(EDGES["raters between systems"])["pairs"]
    assert pair["p_wilcoxon"] is None  # nobody heard both
    assert pair["ci95"][0] < pair["difference"] < pair["ci95"][1]


def test_a_guest_moves_little() -> None:
    one, more = (analyse(EDGES[name])["systems"]["b"] for name in ("a guest", "one text"))
    assert one["ci95"] == analyse(absolute(6, 6))["systems"]["b"]["ci95"]  # the guest heard a
    assert more["items"] == 1
    guest = analyse(EDGES["a guest"])["systems"]["a"]
    alone = analyse(absolute(6, 6))["systems"]["a"]
    assert guest["ci95"] == pytest.approx(alone["ci95"], abs=0.15)


MARGIN = {"margin": 0.2, "equivalent": False, "non_inferior": False}


def pair(low: float, high: float, p_holm: float | None, **more: Any) -> dict[str, Any]:
    middle = (low + high) / 2
    known = {"a": "new", "b": "old", "difference": middle, "ci95": [low, high], "p_holm": p_holm}
    return {**known, "margin": None, **more}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (pair(0.1, 0.3, 0.01), "new is rated above old."),
        (pair(-0.3, -0.1, 0.01), "old is rated above new."),
        (pair(0.1, 0.3, 0.2), "corrected over all pairs does not reach 5 %."),
        (pair(-0.1, 0.3, 0.01), "shown for these texts, but none for others"),
        (pair(-0.1, 0.3, 0.5), "which is no proof that there is none."),
        (pair(0.1, 0.3, None), "new is rated above old."),
        (pair(-0.5, -0.3, 0.01, **MARGIN), "old is rated above new; new is worse by more than"),
        (pair(-0.5, -0.3, 0.2, **MARGIN), "5 %; that new is not worse by 0.2 or more is not shown"),
    ],
)
def test_a_difference_is_shown_by_interval_and_corrected_test_together(
    given: dict[str, Any], says: str
) -> None:
    (text,) = verdicts({"pairs": [given]})
    assert says in text
    assert ("Wilcoxon" in text) is (given["p_holm"] is not None)
    low, high = given["ci95"]
    assert f"95 % interval {low:+.2f} to {high:+.2f}" in text


def big(kind: str) -> pd.DataFrame:
    if kind == "votes":
        return votes(np.random.default_rng(6), {n: i / 5 for i, n in enumerate("abcdefgh")}, 1786)
    frame = absolute(1000, 25, tuple("abcd"))
    return frame.assign(trial_index=frame.groupby("rater_id").cumcount())


@pytest.mark.parametrize("kind", ["scores", "votes"])
def test_a_hundred_thousand_rows_are_analysed(kind: str) -> None:
    frame = big(kind)
    result = analyse(frame, Plan(0.2))
    assert result["n"] == len(frame) >= 100_000
    if kind == "scores":
        for name, system in result["systems"].items():
            assert system["mos"] == pytest.approx(frame[frame["system"] == name]["score"].mean())
        assert "more than 2,000" in result["mixed_model_note"]
        assert result["agreement"]["order_effect"]["ci95"][0] < 0.05
    else:
        assert [p["wins_a"] + p["wins_b"] + p["ties"] for p in result["preferences"]] == [3572] * 28
        strengths = [s["strength"] for s in result["bradley_terry"].values()]
        assert strengths == sorted(strengths)


def test_preferences_and_the_order_of_comparisons_are_told() -> None:
    rng = np.random.default_rng(5)
    (text,) = verdicts(analyse(votes(rng, {"x": 0.0, "y": 2.0}, 40)))
    assert re.match(
        r"x was preferred to y in \d+ of \d+ untied votes \(\d+ ties\): share 0.\d\d", text
    )
    assert "95 % interval" in text
    assert text.endswith("p < 0.0001); y is preferred.")
    (text,) = verdicts(analyse(votes(rng, {"x": 0.0, "y": 0.0}, 40)))
    assert text.endswith("no preference is shown.")
    assert verdicts(analyse(EDGES["votes all ties"])) == []
    told = " ".join(notes(analyse(compared(rng, 0.5, 0.4))))
    assert re.search(
        r"Of new and old the clip heard second was rated \+0.\d\d against the first", told
    )


def test_agreement_of_choices_and_comparisons() -> None:
    """1 where all choose the same whatever the order, 0 or less where they choose by lot."""
    rng = np.random.default_rng(7)
    frame = votes(rng, {"x": 0.0, "y": 0.0, "z": 0.0}, 30)
    frame["item_id"] = frame["item_id"].str.replace("i[0-3]", "i0", regex=True)
    by_lot = analyse(frame)["agreement"]
    assert by_lot["level"] == "nominal"
    assert abs(by_lot["krippendorff_alpha"]) < 0.1
    # Of one text the first by name is the better, of the others the second.
    named = (frame["system"] < frame["system_b"]) == (frame["item_id"] == "i0")
    sure = frame.assign(choice=np.where(named, "a", "b"))
    assert analyse(sure)["agreement"]["krippendorff_alpha"] == pytest.approx(1)
    # By text the better one changes, the order is by lot: alpha asks for the sign turned back.
    heard = compared(rng, 0.0, 0.0)
    better = 1.0 + (heard["item_id"] > "i3")
    heard["score"] = better.where(heard["system"] == "old", -better)
    assert analyse(heard)["agreement"]["krippendorff_alpha"] == pytest.approx(1)
