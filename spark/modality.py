"""Text, speech or control: what a token id is, and what a layout expects next.

Knows ids and counts only, no model. A layout is predictable before a token is drawn, but the
model may depart from it, so its state follows the ids that were really emitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor


class Modality(StrEnum):
    """What a token id stands for."""

    TEXT = "text"
    SPEECH = "speech"
    CONTROL = "control"


class Slot(StrEnum):
    """What the layout expects next."""

    TEXT = "text"
    SPEECH = "speech"

    @property
    def number(self) -> int:
        """In `Vocabulary.slots`."""
        return 1 if self is Slot.SPEECH else 0


@dataclass(frozen=True)
class Vocabulary:
    """Token ids by meaning.

    Attributes:
        size: number of ids V.
        speech_start: id of speech code 0.
        n_codes: speech codes; their ids are consecutive.
        stop_ids: ids that end a reply.
        control_ids: marks that a reply may hold, stop, pad and filler included.
        filler: what fills a speech slot once the speech is over.
        tts_pad: what fills a text slot once the text is over.
        tts_start: begins interleaved speech.
        tts_end: ends it; plain text follows.
        idle_ids: neither text nor code, and not for replies: marks that only prompts hold,
            reserved and unused rows. Control by modality; no speech slot computes them.
    """

    size: int
    speech_start: int
    n_codes: int
    stop_ids: tuple[int, ...]
    control_ids: tuple[int, ...]
    filler: int | None = None
    tts_pad: int | None = None
    tts_start: int | None = None
    tts_end: int | None = None
    idle_ids: tuple[int, ...] = ()
    _control: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_control", frozenset((*self.control_ids, *self.idle_ids)))
        marks = {self.filler, self.tts_pad, self.tts_start, self.tts_end, *self.stop_ids} - {None}
        if not marks <= set(self.control_ids):
            raise ValueError("control_ids must hold the stop ids, pad, filler and tts marks")
        if any(self.is_speech(i) for i in self._control):
            raise ValueError("a control id lies among the speech codes")
        if max(self._control, default=0) >= self.size or self.speech_end > self.size:
            raise ValueError(f"an id lies outside the vocabulary of {self.size}")

    @property
    def speech_end(self) -> int:
        """One past the id of the last speech code."""
        return self.speech_start + self.n_codes

    def is_speech(self, token_id: int) -> bool:
        """Whether the id is a speech code."""
        return self.speech_start <= token_id < self.speech_end

    def modality(self, token_id: int) -> Modality:
        """What the id stands for."""
        if self.is_speech(token_id):
            return Modality.SPEECH
        return Modality.CONTROL if token_id in self._control else Modality.TEXT

    def code(self, token_id: int) -> int:
        """The speech code of an id.

        Raises:
            ValueError: the id is no speech code.
        """
        if not self.is_speech(token_id):
            raise ValueError(f"token {token_id} is not a speech code")
        return token_id - self.speech_start

    @cached_property
    def slots(self) -> Tensor:
        """Which slot each id fills: (V,) uint8, 0 text, 1 speech, 2 none of them (`Slot.number`).

        None are the ids that end a reply and the marks that begin and end speech.
        """
        found = torch.zeros(self.size, dtype=torch.uint8)
        found[self.speech_start : self.speech_end] = Slot.SPEECH.number
        if self.filler is not None:
            found[self.filler] = Slot.SPEECH.number
        marks = (*self.stop_ids, self.tts_start, self.tts_end)
        found[[mark for mark in marks if mark is not None]] = 2
        return found

    def speech_rows(self) -> Tensor:
        """Ids of all speech codes and control tokens, ascending, (R,) int64."""
        codes = range(self.speech_start, self.speech_end)
        return torch.tensor(sorted({*codes, *self.control_ids}))


@dataclass(frozen=True)
class Interleave:
    """Groups of `n_text` text slots and `n_speech` speech slots, repeated.

    TA4 (Step-Audio-2) is Interleave(1, 4): pads fill the text slots once the text is over.
    GLM-4-Voice is Interleave(13, 26, speech_tail=True): speech goes on alone.
    """

    n_text: int
    n_speech: int
    speech_tail: bool = False

    def __post_init__(self) -> None:
        if self.n_text < 1 or self.n_speech < 1:
            raise ValueError("a group needs at least one text and one speech slot")

    def start(self, vocabulary: Vocabulary, last_id: int | None = None) -> LayoutState:
        """The state before a reply; `last_id` is the prompt's last token.

        Where a vocabulary has a token that begins speech, a prompt that does not end with it
        asks for plain text.
        """
        speaking = vocabulary.tts_start is None or last_id in (None, vocabulary.tts_start)
        return LayoutState(self, vocabulary, speaking)


class LayoutState:
    """Where a reply stands in its layout.

    Attributes:
        speaking: False where plain text is expected (before tts_start, after tts_end; a code
            brings speech back).
        chunk: number of the group, from 0.
        disagreed: whether the last token was not what its slot expected.
    """

    def __init__(self, layout: Interleave, vocabulary: Vocabulary, speaking: bool = True) -> None:
        self._layout = layout
        self._vocabulary = vocabulary
        self._place = 0  # slots of the current group already filled
        self._tail = False  # the text is over and speech goes on alone
        self.speaking = speaking
        self.chunk = 0
        self.disagreed = False

    @property
    def slot(self) -> Slot:
        """What the next token should be."""
        speech = self.speaking and (self._tail or self._place >= self._layout.n_text)
        return Slot.SPEECH if speech else Slot.TEXT

    @property
    def position_in_chunk(self) -> int:
        """Slots of this modality already filled in this group; 0 in text without speech."""
        if self.slot is Slot.SPEECH:
            return self._place - self._layout.n_text
        return self._place if self.speaking else 0

    @property
    def chunk_length(self) -> int | None:
        """Speech slots of this chunk, None where its end is not known."""
        return None if self._tail else self._layout.n_speech

    @property
    def opens_group(self) -> bool:
        """Whether the next token is the first of a group, or no more groups come."""
        return self._place == 0 or self._tail or not self.speaking

    def fork(self) -> LayoutState:
        """A state of its own that stands at the same place."""
        twin = object.__new__(LayoutState)
        twin.__dict__.update(self.__dict__)  # as `copy.copy`, in a third of its time at every step
        return twin

    def in_chunk(self, chunk: int) -> LayoutState:
        """A state of its own that stands at the same place of another chunk."""
        twin = self.fork()
        twin.chunk = chunk
        return twin

    @property
    def place(self) -> tuple[int, bool, bool, bool]:
        """All but the chunk's number; equal places of one layout go on alike."""
        return self._place, self._tail, self.speaking, self.disagreed

    def filled(self) -> LayoutState:
        """The state after a token that fills the slot, whichever that is."""
        twin, slot = self.fork(), self.slot
        twin.disagreed = False
        if slot is Slot.SPEECH:
            twin._fill_speech(slot)
        elif self.speaking:
            twin._fill_text(slot)
        return twin

    def stands_at(self, other: LayoutState) -> bool:
        """Whether another state of the same reply is at the same place."""
        return vars(self) == vars(other)

    def advance(self, token_id: int) -> None:
        """Follow the token that was emitted, expected or not."""
        slot, words = self.slot, self._vocabulary
        in_speech = words.is_speech(token_id) or token_id == words.filler
        self.disagreed = self.speaking and in_speech != (slot is Slot.SPEECH)
        if token_id == words.tts_start:
            self._begin_group(next_chunk=self.speaking)
            self.disagreed, self.speaking = self.speaking, True
        elif token_id == words.tts_end:
            self.speaking = False
        elif not self.speaking and words.is_speech(token_id):
            self.disagreed, self.speaking = True, True
            self._fill_speech(Slot.TEXT)
        elif not self.speaking or token_id in words.stop_ids:
            self.disagreed = False
        elif in_speech:
            self._fill_speech(slot)
        else:
            self._fill_text(slot)

    def _fill_speech(self, slot: Slot) -> None:
        if slot is Slot.TEXT:  # this code opens the chunk early
            self._place = self._layout.n_text
            self._tail = self._layout.speech_tail
        self._place += 1
        if not self._tail and self._place == self._layout.n_text + self._layout.n_speech:
            self._begin_group(next_chunk=True)

    def _fill_text(self, slot: Slot) -> None:
        if slot is Slot.SPEECH:  # this word ends the chunk early
            self._begin_group(next_chunk=True)
        self._place += 1

    def _begin_group(self, next_chunk: bool) -> None:
        self._place, self._tail = 0, False
        self.chunk += int(next_chunk)
