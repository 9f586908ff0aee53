"""Depth policies by name, as command lines write them: `full,spark,confidence,fixed:7,spark:9:4`.

A word is a kind and, after colons, what is not to be the default: `spark:LAYER:SCHEDULE`,
`confidence:THRESHOLD:MEASURE`, `fixed:LAYER`. It is also the policy's name in tables. Knows
settings and a model's exits; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spark.comparison import CompareSettings
from spark.models.base import SpokenLM
from spark.named import spark_policy
from spark.schedule import MEASURES, ConfidenceExit, FixedExit, FullDepth, Policy

FORMS = "full, spark[:LAYER[:SCHEDULE]], confidence[:THRESHOLD[:MEASURE]], fixed[:LAYER]"
DEFAULT = ("full", "spark", "confidence", "fixed")


def words(text: str) -> tuple[str, ...]:
    """The policies of a comma-separated list, full depth first.

    Full depth is what the others are measured against, so it is always there.

    Raises:
        ValueError: an unknown kind, or a policy named twice.
    """
    named = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in named:
        if word.split(":")[0] not in _KINDS:
            raise ValueError(f"there is no policy {word!r}: use {FORMS}, with commas between")
    twice = sorted({word for word in named if named.count(word) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is named twice: name each policy once")
    return ("full", *(word for word in named if word != "full"))


def named(
    word: str, lm: SpokenLM, settings: CompareSettings, fixed_exit: int | None = None
) -> Policy:
    """The policy a word stands for.

    Args:
        word: one of `words`.
        lm: the model, whose exits are checked.
        settings: what holds where the word does not say.
        fixed_exit: layer of a plain `fixed`; None is half the model.

    Raises:
        ValueError: a value that means nothing, or not with this model.
    """
    kind, *values = word.split(":")
    if kind not in _KINDS:
        raise ValueError(f"there is no policy {word!r}: use {FORMS}")
    make, most = _KINDS[kind]
    if len(values) > most:
        raise ValueError(f"{word!r} has too many parts: the forms are {FORMS}")
    if kind == "fixed" and not values:
        half = lm.transformer.num_layers // 2
        values = [str(half if fixed_exit is None else fixed_exit)]
    try:
        policy = make(lm, settings, values)
    except ValueError as error:
        raise ValueError(f"policy {word!r}: {error}") from error
    return replace(policy, name=word)


def _full(lm: SpokenLM, settings: CompareSettings, values: Sequence[str]) -> FullDepth:
    return FullDepth()


def _spark(lm: SpokenLM, settings: CompareSettings, values: Sequence[str]) -> Policy:
    layer, schedule = settings.resolved(lm).exit_layer, settings.schedule
    if values:
        layer = _offered(lm, values[0])
    if len(values) == 2:
        schedule = f"k{values[1]}" if values[1].isdigit() else values[1]
    assert layer is not None
    return spark_policy(schedule, layer, lm.layout, settings.drift_target)


def _confidence(lm: SpokenLM, settings: CompareSettings, values: Sequence[str]) -> ConfidenceExit:
    threshold, measure = settings.threshold, settings.measure
    if values:
        threshold = _number(float, values[0], "threshold")
    if len(values) == 2:
        found = [name for name in MEASURES if name == values[1]]
        if not found:
            raise ValueError(f"unknown measure {values[1]!r}: use one of {', '.join(MEASURES)}")
        measure = found[0]
    return ConfidenceExit(measure, threshold, settings.resolved(lm).candidates, settings.decay)


def _fixed(lm: SpokenLM, settings: CompareSettings, values: Sequence[str]) -> FixedExit:
    layer, layers = _number(int, values[0], "layer"), lm.transformer.num_layers
    if not 0 < layer < layers:
        raise ValueError(f"exit layer {layer} is not between 1 and {layers - 1}")
    return FixedExit(layer)


def _offered(lm: SpokenLM, value: str) -> int:
    layer = _number(int, value, "layer")
    if layer not in lm.candidate_exits:
        offered = ", ".join(map(str, lm.candidate_exits))
        raise ValueError(f"there is no exit at layer {layer}: choose one of {offered}")
    return layer


def _number(kind: Callable[[str], Any], value: str, what: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no {what}") from error


_KINDS: dict[str, tuple[Callable[[SpokenLM, CompareSettings, Sequence[str]], Any], int]] = {
    "full": (_full, 0),
    "spark": (_spark, 2),
    "confidence": (_confidence, 2),
    "fixed": (_fixed, 1),
}
