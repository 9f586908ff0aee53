"""Policies by name: what each word stands for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark import policies
from spark.comparison import CompareSettings
from spark.modality import Slot
from spark.positions import PositionSchedule
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, Place, Spark
from spark.schedule_file import ScheduleFile
from tests.tiny import tiny_lm

LM = tiny_lm(layers=6, exits=(2, 4, 5))
SETTINGS = CompareSettings(schedule="even", threshold=0.7, measure="margin")


def unasked() -> float:
    raise AssertionError("a threshold is matched for `claims` only")


@pytest.mark.parametrize(
    ("word", "policy"),
    [
        ("full", FullDepth()),
        ("spark", Spark(5, variant="even")),
        ("spark:2", Spark(2, variant="even", name="spark:2")),
        ("spark:4:triple", Spark(4, variant="triple", name="spark:4:triple")),
        ("spark:4:4", Spark(4, k=4, name="spark:4:4")),
        ("spark:4:k12", Spark(4, k=12, name="spark:4:k12")),
        ("confidence", ConfidenceExit("margin", 0.7, (2, 4, 5))),
        ("confidence:0.9", ConfidenceExit("margin", 0.9, (2, 4, 5), name="confidence:0.9")),
        (
            "confidence:0.9:entropy",
            ConfidenceExit("entropy", 0.9, (2, 4, 5), name="confidence:0.9:entropy"),
        ),
        ("fixed", FixedExit(3)),
        ("fixed:1", FixedExit(1, name="fixed:1")),
        ("fixed:1:text", FixedExit(1, name="fixed:1:text", text=True)),
        ("fixed:text", FixedExit(3, name="fixed:text", text=True)),
        ("spark:text", Spark(5, variant="even", name="spark:text", text=True)),
        ("spark:4:4:text", Spark(4, k=4, name="spark:4:4:text", text=True)),
        (
            "confidence:text",
            ConfidenceExit(
                "margin", 0.7, (2, 4, 5), None, ("speech", "text"), 8, "confidence:text"
            ),
        ),
        (
            "schedule:f-5-4/f-2",
            PositionSchedule((None, 5, 4), (None, 2), name="schedule:f-5-4/f-2"),
        ),
    ],
)
def test_a_word_and_its_policy(word: str, policy: object) -> None:
    assert policies.named(word, LM, SETTINGS) == policy


def test_a_plain_fixed_exit_is_where_the_caller_says() -> None:
    assert policies.named("fixed", LM, SETTINGS, 4) == FixedExit(4)
    assert policies.named("fixed:2", LM, SETTINGS, 4).exit_layers() == (2,)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("spork", "there is no policy 'spork'"),
        ("full:3", "too many parts"),
        ("spark:3", "no exit at layer 3: choose one of 2, 4, 5"),
        ("spark:x", "'x' is no layer"),
        ("spark:4:1", "K must be at least 2"),
        ("spark:4:odd:2", "too many parts"),
        ("spark:4:sometimes", "unknown schedule"),
        ("confidence:2", "between 0 and 1"),
        ("confidence:high", "'high' is no threshold"),
        ("confidence:0.5:luck", "unknown measure 'luck'"),
        ("fixed:6", "not between 1 and 5"),
        ("fixed:0", "not between 1 and 5"),
        ("full:text", "too many parts"),
        ("spark:4:f-4-4:text", "a schedule by position says by itself where text exits"),
        ("schedule", "give every position's exit layer"),
        ("schedule:sometimes", "give every position's exit layer"),
        ("schedule:f-3-f", "no exit at layer 3"),
    ],
)
def test_what_means_nothing_is_refused(word: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        policies.named(word, LM, SETTINGS)


def test_a_list_has_full_depth_first_and_nothing_twice() -> None:
    assert policies.words(" spark:2, full ,fixed:1") == ("full", "spark:2", "fixed:1")
    assert policies.words("spark") == ("full", "spark")
    assert policies.words(",".join(policies.DEFAULT)) == policies.DEFAULT
    with pytest.raises(ValueError, match="spark is named twice"):
        policies.words("spark,full,spark")
    with pytest.raises(ValueError, match="there is no policy 'exact'"):
        policies.words("full,exact")


@given(st.lists(st.sampled_from(("spark", "fixed", "fixed:2", "confidence:0.5")), unique=True))
def test_order_and_names_are_kept(chosen: list[str]) -> None:
    named = [policies.named(word, LM, SETTINGS) for word in policies.words(",".join(chosen))]
    assert [policy.name for policy in named] == ["full", *chosen]


@pytest.mark.parametrize(
    ("schedule", "fixed"),
    [
        ("k4", ("fixed:5",)),  # of 4 speech tokens one at 6 and three at 5: 5.25, so 5 and 6
        ("f-4-4-f", ("fixed:5",)),  # 5 exactly
        ("f-4-4-4", ("fixed:4", "fixed:5")),  # 4.5
    ],
)
def test_the_claims_are_tested_at_the_speech_depth_of_spark(
    schedule: str, fixed: tuple[str, ...]
) -> None:
    settings = CompareSettings(schedule=schedule)
    def matched() -> float:
        return 0.875

    found = policies.expanded(policies.words("claims"), LM, settings, None, matched)
    assert found == ("full", "spark", "confidence", "confidence:0.875", *fixed, "confidence:text")
    again = policies.expanded(
        policies.words("claims,spark,fixed"), LM, settings, None, lambda: 0.875
    )
    assert again == (*found, "fixed")


def test_a_schedule_of_a_file_becomes_its_positions(tmp_path: Path) -> None:
    path = tmp_path / "a:b.json"
    ScheduleFile.of(LM, PositionSchedule((None, 5, 4, 4))).write(path)
    words = policies.words(f"schedule:{path},full")
    assert policies.expanded(words, LM, SETTINGS, None, unasked) == ("full", "schedule:f-5-4-4")
    with pytest.raises(ValueError, match="cannot be read"):
        policies.expanded(("schedule:nowhere.json",), LM, SETTINGS, None, unasked)
    other = tiny_lm(layers=6, exits=(2, 4, 5))
    other.name = "another"
    with pytest.raises(ValueError, match="made for the model"):
        policies.expanded(words, other, SETTINGS, None, unasked)
    with pytest.raises(ValueError, match="no exit at layer 3"):
        policies.expanded(("spark:3",), LM, SETTINGS, None, unasked)


def test_text_exits_only_where_it_is_asked_for() -> None:
    text = Place(Slot.TEXT, 0)
    for word, layers in (("spark:4", (4,)), ("fixed:4", (4,)), ("confidence", (2, 4, 5))):
        assert policies.named(word, LM, SETTINGS).exits(text) == ()
        assert policies.named(f"{word}:text", LM, SETTINGS).exits(text) == layers
    waiting = Place(Slot.TEXT, 0, pending=8)
    assert policies.named("spark:4:text", LM, SETTINGS).exits(waiting) == ()
    speech = Place(Slot.SPEECH, 0, 4)
    assert policies.named("spark:4:triple:text", LM, SETTINGS).exits(speech) == ()
