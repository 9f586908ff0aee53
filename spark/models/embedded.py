"""The embedded model: a small spoken LM of this project with its own codec, in assets/embedded.

Loads in a second on any CPU, needs no network. Knows its prompt form, its words and its limits;
what it was taught is in spark/training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from spark.heads import base_hash, load_heads
from spark.modality import Interleave, Vocabulary
from spark.models.base import PromptError, SpokenLM
from spark.models.checkpoint import (
    Checkpoint,
    CheckpointError,
    folded,
    read_json,
    refuse_pointer,
)
from spark.speech.codec import N_CODES, Codec
from spark.text import LONGEST_TEXT, normalise
from spark.transformer import Transformer

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "embedded"
MOST_WORDS = 30  # of a prompt, as words are counted after digits are spelled out
MOST_TOKENS = 500  # of a reply: 16 s of speech
HEADS_FILE = "exit_heads.safetensors"
EXIT_LAYERS = (5, 7, 9, 11, 12)
_CODEC = "codec.safetensors"
_FILES = ("config.json", "tokenizer.json", _CODEC, "model.safetensors.index.json")


def unavailable(folder: Path = FOLDER) -> str:
    """Why the model cannot be loaded, or an empty string."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if not missing:
        return ""
    names = ", ".join(missing)
    return f"{names} missing in {folder.name}: fetch the whole repository, or `make train`"


def load(
    folder: Path | str = FOLDER,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    bits: int = 16,
    voice: Path | None = None,
    whole: bool = False,
    heads: Path | None = None,
) -> SpokenLM:
    """The model with its codec, and the exit heads that were fitted for it or those given.

    Args:
        folder: with a model of this kind; OWNER/NAME of the hub is refused.
        dtype: of weights and states.
        device, bits, voice, whole: as they are, since it has no others.
        heads: a file of fitted exit heads; None for those of the folder.

    Raises:
        ValueError: a file is missing, or it is to run elsewhere than it can.
    """
    folder = _own_kind(folder)
    if torch.device(device).type != "cpu" or bits != 16:
        raise ValueError("the embedded model runs on the CPU as it is: leave out device and bits")
    if voice is not None or whole:
        raise ValueError("the embedded model has its own voice: leave out voice and whole")
    if reason := unavailable(folder):
        raise ValueError(reason)
    transformer = _body(folder, dtype)
    tokenizer = _tokenizer(folder / "tokenizer.json")
    own = folder / HEADS_FILE
    given = heads or (own if own.is_file() else None)
    base = base_hash(transformer.final_gain, transformer.unembedding)
    fitted = load_heads(given, base) if given else {}
    words = _Words(tokenizer)
    return SpokenLM(
        name="embedded",
        title="Embedded (CPU)",
        transformer=transformer,
        vocabulary=words.vocabulary,
        layout=Interleave(1, 4),
        encode_prompt=words.encode_prompt,
        decode_text=words.decode_text,
        max_tokens=MOST_TOKENS,
        candidate_exits=EXIT_LAYERS,
        default_exit=11,
        exit_heads={layer: head.to("cpu", dtype) for layer, head in fitted.items()},
        vocoder=_codec(folder / _CODEC),
        licence="Apache-2.0, code and weights.",
        heads_file=own,
    )


def _own_kind(source: Path | str) -> Path:
    """The folder of a model with a codec: language models of this shape without one are many.

    Raises:
        ValueError: it is none, or lies on the hub.
    """
    folder = Path(source)
    if folder == FOLDER or (folder / _CODEC).is_file():
        return folder
    raise ValueError(
        f"{source} holds a Qwen2 without a {_CODEC}, which writes text only: take "
        "step-audio-2-mini or glm-4-voice-9b, or a local folder with all files of the embedded "
        "model"
    )


def _body(folder: Path, dtype: torch.dtype) -> Transformer:
    checkpoint = Checkpoint.open(folder)
    state = {name: checkpoint.tensor(name) for name in checkpoint.shapes}
    try:
        body = Transformer.from_state_dict(state, read_json(folder, "config.json"), dtype)
    except KeyError as error:
        raise CheckpointError(
            f"config.json of {folder.name} has no {error}: fetch it again"
        ) from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:  # a config's values
        raise CheckpointError(f"{folder.name}: {error}; fetch its files again") from error
    if extra := sorted(state.keys() - body.state_dict().keys()):
        raise CheckpointError(
            f"{folder.name} holds {folded(extra)}, which the model has no place for: fetch its "
            "files again"
        )
    return body


def _tokenizer(path: Path) -> Tokenizer:
    refuse_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path.name} cannot be read ({error}): fetch it again") from error


def _codec(path: Path) -> Codec:
    refuse_pointer(path)
    try:
        return Codec.load(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is cut off, damaged or of another codec: fetch it again"
        ) from error


class _Words:
    """The tokenizer as the rest of the lab sees it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        names = ("<|BOT|>", "<|EOT|>", "<tts_start>", "<tts_end>", "<tts_pad>", "<audio_0>")
        found = (tokenizer.token_to_id(name) for name in (*names, f"<audio_{N_CODES}>"))
        ids = [i for i in found if i is not None]
        if len(ids) != len(names) + 1:
            raise ValueError("tokenizer.json lacks a control token or the speech codes")
        self.bot, self.eot, self.start, end, pad, speech, filler = ids
        self.vocabulary = Vocabulary(
            size=tokenizer.get_vocab_size(), speech_start=speech, n_codes=N_CODES,
            stop_ids=(self.eot,), control_ids=(self.bot, self.eot, self.start, end, pad, filler),
            filler=filler, tts_pad=pad, tts_start=self.start, tts_end=end,
        )  # fmt: skip

    def encode_prompt(self, text: str) -> list[int]:
        """`<|BOT|>` words `<|EOT|>` `<|BOT|>` `<tts_start>`; raises PromptError."""
        words = checked_words(text)
        ids = [
            i for word in words for i in self.tokenizer.encode(word, add_special_tokens=False).ids
        ]
        return [self.bot, *ids, self.eot, self.bot, self.start]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The words of the text ids among `ids`."""
        first = min(self.vocabulary.control_ids)
        return str(self.tokenizer.decode([i for i in ids if i < first])).strip()


def checked_words(text: str) -> list[str]:
    """The prompt's words, or a PromptError that says what to type instead."""
    if not text.strip():
        raise PromptError("Type a question, or a sentence after “say:”.")
    if len(text) > LONGEST_TEXT:
        raise PromptError(
            f"That is {len(text)} characters; type a question or one sentence, "
            f"at most {MOST_WORDS} words."
        )
    words = normalise(text).split()
    foreign = [c for c in dict.fromkeys(text) if c.isalpha() and not normalise(c)]
    if foreign:
        raise PromptError(
            f"This model reads English only and does not know {' '.join(foreign[:5])}: use the "
            "letters a to z and digits."
        )
    if not words:
        raise PromptError(
            "There are no words in this: type a question, or a sentence after “say:”."
        )
    if len(words) > MOST_WORDS:
        raise PromptError(
            f"That is {len(words)} words; this model takes up to {MOST_WORDS} "
            "and reads about 15 aloud well. Shorten it."
        )
    longest = max(words, key=len)
    if len(longest) > 30:
        raise PromptError(f"“{longest[:30]}…” is too long for a word: put spaces between words.")
    return words
