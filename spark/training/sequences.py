"""Training sequences: prompt and reply as token ids in the TA4 layout, and the text tokenizer.

The text channel is paced by the speech: a word's tokens come LEAD seconds before it is spoken and
`<tts_pad>` fills the text slots between. So text keeps ahead of speech but never by much, and what
a chunk must say stands in the last few text tokens. Knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from spark.speech.codec import CODE_SAMPLES, FRAME_RATE, N_CODES
from spark.training.teacher import Utterance

TEXT_VOCABULARY = 2048
CONTROLS = ("<|BOT|>", "<|EOT|>", "<tts_start>", "<tts_end>", "<tts_pad>")
GROUP = 4  # speech tokens after each text token
LEAD = 0.6  # seconds by which text runs ahead of speech: nearly four groups
PREFACE = 3  # codes of silence before the teacher's own 0.2 s, so that the first word has its lead


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A BPE of lower-case English, then the control tokens, then `<audio_0>` to the filler."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    alphabet = list("abcdefghijklmnopqrstuvwxyz'\u2581")
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = [*CONTROLS, *(f"<audio_{code}>" for code in range(N_CODES + 1))]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


@dataclass(frozen=True)
class Spoken:
    """A text with its codes and the time of each word in seconds, PREFACE included."""

    text: str
    codes: np.ndarray  # int16 (codes,)
    words: np.ndarray  # float32 (words, 2)
    phones: np.ndarray  # int8 (codes,): what is spoken in the middle of each code


def with_preface(said: Utterance) -> Utterance:
    """The utterance after PREFACE codes of silence."""
    silence, late = np.zeros(PREFACE * CODE_SAMPLES, np.int16), PREFACE / FRAME_RATE
    return Utterance(
        np.concatenate([silence, said.samples]), said.words + late, said.phones,
        said.phone_ends + late,
    )  # fmt: skip


def phones_of(said: Utterance, frames: int, rate: float = FRAME_RATE) -> np.ndarray:
    """The phone in the middle of each frame, `rate` a second: int8 (frames,); at last, the last."""
    middles = (np.arange(frames) + 0.5) / rate
    which = np.searchsorted(said.phone_ends, middles)
    return said.phones[np.minimum(which, len(said.phones) - 1)]


@dataclass(frozen=True)
class Exchange:
    """Token ids of prompt and reply; training looks at ids[start:] only."""

    ids: list[int]
    start: int
    phones: np.ndarray | None = None  # of each code, where there are any


class Writer:
    """Writes sequences with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bot, self.eot, self.start, self.end, self.pad = (self._id(name) for name in CONTROLS)
        self.audio = self._id("<audio_0>")
        self.filler = self._id(f"<audio_{N_CODES}>")
        self._words: dict[str, list[int]] = {}

    def _id(self, name: str) -> int:
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise ValueError(f"the tokenizer has no {name}")
        return int(found)

    def text(self, text: str) -> list[int]:
        """Ids of a text: words are encoded one by one, so a word is always spelled alike."""
        return [token for word in text.split() for token in self.word(word)]

    def word(self, word: str) -> list[int]:
        if word not in self._words:
            self._words[word] = self.tokenizer.encode(word, add_special_tokens=False).ids
        return self._words[word]

    def prompt(self, text: str, spoken: bool) -> list[int]:
        """`<|BOT|>` text `<|EOT|>` `<|BOT|>`, and `<tts_start>` when speech is wanted."""
        return [self.bot, *self.text(text), self.eot, self.bot] + [self.start] * spoken

    def slots(self, spoken: Spoken) -> list[int]:
        """What stands in each text slot: word tokens at their time, pads between and after."""
        slots: list[int] = []
        for word, (begin, end) in zip(spoken.text.split(), spoken.words, strict=True):
            tokens = self.word(word)
            for i, token in enumerate(tokens):
                due = begin + (end - begin) * i / len(tokens) - LEAD
                slots += [self.pad] * (int(due * FRAME_RATE / GROUP) - len(slots))
                slots.append(token)
        return slots

    def reply(self, spoken: Spoken) -> list[int]:
        """Groups of one text and four speech tokens, `<tts_end>`, `<|EOT|>`."""
        slots = self.slots(spoken)
        groups = max(len(slots), -(-len(spoken.codes) // GROUP))
        slots += [self.pad] * (groups - len(slots))
        speech = np.full(groups * GROUP, self.filler)
        speech[: len(spoken.codes)] = self.audio + spoken.codes.astype(np.int64)
        rows = np.column_stack([slots, speech.reshape(groups, GROUP)])
        return [*map(int, rows.reshape(-1)), self.end, self.eot]

    def spoken(self, prompt: str, spoken: Spoken, groups: int | None = None) -> Exchange:
        """A spoken exchange; with `groups` the reply is cut after that many."""
        before = self.prompt(prompt, spoken=True)
        reply = self.reply(spoken)
        if groups is not None:
            reply = reply[: groups * (GROUP + 1)]
        return Exchange(before + reply, len(before), spoken.phones)

    def written(self, prompt: str, answer: str) -> Exchange:
        """A text-only exchange: the answer without speech."""
        before = self.prompt(prompt, spoken=False)
        return Exchange([*before, *self.text(answer), self.eot], len(before))


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def padded(batch: Sequence[Exchange], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B, T) padded on the right with `filler`, and targets (B, T) with -100 where no loss is.

    targets[:, t] is the id that follows ids[:, t], as a causal model predicts it.
    """
    width = max(len(row.ids) for row in batch)
    ids = np.full((len(batch), width), filler)
    targets = np.full((len(batch), width), -100)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = row.ids
        targets[i, row.start - 1 : len(row.ids) - 1] = row.ids[row.start :]
    return ids, targets
