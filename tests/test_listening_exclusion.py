"""Exclusion: each rule takes out whom it should, is counted, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from listening_test.analysis import Plan, analyse
from listening_test.exclusion import RULES, Ends, apply_rules
from listening_test.study_parts import Exclusion
from tests.test_listening_statistics import crossed

ENDS = Ends(reference="a", mid_anchor="mid")


def ratings() -> pd.DataFrame:
    """Eight raters, ten texts, two systems; a trap and a gold question each, all passed."""
    frame = crossed(np.random.default_rng(3), 8, 10, ("a", "b"))
    # A text's own quality, heard by all: raters agree.
    frame["score"] = (frame["score"] + frame["item_id"].str[1:].astype(int) - 4.5).round()
    checks = frame.drop_duplicates("rater_id").assign(system="", score=2.0, check_passed=1)
    return pd.concat(
        [frame, checks.assign(trial_type="trap"), checks.assign(trial_type="gold")],
        ignore_index=True,
    )


def of_r3(frame: pd.DataFrame, kind: str = "rating") -> pd.Series:
    return (frame["rater_id"] == "r3") & (frame["trial_type"] == kind)


def fail(kind: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda f: f.assign(check_passed=f["check_passed"].mask(of_r3(f, kind), 0))


def always_four(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(score=frame["score"].mask(of_r3(frame), 4))


def against_all(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(score=frame["score"].mask(of_r3(frame), 6 - frame["score"]))


def repeats(frame: pd.DataFrame) -> pd.DataFrame:
    again = frame[frame["trial_type"] == "rating"].drop_duplicates("rater_id")
    moved = again["score"] + np.where(again["rater_id"] == "r3", 2, 1)
    return pd.concat([frame, again.assign(trial_type="repeat", score=moved)], ignore_index=True)


def deaf_to_the_reference(frame: pd.DataFrame) -> pd.DataFrame:
    score = frame["score"].where(frame["system"] != "a", 100)
    low = of_r3(frame) & (frame["system"] == "a") & frame["item_id"].isin(["i0", "i1"])
    return frame.assign(score=score.mask(low, 80))


def fond_of_the_anchor(frame: pd.DataFrame) -> pd.DataFrame:
    """The mid anchor of two texts of ten is liked by r3, that of another by three of eight."""
    system = frame["system"].replace("b", "mid")
    score = frame["score"].where(system != "mid", 40)
    high = of_r3(frame) & frame["item_id"].isin(["i0", "i1"])
    high |= frame["rater_id"].isin(["r4", "r5", "r6"]) & (frame["item_id"] == "i2")
    return frame.assign(system=system, score=score.mask(high & (system == "mid"), 95))


@pytest.mark.parametrize(
    ("rule", "value", "milder", "change"),
    [
        ("trap_errors", 0, 1, fail("trap")),
        ("gold_errors", 0, 1, fail("gold")),
        ("same_answer_share", 0.95, None, always_four),
        ("repeat_difference", 1.5, 2.0, repeats),
        ("reference_below", (90, 0.15), (90, 0.2), deaf_to_the_reference),
        ("anchor_above", (90, 0.15), (90, 0.23), fond_of_the_anchor),
        ("correlation_below", 0.0, -1.0, against_all),
    ],
)
def test_each_rule_takes_out_whom_it_names_and_nobody_else(
    rule: str, value: Any, milder: Any, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    frame = change(ratings())
    marked = apply_rules(frame, Exclusion(**{rule: value}), ENDS)
    out = marked[marked["status"] == "exclude"]
    assert set(out["rater_id"]) == {"r3"}
    assert len(out) == (frame["rater_id"] == "r3").sum()
    assert set(out["status_reason"]) == {rule.replace("_", " ")}
    assert "status_reason" not in frame  # the given frame is as it was
    assert (frame["status"] == "use").all()
    kept = apply_rules(frame, Exclusion(**{rule: milder}), ENDS)
    assert (kept["status"] == "use").all()
    result = analyse(frame, Plan(exclusion=Exclusion(**{rule: value}), ends=ENDS))
    assert result["excluded"][rule.replace("_", " ")] == 20
    assert result["raters"] == 7


def test_comparisons_are_correlated_with_those_of_the_same_two_clips() -> None:
    """All raters agree; one heard each pair the other way round, so the same clip first in others.

    On every other text a is the best of three and not the worst.
    """
    pairs = {"r9": (("b", "a"), ("c", "a"), ("c", "b"))}
    rows = [
        {
            "rater_id": rater, "session_id": rater, "item_id": f"i{item}", "system": one,
            "system_b": two, "stimulus_id": f"{one}{item}", "stimulus_b_id": f"{two}{item}",
            "score": (ord(two) - ord(one)) * (-1) ** item, "method": "ccr",
            "trial_type": "rating", "status": "use",
        }
        for rater in ("r0", "r1", "r2", "r9")
        for item in range(8)
        for one, two in pairs.get(rater, (("a", "b"), ("a", "c"), ("b", "c")))
    ]  # fmt: skip
    rules = Exclusion(correlation_below=0.2)
    assert (apply_rules(pd.DataFrame(rows), rules)["status"] == "use").all()
    for row in rows:
        if row["rater_id"] == "r1":
            row["score"] = -row["score"]
    marked = apply_rules(pd.DataFrame(rows), rules)
    assert set(marked.loc[marked["status"] == "exclude", "rater_id"]) == {"r1"}


def test_no_rule_is_the_default_and_every_rule_is_applied() -> None:
    assert (apply_rules(always_four(ratings()), Exclusion())["status"] == "use").all()
    names = {name for name, _ in RULES} | {"incomplete_sessions"}
    assert names == set(Exclusion.model_fields)


def test_a_rule_that_takes_out_nobody_is_counted_too() -> None:
    rules = Exclusion(trap_errors=0, gold_errors=0, incomplete_sessions=True)
    result = analyse(fail("trap")(ratings()), Plan(exclusion=rules))
    assert result["excluded"] == {
        "incomplete session": 0, "trap errors": 20, "gold errors": 0,
        "trial_type: gold": 8, "trial_type: trap": 8,
    }  # fmt: skip


def test_an_anchor_that_many_like_excludes_nobody() -> None:
    """BS.1534-3: with more than a quarter of the raters, the text is to blame and not they."""
    frame = fond_of_the_anchor(ratings())
    strict = Exclusion(anchor_above=(90, 0.0))
    marked = apply_rules(frame, strict, ENDS)
    assert set(marked.loc[marked["status"] == "exclude", "rater_id"]) == {"r3"}  # not r4, r5, r6
    few = frame[~frame["rater_id"].isin(["r5", "r6"])]  # one of six likes the third anchor
    marked = apply_rules(few, strict, ENDS)
    assert set(marked.loc[marked["status"] == "exclude", "rater_id"]) == {"r3", "r4"}


def test_a_rater_falls_to_one_rule_and_a_session_cut_short_to_its_own() -> None:
    frame = fail("gold")(fail("trap")(ratings()))
    rules = Exclusion(trap_errors=0, gold_errors=0, incomplete_sessions=True)
    marked = apply_rules(frame, rules, incomplete=frozenset({"s1"}))
    reasons = marked[marked["status"] == "exclude"].groupby("rater_id")["status_reason"].unique()
    assert {rater: list(why) for rater, why in reasons.items()} == {
        "r1": ["incomplete session"], "r3": ["trap errors"],
    }  # fmt: skip


def test_files_of_other_tools_without_checks_pass_every_rule() -> None:
    frame = crossed(np.random.default_rng(3), 4, 5, ("a", "b"))
    rules = Exclusion(
        trap_errors=0, gold_errors=0, repeat_difference=1, reference_below=(90, 0.15),
        incomplete_sessions=True,
    )  # fmt: skip
    assert (apply_rules(frame, rules)["status"] == "use").all()


def test_a_rater_who_rated_once_is_not_one_who_always_says_the_same() -> None:
    frame = ratings()
    guest = frame.iloc[:1].assign(rater_id="guest", session_id="guest")
    rules = Exclusion(same_answer_share=0.95, correlation_below=0.0, repeat_difference=1)
    marked = apply_rules(pd.concat([frame, guest], ignore_index=True), rules)
    assert (marked["status"] == "use").all()


def test_choices_can_be_all_the_same_too() -> None:
    frame = crossed(np.random.default_rng(3), 4, 5, ("a", "b")).assign(score=np.nan, method="ab")
    frame["choice"] = np.where(np.arange(len(frame)) % 2, "a", "b")
    frame.loc[frame["rater_id"] == "r2", "choice"] = "tie"
    marked = apply_rules(frame, Exclusion(same_answer_share=0.9))
    assert set(marked.loc[marked["status"] == "exclude", "rater_id"]) == {"r2"}


def test_marking_twice_is_marking_once() -> None:
    """An exported file is marked; who analyses it with the same rules leaves out nobody else."""
    rng = np.random.default_rng(1)
    frame = ratings()
    frame["score"] = rng.integers(1, 6, len(frame)).astype(float)
    rules = Exclusion(correlation_below=0.0, same_answer_share=0.95)
    once = apply_rules(frame, rules)
    out = set(once.loc[once["status"] == "exclude", "rater_id"])
    assert out
    # Not for want of anybody: without those who are out, others would be judged otherwise.
    left = apply_rules(frame[~frame["rater_id"].isin(out)], rules)
    assert (left["status"] == "exclude").any()
    pd.testing.assert_frame_equal(apply_rules(once, rules), once)
