"""Policies by name: what each word stands for, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark import policies
from spark.comparison import CompareSettings
from spark.schedule import ConfidenceExit, FixedExit, FullDepth, Spark
from tests.tiny import tiny_lm

LM = tiny_lm(layers=6, exits=(2, 4, 5))
SETTINGS = CompareSettings(schedule="even", threshold=0.7, measure="margin")


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
