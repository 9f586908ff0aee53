"""Layouts: what they expect, and how they follow what was really emitted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.modality import Interleave, LayoutState, Modality, Slot, Vocabulary
from tests.tiny import tiny_vocabulary

WORDS = tiny_vocabulary()
TEXT, CODE = 3, WORDS.speech_start
PAD, FILLER = WORDS.tts_pad or -1, WORDS.filler or -1
START, END, STOP = WORDS.tts_start or -1, WORDS.tts_end or -1, WORDS.stop_ids[0]
GLM_WORDS = replace(WORDS, tts_start=None, tts_end=None, tts_pad=None, filler=None)


def after(state: LayoutState, *ids: int) -> LayoutState:
    """The state once these tokens were emitted."""
    for token in ids:
        state.advance(token)
    return state


def test_every_id_has_one_modality() -> None:
    kinds = [WORDS.modality(i) for i in range(WORDS.size)]
    assert kinds.count(Modality.SPEECH) == WORDS.n_codes
    assert [i for i, kind in enumerate(kinds) if kind is Modality.CONTROL] == sorted(
        WORDS.control_ids
    )
    rows = WORDS.speech_rows().tolist()
    assert rows == [i for i, kind in enumerate(kinds) if kind is not Modality.TEXT]
    assert [WORDS.code(CODE + i) for i in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="not a speech code"):
        WORDS.code(FILLER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control_ids": ()}, "must hold"),
        ({"control_ids": (*WORDS.control_ids, CODE)}, "among the speech codes"),
        ({"size": 10}, "outside"),
    ],
)
def test_vocabularies_that_contradict_themselves(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Vocabulary(**{**{f: getattr(WORDS, f) for f in FIELDS}, **change})


FIELDS = (
    *("size", "speech_start", "n_codes", "stop_ids", "control_ids"),
    *("filler", "tts_pad", "tts_start", "tts_end"),
)


def test_ta4_groups() -> None:
    state, seen = Interleave(1, 4).start(WORDS, START), []
    for token in (TEXT, CODE, CODE, CODE, CODE, PAD, CODE, FILLER, FILLER, FILLER, END, TEXT):
        seen.append((state.slot, state.chunk, state.position_in_chunk))
        state.advance(token)
        assert not state.disagreed
    speech = [(Slot.SPEECH, i) for i in range(4)]
    expected = [(Slot.TEXT, 0), *speech] * 2
    assert [(slot, place) for slot, _, place in seen[:10]] == expected
    assert [chunk for _, chunk, _ in seen[:11]] == [0] * 5 + [1] * 5 + [2]
    assert (seen[11][0], state.slot, state.speaking) == (Slot.TEXT, Slot.TEXT, False)


def test_a_prompt_that_does_not_ask_for_speech_gets_text() -> None:
    state = Interleave(1, 4).start(WORDS, TEXT)
    assert (state.speaking, state.slot) == (False, Slot.TEXT)
    after(state, TEXT, TEXT)
    assert state.slot is Slot.TEXT
    after(state, START)
    assert (state.speaking, state.slot, state.disagreed) == (True, Slot.TEXT, False)
    assert after(state, TEXT).slot is Slot.SPEECH


def test_glm_blocks_and_tail() -> None:
    state = Interleave(13, 26, speech_tail=True).start(GLM_WORDS, TEXT)
    after(state, *[TEXT] * 13)
    assert (state.slot, state.position_in_chunk, state.chunk_length) == (Slot.SPEECH, 0, 26)
    after(state, *[CODE] * 26)
    assert (state.slot, state.chunk) == (Slot.TEXT, 1)
    after(state, TEXT, TEXT, CODE)  # the text is over after two words
    assert state.disagreed
    assert (state.slot, state.position_in_chunk, state.chunk_length) == (Slot.SPEECH, 1, None)
    after(state, *[CODE] * 99)
    assert (state.slot, state.position_in_chunk, state.chunk) == (Slot.SPEECH, 100, 1)
    assert not state.disagreed


def test_a_word_in_a_speech_slot_opens_the_next_group() -> None:
    state = after(Interleave(1, 4).start(WORDS), TEXT, CODE, CODE, TEXT)
    assert state.disagreed
    assert (state.slot, state.chunk, state.position_in_chunk) == (Slot.SPEECH, 1, 0)
    assert not after(state, CODE).disagreed


def test_a_code_in_a_text_slot_opens_the_chunk() -> None:
    state = after(Interleave(1, 4).start(WORDS), CODE)
    assert state.disagreed
    assert (state.slot, state.chunk, state.position_in_chunk) == (Slot.SPEECH, 0, 1)


def test_the_end_of_speech_in_a_speech_slot_is_a_surprise() -> None:
    state = after(Interleave(1, 4).start(WORDS), TEXT, CODE, END)
    assert (state.disagreed, state.speaking, state.slot) == (True, False, Slot.TEXT)


@pytest.mark.parametrize("before", [(TEXT, CODE, END), (TEXT, CODE, CODE, CODE, CODE, END)])
def test_codes_after_the_end_of_speech_bring_it_back(before: tuple[int, ...]) -> None:
    state = after(Interleave(1, 4).start(WORDS), *before, TEXT)
    assert (state.speaking, state.slot) == (False, Slot.TEXT)
    after(state, CODE)
    assert (state.disagreed, state.speaking) == (True, True)
    assert (state.slot, state.position_in_chunk) == (Slot.SPEECH, 1)
    chunk = state.chunk
    after(state, CODE, CODE, CODE)
    assert (state.disagreed, state.slot, state.chunk) == (False, Slot.TEXT, chunk + 1)


def test_filler_after_the_end_of_speech_does_not() -> None:
    state = after(Interleave(1, 4).start(WORDS), TEXT, CODE, END, FILLER)
    assert (state.speaking, state.disagreed, state.slot) == (False, False, Slot.TEXT)


@given(
    st.lists(st.sampled_from([TEXT, CODE, PAD, FILLER, START, END]), max_size=60),
    st.integers(1, 13),
    st.integers(1, 26),
    st.booleans(),
)
def test_states_stay_sound_whatever_is_emitted(
    ids: list[int], n_text: int, n_speech: int, tail: bool
) -> None:
    state = Interleave(n_text, n_speech, tail).start(WORDS)
    for token in ids:
        before, slot = state.chunk, state.slot
        expected = WORDS.is_speech(token) or token == FILLER
        speaking = state.speaking
        state.advance(token)
        assert 0 <= state.chunk - before <= 1
        length = n_text if state.slot is Slot.TEXT else state.chunk_length
        assert length is None or state.position_in_chunk < length
        assert state.slot is Slot.TEXT or state.speaking
        if speaking and expected != (slot is Slot.SPEECH):
            assert state.disagreed


@given(
    layout=st.builds(Interleave, st.integers(1, 4), st.integers(1, 5), st.booleans()),
    ids=st.lists(st.integers(0, WORDS.size - 1), max_size=30),
    token=st.integers(0, WORDS.size - 1),
)
def test_any_token_that_fills_the_slot_leads_to_the_same_place(
    layout: Interleave, ids: list[int], token: int
) -> None:
    state = after(layout.start(WORDS, START), *ids)
    filled = state.filled()
    assert after(state.fork(), TEXT if state.slot is Slot.TEXT else CODE).stands_at(filled)
    if WORDS.slots[token] == state.slot.number:
        assert after(state.fork(), token).stands_at(filled)


def test_slots_that_ids_fill() -> None:
    slots = WORDS.slots.tolist()
    assert [slots[i] for i in (TEXT, PAD, CODE, FILLER)] == [0, 0, 1, 1]
    assert [slots[i] for i in (START, END, STOP)] == [2, 2, 2]
    assert GLM_WORDS.slots.tolist().count(2) == len(GLM_WORDS.stop_ids)
