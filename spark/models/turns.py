"""What the prompt forms of the large models share; how turns are written is the families' own.

Knows words and turns; knows no mark but the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from spark.models.base import Prompt, PromptError, Turn
from spark.models.words import Words

_NOTHING = "Type a question, or record one."


class Prompts(ABC):
    """A `Dialogue` over a tokenizer whose marks lie above its text.

    Args:
        words: the tokenizer.
        first_mark: the lowest id that is no text.
    """

    def __init__(self, words: Words, first_mark: int) -> None:
        self._words, self._first_mark = words, first_mark

    @abstractmethod
    def encode(
        self, turns: Sequence[Turn], system: str | None = None, speak: bool = True
    ) -> Prompt:
        """A whole conversation and the opening of the reply; see `Dialogue`."""

    @abstractmethod
    def follow(self, turn: Turn, finished: bool, speak: bool = True) -> Prompt:
        """What comes after a reply that the engine still holds; see `Dialogue`."""

    def encode_prompt(self, text: str) -> list[int]:
        """One typed prompt, to be answered in speech."""
        return self.encode([Turn("user", text)]).ids

    def decode_text(self, ids: Sequence[int]) -> str:
        """The words of the text ids among `ids`."""
        return self._words.decode([i for i in ids if i < self._first_mark]).strip()

    @staticmethod
    def _expect_question(turns: Sequence[Turn]) -> None:
        """A conversation is answered where it ends with the user."""
        if not turns or turns[-1].role != "user":
            raise PromptError(_NOTHING)

    @staticmethod
    def _expect_words(turn: Turn) -> None:
        if not turn.text.strip() and not turn.heard:
            raise PromptError(_NOTHING)
