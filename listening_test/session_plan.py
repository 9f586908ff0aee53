"""The trials of one session: which clips stand in each, in which order, and what comes between.

The balance over raters is `design.py`'s, which counts texts and conditions. Here a condition
becomes clips: one system, a system after the reference, a pair of systems in either order, or all
of them. Traps, gold, repeats and null pairs are put between, never first and never beside the
same text. Everything is drawn from the study's seed and the design row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from listening_test.design import balanced_rows, clip_order, session_order, turns_of_row
from listening_test.incomplete import incomplete_order, incomplete_rows
from listening_test.methods import Value
from listening_test.prepared import PreparedStudy

_BLOCK_ROWS = 128

TrialType = Literal[
    "screen", "environment", "practice", "rating", "repeat", "trap", "gold", "null_pair"
]


@dataclass(frozen=True)
class Trial:
    """One trial as the server keeps it; `clips` are stimulus ids in the order shown.

    `answer` is the right one where there is one (trap, gold, ABX), and at most `tolerance` away
    passes. Neither reaches the browser.
    """

    trial_type: TrialType
    item_id: str
    clips: tuple[str, ...]
    answer: Value | None = None
    tolerance: int = 0


def session_trials(study: PreparedStudy, row: int) -> list[Trial]:
    """Trials of design row `row` (from 0), screen and practice first, in the order heard."""
    conditions = _conditions(study)
    order = _cells(study, conditions, row)
    trials = [_trial(study, item, conditions[number], turn) for item, number, turn in order]
    rng = random.Random(f"{study.seed}/{row}/extras")
    extras = [_checked(study, number) for number in range(len(study.checks))]
    extras += _null_pairs(study, [item for item, _, _ in order], rng)
    repeated = rng.sample(trials[: len(trials) // 2], study.repeats)
    for extra in rng.sample(extras, len(extras)):
        trials = _put(trials, extra, 1, rng)
    for trial in repeated:
        again = Trial("repeat", trial.item_id, trial.clips, trial.answer)
        trials = _put(trials, again, max(len(trials) // 2, trials.index(trial) + 2), rng)
    return _screens(study) + _practice(study, conditions) + trials


def block_rows(study: PreparedStudy) -> int:
    """Rows of a block that one server may hold: enough for a crowd that comes at once."""
    items, conditions = study.items("rating"), _conditions(study)
    rows = incomplete_rows if study.same_text == "once" else balanced_rows
    orders = _orders(study, conditions)
    return rows(len(items), len(conditions), study.items_per_rater, orders, _BLOCK_ROWS)


def _cells(
    study: PreparedStudy, conditions: list[tuple[int, ...]], row: int
) -> list[tuple[str, int, int]]:
    """The row's trials as (text, condition, order of its clips), in the order heard."""
    items, per_rater = study.items("rating"), study.items_per_rater
    n, orders = len(conditions), _orders(study, conditions)
    if study.same_text == "once":
        cells = incomplete_order(len(items), n, per_rater, orders, study.seed, row)
        return [(items[item], number, turn) for item, number, turn in cells]
    turns = turns_of_row(len(items), per_rater, study.seed, row, orders)
    together = study.same_text == "together"
    order = session_order(len(items), n, per_rater, study.seed, row, together)
    return [(items[item], number, turns[item] + number) for item, number in order]


def _conditions(study: PreparedStudy) -> list[tuple[int, ...]]:
    """The arms of each condition."""
    arms = range(study.arms)
    kind = study.layout.conditions
    if kind == "each":
        return [(arm,) for arm in arms]
    if kind == "reference":
        assert study.reference_arm is not None
        return [(study.reference_arm, arm) for arm in arms if arm != study.reference_arm]
    if kind == "pair":
        return list(combinations(arms, 2))
    return [tuple(arms)]


def _orders(study: PreparedStudy, conditions: list[tuple[int, ...]]) -> int:
    """In how many orders a condition's clips come: of a pair two, of ABX four."""
    if study.layout.conditions == "all":
        return len(conditions[0])
    if study.layout.conditions == "pair":
        return 4 if study.method == "abx" else 2
    return 1


def _trial(study: PreparedStudy, item: str, arms: tuple[int, ...], turn: int) -> Trial:
    """A condition's clips of one text, in the order whose turn it is."""
    clips = [study.places[item, arm] for arm in arms]
    answer: Value | None = None
    kind = study.layout.conditions
    if kind == "pair" and turn % 2:
        clips.reverse()
    if study.method == "abx":
        x = turn // 2 % 2
        clips.append(clips[x])
        answer = "ab"[x]
    if kind == "all":
        clips = [clips[place] for place in clip_order(len(clips), study.seed, turn % len(clips))]
    return Trial(_type(study, clips), item, tuple(clips), answer)


def _type(study: PreparedStudy, clips: list[str]) -> Literal["rating", "null_pair"]:
    """Whether a trial can tell systems apart: not where the very same sound stands under two."""
    first = study.by_id[clips[0]]
    if study.layout.conditions == "each":
        same = [s for s in study.stimuli if (s.item_id, s.sound) == (first.item_id, first.sound)]
        return "null_pair" if len(same) > 1 else "rating"
    if study.layout.conditions == "all":
        return "rating"
    return "null_pair" if study.by_id[clips[1]].sound == first.sound else "rating"


def _checked(study: PreparedStudy, number: int) -> Trial:
    check = study.checks[number]
    item = study.by_id[check.clips[0]].item_id
    return Trial(check.trial_type, item, check.clips, check.answer, check.tolerance)


def _null_pairs(study: PreparedStudy, items: list[str], rng: random.Random) -> list[Trial]:
    """Pairs of one clip with itself, of texts that the session holds."""
    found = []
    for item in rng.sample(sorted(set(items)), min(study.null_pairs, len(set(items)))):
        clip = study.places[item, rng.randrange(study.arms)]
        clips = (clip,) * len(study.layout.names)
        found.append(Trial("null_pair", item, clips))
    return found


def _put(trials: list[Trial], extra: Trial, first: int, rng: random.Random) -> list[Trial]:
    """The trials with `extra` at a random place from `first` on, by no trial of its own text."""

    def free(place: int) -> bool:
        beside = trials[max(place - 1, 0) : place + 1]
        return all(trial.item_id != extra.item_id for trial in beside)

    places = range(min(first, len(trials)), len(trials) + 1)
    place = rng.choice([place for place in places if free(place)] or list(places))
    return [*trials[:place], extra, *trials[place:]]


def _screens(study: PreparedStudy) -> list[Trial]:
    """What comes before the practice; the text of such a trial is the kind of its screen."""
    return [
        Trial("environment" if screen.kind == "jnd" else "screen", screen.kind, (clip,), answer)
        for screen in study.screens
        for clip, answer in screen.trials
    ]


def _practice(study: PreparedStudy, conditions: list[tuple[int, ...]]) -> list[Trial]:
    trials = []
    for number, item in enumerate(study.items("practice")):
        arms = [arm for (name, arm) in study.places if name == item]
        if study.layout.conditions == "each":
            condition: tuple[int, ...] = (arms[0],)
        elif study.layout.conditions == "reference":
            condition = next(c for c in conditions if c[1] in arms and c[1] != study.reference_arm)
        else:
            condition = conditions[number % len(conditions)]
        trial = _trial(study, item, condition, number)
        trials.append(Trial("practice", item, trial.clips, trial.answer))
    return trials
