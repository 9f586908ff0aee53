"""A model's own replies to given prompts, at full depth, kept as they are made.

One line of JSON a reply, on disk before the next begins, so that a killed run goes on with the
reply that it was making; what is drawn depends on seed, position and token id alone, so that it
then makes the same one. Knows prompts and token ids; fits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spark import jsonl
from spark.engine import Engine
from spark.modality import Slot
from spark.models.base import PromptError, SpokenLM
from spark.schedule import FullDepth


def read_prompts(path: Path, lm: SpokenLM, max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of a text file's prompts, one a line; empty lines count for nothing.

    Args:
        path: of the file.
        lm: the model.
        max_tokens: of a reply; None is the model's own limit.

    Raises:
        ValueError: no such file, no text, no prompts, or one that the model cannot take.
    """
    limit = lm.max_tokens if max_tokens is None else min(max_tokens, lm.max_tokens)
    room = lm.transformer.config.max_position_embeddings - limit
    prompts = []
    for number, line in prompt_lines(path):
        try:
            prompts.append(lm.encode_prompt(line))
        except PromptError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if len(prompts[-1]) > room:
            raise ValueError(
                f"{path}, line {number}: {len(prompts[-1])} tokens, and beside a reply {lm.title} "
                f"has room for {room}; shorten it, or the replies (--max-tokens)"
            )
    return prompts


def prompt_lines(path: Path) -> list[tuple[int, str]]:
    """A text file's prompts with the numbers of their lines; see `read_prompts`."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: give a text file with one prompt a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: give one prompt a line") from error
    prompts = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip())]
    if not prompts:
        raise ValueError(f"{path} holds no prompts: give a text file with one prompt a line")
    return prompts


@dataclass(frozen=True)
class Lesson:
    """A prompt with the reply that the model gave.

    Attributes:
        ids: (1, T), the last token of the reply left out, which nothing follows.
        keep: (1, T) bool, positions that an exit head could be asked about.
    """

    ids: Tensor
    keep: Tensor


def lesson(lm: SpokenLM, prompt: Sequence[int], reply: Sequence[int]) -> Lesson:
    """What a reply teaches: speech slots, but for those after a token that left the layout.

    After such a token a policy runs in full, so no exit head decides there.
    """
    layout = lm.layout.start(lm.vocabulary, prompt[-1])
    keep = [False] * (len(prompt) - 1)
    for token in reply:
        keep.append(layout.slot is Slot.SPEECH and not layout.disagreed)
        layout.advance(token)
    ids = [*prompt, *reply][:-1]
    return Lesson(torch.tensor([ids]), torch.tensor([keep]))


class OwnReplies:
    """The replies to some prompts, made where they are missing.

    Args:
        lm: the model.
        prompts: token ids of each.
        path: of the file they are kept in.
        seed: of the sampling, which is the model's own; each prompt adds its number.
        max_tokens: of a reply; None is the model's own limit.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(
        self,
        lm: SpokenLM,
        prompts: Sequence[Sequence[int]],
        path: Path,
        seed: int,
        max_tokens: int | None = None,
    ) -> None:
        self._lm, self._prompts, self._path = lm, prompts, path
        self._seed, self._limit = seed, max_tokens
        self.made = _read(path, lm.vocabulary.size)[: len(prompts)]

    def make(self) -> Iterator[int]:
        """Make those that are missing; gives the number of replies after each."""
        engine = Engine(self._lm, outside_mass=False)
        for number in range(len(self.made), len(self._prompts)):
            prefill = engine.prefill(self._prompts[number])
            sampling = replace(self._lm.sampling, seed=self._seed + number)
            made = engine.generate(prefill, FullDepth(), sampling, self._limit)
            self.made.append([step.token_id for step in made])
            jsonl.append(self._path, [self.made[-1]])
            yield number + 1

    def lessons(self) -> list[Lesson]:
        """Those of the replies that hold speech to learn from."""
        pairs = zip(self._prompts, self.made, strict=True)
        found = (lesson(self._lm, prompt, reply) for prompt, reply in pairs if reply)
        return [one for one in found if one.keep.any()]


def _read(path: Path, size: int) -> list[list[int]]:
    """Replies on disk, of a vocabulary of `size` ids; a torn last line is cut off.

    Raises:
        ValueError: another line is damaged.
    """
    try:
        return [[range(size).index(token) for token in line] for line in jsonl.read(path)]
    except (ValueError, TypeError) as error:  # no JSON, no list, or no ids of this model
        raise ValueError(
            f"{path} is damaged: delete it, and the replies are made again, the same ones"
        ) from error
