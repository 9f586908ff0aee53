"""Pronunciation taught on the side: two linear heads that are thrown away after training.

What a word sounds like is hidden in thousands of different codes. The teacher knows it outright,
so training also asks for it: halfway up the network, at the end of each word, its phones; at the
top, before each code, the phone it belongs to. The first costs no speech at all, and so teaches
the spelling of far more words than are ever spoken. The exported model has neither head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spark.training.sequences import Exchange, Writer
from spark.training.teacher import PHONES

LONGEST = 12  # phones asked for, of one word
_END = len(PHONES)  # the class after a word's last phone
_SPELT, _SOUNDS = 0.2, 0.5  # of the two losses; the tokens' own weighs 1


def middle(layers: int) -> int:
    """How many layers stand below the head that spells."""
    return (layers + 1) // 2


class Hints(nn.Module):
    """The two heads for states of `width`, and the targets they learn from."""

    def __init__(self, width: int, writer: Writer, pronunciations: dict[str, list[int]]) -> None:
        super().__init__()
        self.spelt = nn.Linear(width, LONGEST * (_END + 1))
        self.sounds = nn.Linear(width, len(PHONES))
        self.writer = writer
        self.pieces = [str(writer.tokenizer.id_to_token(i)) for i in range(writer.bot)]
        self.pronunciations = {word: _target(said) for word, said in pronunciations.items()}

    def word_ends(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """(position of the last piece, word) of every word; speech may stand between pieces."""
        ends: list[tuple[int, str]] = []
        for position, token in enumerate(ids):
            if token >= self.writer.bot:
                continue
            piece = self.pieces[token]
            if not piece.startswith("\u2581") and ends:
                piece = ends.pop()[1] + piece
            ends.append((position, piece))
        return [(position, word.lstrip("\u2581")) for position, word in ends]

    def targets(self, batch: Sequence[Exchange], width: int) -> tuple[Tensor, Tensor]:
        """Phones of words (B, width, LONGEST) and of codes (B, width), -100 where none is asked.

        The phone of the code at t + 1 stands at t, as for the tokens' own targets.
        """
        spelt = torch.full((len(batch), width, LONGEST), -100)
        sounds = torch.full((len(batch), width), -100)
        audio, filler = self.writer.audio, self.writer.filler
        for row, exchange in enumerate(batch):
            for position, word in self.word_ends(exchange.ids):
                if word in self.pronunciations:
                    spelt[row, position] = self.pronunciations[word]
            if exchange.phones is not None:
                at = [i for i, token in enumerate(exchange.ids) if audio <= token < filler]
                phones = torch.from_numpy(exchange.phones[: len(at)]).long()
                sounds[row, torch.tensor(at, dtype=torch.long) - 1] = phones
        return spelt, sounds

    def loss(self, half: Tensor, top: Tensor, spelt: Tensor, sounds: Tensor) -> Tensor:
        """Weighted sum of both cross-entropies; states are (B, T, width)."""
        asked, voiced = spelt[..., 0] != -100, sounds != -100
        guesses = self.spelt(half[asked]).float().view(-1, _END + 1)
        spelling = nn.functional.cross_entropy(guesses, spelt[asked].view(-1), reduction="sum")
        heard = self.sounds(top[voiced]).float()
        return _SPELT * spelling + _SOUNDS * nn.functional.cross_entropy(
            heard, sounds[voiced], reduction="sum"
        )


def _target(phones: Sequence[int]) -> Tensor:
    """(LONGEST,): the phones, then once the end, then nothing."""
    row = torch.full((LONGEST,), -100)
    row[: len(phones)] = torch.tensor(list(phones)[:LONGEST])
    row[len(phones) : len(phones) + 1] = _END
    return row
