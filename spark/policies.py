"""Depth policies by name, as command lines write them: `full,spark,confidence,fixed:7,spark:9:4`.

A word is a kind and, after colons, what is not to be the default: `spark:LAYER:SCHEDULE`,
`confidence:THRESHOLD:MEASURE`, `fixed:LAYER`, `schedule:f-11-11-9`; `:text` at the end lets text
exit too. It is also the policy's name in tables. Two words stand for others until a model is
known: `schedule:FILE` for the file's positions, `claims` for the policies that test the paper's
claims. Knows settings and a model's exits; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, floor
from pathlib import Path
from typing import Any

from spark import positions, schedule_file
from spark.comparison import CompareSettings
from spark.modality import Slot
from spark.models.base import SpokenLM
from spark.named import spark_policy
from spark.positions import PositionSchedule
from spark.schedule import MEASURES, ConfidenceExit, FixedExit, FullDepth, Place, Policy, Spark

FORMS = (
    "full, spark[:LAYER[:SCHEDULE]][:text], confidence[:THRESHOLD[:MEASURE]][:text], "
    "fixed[:LAYER][:text], schedule:FILE (of spark.calibrate) or schedule:f-11-11-9, "
    "claims (those that test the paper's claims)"
)
DEFAULT = ("full", "spark", "confidence", "fixed")
CLAIMS, TEXT = "claims", "text"
_NEAR = 0.1  # layers: a fixed exit this near to SPAR-K's mean depth needs no second one


def words(text: str) -> tuple[str, ...]:
    """The policies of a comma-separated list, full depth first.

    Full depth is what the others are measured against, so it is always there.

    Raises:
        ValueError: an unknown kind, or a policy named twice.
    """
    named = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in named:
        if word != CLAIMS and word.split(":")[0] not in _KINDS:
            raise ValueError(f"there is no policy {word!r}: use {FORMS}, with commas between")
    twice = sorted({word for word in named if named.count(word) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is named twice: name each policy once")
    return ("full", *(word for word in named if word != "full"))


def expanded(
    listed: Sequence[str],
    lm: SpokenLM,
    settings: CompareSettings,
    fixed_exit: int | None,
    matched: Callable[[], float],
) -> tuple[str, ...]:
    """The same words with those replaced that stand for others: schedules' files and `claims`.

    Args:
        listed: of `words`.
        lm: the model.
        settings: what holds where a word does not say.
        fixed_exit: layer of a plain `fixed`; None is half the model.
        matched: threshold at which confidence exit reads as much as SPAR-K; asked for `claims`.

    Raises:
        ValueError: a schedule's file that cannot be used with this model, or a word that `named`
            refuses.
    """
    found: list[str] = []
    for word in listed:
        kind, _, value = word.partition(":")
        if word == CLAIMS:
            found += claims(lm, settings, matched())
        elif kind == "schedule" and value and positions.parse(value) is None:
            found.append(f"schedule:{schedule_file.read(Path(value)).schedule(lm).notation}")
        else:
            found.append(word)
    for word in found:
        named(word, lm, settings, fixed_exit)
    return tuple(dict.fromkeys(found))


def claims(lm: SpokenLM, settings: CompareSettings, matched: float) -> tuple[str, ...]:
    """The policies that test the paper's claims on a model, seven at most.

    SPAR-K; confidence exit as it is set, alone and with text exits, and at the threshold `matched`
    at which it reads as much as SPAR-K; fixed exits of SPAR-K's mean speech depth, or one on either
    side of it where that is no whole layer.
    """
    depth = chunk_depth(named("spark", lm, settings), lm)
    near = round(depth)
    layers = (near,) if abs(depth - near) <= _NEAR else (floor(depth), ceil(depth))
    deepest = lm.transformer.num_layers - 1
    fixed = dict.fromkeys(f"fixed:{min(layer, deepest)}" for layer in layers)
    return ("full", "spark", "confidence", f"confidence:{matched:g}", *fixed, f"confidence:{TEXT}")


def chunk_depth(policy: Policy, lm: SpokenLM) -> float:
    """Mean depth of the speech tokens of a whole chunk under a policy that decides by place."""
    depths: list[int] = []
    pending, length = 0, lm.layout.n_speech
    for position in range(length):
        exits = policy.exits(Place(Slot.SPEECH, position, length, pending=pending))
        pending = pending + 1 if exits else 0
        depths.append(exits[0] if exits else lm.transformer.num_layers)
    return sum(depths) / length


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
    make, most, may_text = _KINDS[kind]
    text = may_text and values[-1:] == [TEXT]
    if text:
        del values[-1]
    if len(values) > most:
        raise ValueError(f"{word!r} has too many parts: the forms are {FORMS}")
    if kind == "fixed" and not values:
        half = lm.transformer.num_layers // 2
        values = [str(half if fixed_exit is None else fixed_exit)]
    try:
        policy = make(lm, settings, values)
        if text:
            policy = _with_text(policy)
    except ValueError as error:
        raise ValueError(f"policy {word!r}: {error}") from error
    return replace(policy, name=word)


def _with_text(policy: Any) -> Any:
    """The same policy with text slots that may exit as speech does."""
    if isinstance(policy, (Spark, FixedExit)):
        return replace(policy, text=True)
    if isinstance(policy, ConfidenceExit):
        return replace(policy, modalities=("speech", "text"))
    raise ValueError(
        "text exits with triple, even, odd or a plain K; a schedule by position says by itself "
        "where text exits, as f-11-11-f/11"
    )


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


def _schedule(lm: SpokenLM, settings: CompareSettings, values: Sequence[str]) -> PositionSchedule:
    made = positions.parse(values[0]) if values else None
    if made is None:
        raise ValueError("give every position's exit layer, such as f-11-11-9")
    for layer in made.exit_layers():
        _offered(lm, str(layer))
    return made


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


# How each is made, how many values it takes, and whether text may exit too.
_KINDS: dict[str, tuple[Callable[[SpokenLM, CompareSettings, Sequence[str]], Any], int, bool]] = {
    "full": (_full, 0, False),
    "spark": (_spark, 2, True),
    "confidence": (_confidence, 2, True),
    "fixed": (_fixed, 1, True),
    "schedule": (_schedule, 1, False),
}
