"""Schedules by position: the rule, its notation, and what the engine makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.engine import Engine, decode_batch
from spark.modality import Interleave, Slot
from spark.positions import PositionSchedule, parse
from spark.sampling import SamplingSettings
from spark.schedule import Place, Spark
from tests.tiny import tiny_lm

N = None
depths = st.none() | st.integers(1, 5)
schedules = st.builds(
    PositionSchedule,
    st.lists(depths, min_size=1, max_size=8).map(tuple),
    st.lists(depths, max_size=3).map(lambda text: (None, *text)),
)


def exits_of(schedule: PositionSchedule | Spark, length: int) -> list[tuple[int, ...]]:
    """At each speech position of a chunk."""
    return [schedule.exits(Place(Slot.SPEECH, i, length)) for i in range(length)]


@pytest.mark.parametrize(
    ("k", "variant"), [(None, "triple"), (None, "even"), (None, "odd"), (4, N)]
)
@pytest.mark.parametrize("length", [4, 5, 26])
def test_spar_ks_schedules_are_special_cases(k: int | None, variant: str, length: int) -> None:
    spark = Spark(11, k, variant)  # type: ignore[arg-type]
    table = tuple(exits[0] if exits else None for exits in exits_of(spark, length))
    assert exits_of(PositionSchedule(table), length) == exits_of(spark, length)


@given(schedules, st.lists(st.sampled_from(Slot), max_size=40), st.booleans())
def test_each_position_has_its_own_exit(
    schedule: PositionSchedule, slots: list[Slot], reset: bool
) -> None:
    """Against a loop that hands out the two lists again and again and counts who waits."""
    lists = {Slot.SPEECH: list(schedule.speech), Slot.TEXT: list(schedule.text)}
    most = len(schedule.speech) + len(schedule.text)
    counts, waiting = {Slot.SPEECH: 0, Slot.TEXT: 0}, 0
    left: dict[Slot, list[int | None]] = {Slot.SPEECH: [], Slot.TEXT: []}
    for slot in slots:
        left[slot] = left[slot] or list(lists[slot])
        wanted = left[slot].pop(0)
        if waiting == most:
            wanted = None
        found = schedule.exits(Place(slot, counts[slot], pending=waiting))
        assert found == (() if wanted is None else (wanted,))
        counts[slot] += 1
        waiting = 0 if wanted is None else waiting + 1
        assert waiting <= most


@given(schedules)
def test_the_notation_is_read_back(schedule: PositionSchedule) -> None:
    back = parse(schedule.notation)
    assert back is not None
    assert back.speech == schedule.speech
    long = {len(schedule.text)} if any(schedule.text) else {1}
    assert len(back.text) in long
    places = [Place(Slot.TEXT, i) for i in range(6)]
    assert [back.exits(p) for p in places] == [schedule.exits(p) for p in places]


def test_notations() -> None:
    assert PositionSchedule((N, 11, 11, 9)).notation == "f-11-11-9"
    assert PositionSchedule((11,) * 4, (N, 12)).notation == "11-11-11-11/f-12"
    assert parse("f-7/5-f") == PositionSchedule((N, 7), (5, N))
    for other in ("triple", "k4", "f-", "-7", "f-7/", "f 7", "", "1234", "F-7"):
        assert parse(other) is None


@pytest.mark.parametrize(
    ("speech", "text", "words"),
    [
        ((), (N,), "at least one speech position"),
        ((N,), (), "at least one text position"),
        ((0, N), (N,), "speech exit 0 is no layer"),
        ((N,), (True,), "text exit True is no layer"),
        ((3, 2), (3,), "must run in full"),
    ],
)
def test_impossible_schedules_are_refused(speech, text, words) -> None:
    with pytest.raises(ValueError, match=words):
        PositionSchedule(speech, text)


def test_the_engine_runs_each_position_to_its_depth() -> None:
    lm = tiny_lm(0, layers=6, ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    schedule = PositionSchedule((N, 4, 2, 5))
    reply = engine.generate(start, schedule, SamplingSettings(temperature=0), 60)
    steps = [step for step in reply if step.chunk in (1, 2, 3)]
    assert [step.depth for step in steps] == [6, 6, 4, 2, 5] * 3
    assert [step.pending for step in steps] == [0, 0, 1, 2, 3] * 3
    assert [step.refresh for step in steps] == [True, False, False, False, False] * 3


def test_text_has_positions_of_its_own() -> None:
    lm = tiny_lm(0, layers=6, layout=Interleave(3, 7, speech_tail=True), ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    schedule = PositionSchedule((N, 3), (N, 5, 4))
    state = lm.layout.start(lm.vocabulary)
    seen = set()
    for step in engine.generate(start, schedule, SamplingSettings(1.0, seed=3), 90):
        if not state.disagreed:
            lists = schedule.text if state.slot is Slot.TEXT else schedule.speech
            wanted = lists[state.position_in_chunk % len(lists)] or 6
            assert step.depth == wanted
            seen.add((step.slot, step.depth))
        state.advance(step.token_id)
    assert seen >= {(Slot.SPEECH, 6), (Slot.SPEECH, 3), (Slot.TEXT, 6)}


def test_speech_without_end_is_made_good_now_and_then() -> None:
    """A tail of speech has no text step to refresh in: the schedule refreshes by itself."""
    lm = tiny_lm(0, layout=Interleave(1, 400), ends=False)
    engine = Engine(lm)
    start = engine.prefill(lm.encode_prompt("hello"))
    steps = list(engine.generate(start, PositionSchedule((2, 3, 2)), SamplingSettings(), 60))
    assert max(step.pending for step in steps) == 4
    assert sum(step.refresh for step in steps) > 5


def test_a_batch_of_replies_is_each_alone() -> None:
    lm = tiny_lm(0, layers=6)
    engine = Engine(lm)
    schedule = PositionSchedule((5, 4, 2, N))
    prompts = ("hello", "good morning", "a")
    starts = [engine.prefill(lm.encode_prompt(prompt)) for prompt in prompts]
    alone = [[s.token_id for s in engine.generate(p, schedule, SamplingSettings())] for p in starts]
    replies = [engine.generate(p, schedule, SamplingSettings()) for p in starts]
    assert len(list(decode_batch(replies, 3))) == 3
    assert [reply.trace.ids() for reply in replies] == alone
