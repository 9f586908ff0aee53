"""Words to token ids and back, and marks by name, for the tokenizers of the large models.

Typed text is always plain text: a mark's name in it (`<|EOT|>`) is spelled out and never becomes
the mark, so that nobody can end a turn by typing. Knows tokenizer files; knows no prompt form.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import tiktoken
from tokenizers import Tokenizer

from spark.models.checkpoint import MOST_SIZE, CheckpointError, read_json, refuse_pointer

# How GLM-4 splits text before it merges bytes: the pattern of its family's tokenizers, which
# transformers' TikTokenConverter has as its default.
GLM_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Words(Protocol):
    """A tokenizer whose marks are apart from its text."""

    @property
    def marks(self) -> Mapping[str, int]:
        """Id of every mark by its name."""
        ...

    @property
    def text_ids(self) -> int:
        """How many ids text has: all below this."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no marks."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text of ids below the first mark."""
        ...


class JsonWords:
    """A tokenizer.json, its added tokens taken out and kept by name.

    Args:
        folder: holds tokenizer.json, and perhaps added_tokens.json.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        raw = read_json(folder, "tokenizer.json")
        added = raw.pop("added_tokens", None) or []
        try:
            self.marks: dict[str, int] = {entry["content"]: int(entry["id"]) for entry in added}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"tokenizer.json of {folder.name} has added_tokens that cannot be read: fetch it "
                "again"
            ) from error
        if (folder / "added_tokens.json").is_file():
            self.marks |= read_json(folder, "added_tokens.json")
        # A template would put marks around every text; the family's module does that.
        plain = {**raw, "added_tokens": [], "post_processor": None}
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"tokenizer.json of {folder.name} cannot be read ({error}): fetch it again"
            ) from error
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        self.text_ids = max(vocabulary.values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no marks."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text of ids below the first mark."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class RankWords:
    """A file of tiktoken ranks, and the added tokens of a tokenizer_config.json.

    Args:
        folder: holds tokenizer.model and tokenizer_config.json.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        table = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder")
        if not isinstance(table, dict):
            raise CheckpointError(
                f"tokenizer_config.json of {folder.name} has no added_tokens_decoder: fetch it "
                "again"
            )
        try:
            self.marks: dict[str, int] = {entry["content"]: int(i) for i, entry in table.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"tokenizer_config.json of {folder.name} has added_tokens_decoder entries that "
                "cannot be read: fetch it again"
            ) from error
        ranks = _ranks(folder)
        self.text_ids = max(ranks.values()) + 1
        self._encoding = tiktoken.Encoding(
            "glm-4", pat_str=GLM_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no marks."""
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text of ids below the first mark; half a character becomes U+FFFD."""
        return self._encoding.decode(list(ids), errors="replace")


def _ranks(folder: Path) -> dict[bytes, int]:
    """Rank by token, of lines `base64 rank`.

    tiktoken's own reader would also follow an address; this one reads a file and nothing else.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise CheckpointError(f"tokenizer.model is missing in {folder.name}: fetch it again")
    refuse_pointer(path)
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"tokenizer.model of {folder.name} holds no tiktoken ranks ({error}): fetch it again"
        ) from error
    # tiktoken would stop the whole program at the first text that it cannot spell.
    numbers = set(ranks.values())
    kept = len(numbers) == len(ranks) and all(0 <= rank < MOST_SIZE for rank in numbers)
    if not kept or any(bytes([i]) not in ranks for i in range(256)):
        raise CheckpointError(
            f"tokenizer.model of {folder.name} lacks some of its tiktoken ranks, or holds "
            "impossible ones: fetch it again"
        )
    return ranks


def check_words(words: Words, known: Mapping[str, int], title: str) -> None:
    """Compare a tokenizer with the ids a model was trained with: its marks, which text reaches to.

    Args:
        words: the tokenizer.
        known: id of every mark by its name.
        title: of the model, for messages.

    Raises:
        CheckpointError: a mark is missing or has another id (up to three are named), or text has
            fewer or more ids than lie below the first mark.
    """
    found = words.marks
    wrong = [(name, i) for name, i in known.items() if found.get(name) != i]
    if wrong:
        shown = ", ".join(
            f"{name} {found.get(name, 'missing')} instead of {i}" for name, i in wrong[:3]
        )
        raise CheckpointError(
            f"the tokenizer is not {title}'s: {shown}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            + "; take the tokenizer files of the same model"
        )
    if words.text_ids != (first := min(known.values())):
        raise CheckpointError(
            f"the tokenizer is not {title}'s: it has {words.text_ids} ids of text instead of "
            f"{first}; take the tokenizer files of the same model"
        )
