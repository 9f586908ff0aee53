"""What the two large models share: from a checkpoint's folder to a spoken language model.

One way for both: files found, everything checked that can be without the weights, placed, read.
What differs is in their `Family`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spark import graphs
from spark.heads import Head, base_hash, expect_heads, load_heads
from spark.models import fits, hub
from spark.models.base import SpokenLM
from spark.models.checkpoint import (
    MOST_LAYERS,
    MOST_SIZE,
    Checkpoint,
    CheckpointError,
    NamedTensors,
    read_json,
    titled,
)
from spark.models.family import Family, Hearing, Speaking
from spark.models.loading import Progress, Watch
from spark.models.words import Words, check_words
from spark.transformer import Transformer
from spark.weights import TransformerConfig

# Where fitted heads of hub models go: the cache's folders are not ours to write to.
HEADS_FOLDER = Path(__file__).resolve().parents[2] / "runs" / "exit_heads"
MOST_POSITIONS = 8192  # of prompt and reply


@dataclass(frozen=True)
class Options:
    """How a large model is to be loaded.

    Attributes:
        source: a folder, or OWNER/NAME; None for the published one.
        device: None for the best there is.
        dtype: None for what suits the device.
        bits: 8 for 8-bit layers.
        quiet: no progress on the terminal.
        voice: a sound file whose voice the sound takes; None for the published one.
        whole: the sound is made in one pass over all codes; else in pieces as they come.
        heads: a file of fitted exit heads; None for those where the lab looks for them.
        aloud: whether it is of no use without a voice.
        told: gets a sentence where there is one to say before the weights are read: where they
            go, and what is not there to hear or speak, with the command that fetches it.
        watch: told how far fetching and reading are.
    """

    source: str | Path | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    bits: fits.Bits = 16
    quiet: bool = False
    voice: Path | None = None
    whole: bool = False
    heads: Path | None = None
    aloud: bool = False
    told: Callable[[str], None] = lambda _: None
    watch: Watch | None = None


@dataclass(frozen=True)
class Checked:
    """Everything of a model's files that can be checked before its weights are read.

    Attributes:
        folder: with the files.
        shape: of the transformer.
        checkpoint: its weights, open.
        words: its tokenizer.
        ears, deafness: what hears, not read yet, or why nothing does.
        sound, silence: what speaks, not read yet, or why nothing does.
    """

    folder: Path
    shape: TransformerConfig
    checkpoint: Checkpoint
    words: Words
    ears: Hearing | None
    deafness: str
    sound: Speaking | None
    silence: str


def fetched(family: Family, source: str | Path, watch: Watch | None = None) -> Path:
    """The folder with a model's files, brought from the hub where they are missing.

    Args:
        family: of the model.
        source: a folder, or OWNER/NAME.
        watch: told how far a download is.

    Raises:
        CheckpointError: there is no such folder or repository, no network, no room.
    """
    published = str(source) == family.repo
    size = family.nbytes if published else 0
    return hub.fetch(source, family.files, size, family.own_files(), watch)


def fetch_all(family: Family, watch: Watch | None = None) -> Path:
    """Fetch a model with all that hears and speaks, as published; its folder.

    Raises:
        CheckpointError: no network, no room.
    """
    folder = fetched(family, family.repo, watch)
    for part in family.parts:
        if not part.found(folder):
            size = 0 if part.own else part.nbytes
            hub.download(part.repo, part.files, size, watch=watch)
    return folder


def checked(family: Family, options: Options) -> Checked:
    """Find a model's files, fetched where needed, and check them.

    Raises:
        CheckpointError: they are not this model's, or not whole.
        ValueError: the voice cannot be used.
    """
    folder = fetched(family, options.source or family.repo, options.watch)
    config = read_json(folder, "config.json")
    _expect_kind(config, family, folder)
    shape = family.read_shape(config)
    _expect_rows(family, shape.vocab_size)
    # Rotary tables are made for all positions, so no more than are of use.
    positions = min(shape.max_position_embeddings, MOST_POSITIONS)
    shape = replace(shape, max_position_embeddings=positions)
    checkpoint = Checkpoint.open(folder)
    checkpoint.require(family.weight_names(shape), family.apart)
    words = family.words(folder)
    check_words(words, family.marks, family.title)
    sound, silence = family.voice(folder, options.voice)
    ears, deafness = family.ears(folder, checkpoint, config, shape.hidden_size)
    return Checked(folder, shape, checkpoint, words, ears, deafness, sound, silence)


def _expect_kind(config: Mapping[str, object], family: Family, folder: Path) -> None:
    """Refuse the folder of another family, before its keys are compared one by one."""
    found = config.get("model_type")
    if found != family.kind:
        raise CheckpointError(
            f"{titled(folder)} holds a model of type {found!r}, {family.title} is "
            f"{family.kind!r}: give the folder of the right model, or --model with the right name"
        )


def _expect_rows(family: Family, rows: int) -> None:
    """Refuse an embedding that lacks rows for the family's marks and codes."""
    name, last = max(family.marks.items(), key=lambda item: item[1])
    if last >= rows:
        raise CheckpointError(
            f"config.json says the embedding has {rows} rows, and {family.title} needs one for "
            f"{name}, id {last}: it is another model, or an earlier one without speech; take "
            f"{family.repo}"
        )


def read_shape(
    fields: Callable[[Mapping[str, Any]], Mapping[str, Any]], config: Mapping[str, Any]
) -> TransformerConfig:
    """The shape that a config.json says.

    Args:
        fields: gives its numbers under transformers' names.
        config: as read.

    Raises:
        CheckpointError: a number is missing, or asks for what the transformer does not do.
    """
    try:
        shape = TransformerConfig.read(fields(config))
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error}: fetch it again") from error
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from error
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"config.json holds no shape of a model ({error}): fetch it again"
        ) from error
    wrong = [name for name, value in asdict(shape).items() if not _possible(name, value)]
    if wrong or shape.num_attention_heads % shape.num_key_value_heads:
        raise CheckpointError(
            f"config.json gives impossible numbers ({', '.join(wrong) or 'of heads'}): fetch it "
            "again"
        )
    return shape


def _possible(name: str, value: object) -> bool:
    """Whether a field of a shape can be right; names of every layer are written out later."""
    if name in ("family", "tie_word_embeddings"):
        return True
    if name in ("rms_norm_eps", "rope_theta"):
        return isinstance(value, int | float) and 0 < value < float("inf")
    most = MOST_LAYERS if name == "num_hidden_layers" else MOST_SIZE
    return isinstance(value, int) and 0 < value <= most


def load(family: Family, source: str | Path | None = None, **options: Any) -> SpokenLM:
    """A model from a folder or the hub (None: as published); options are those of `Options`.

    Raises:
        CheckpointError: the files are not this model's, or not whole.
        TooLarge: there is not enough memory.
        ValueError: there is no such file of heads; no voice where one is needed.
    """
    chosen = Options(source, **options)
    parts = checked(family, chosen)
    if chosen.aloud and parts.silence:
        raise ValueError(f"{family.title} has no sound here: {parts.silence}")
    if chosen.heads:
        expect_heads(chosen.heads)
    place = placed(family, parts, chosen)
    chosen.told(place.reason)
    for lack in (parts.silence, parts.deafness):
        if lack:
            chosen.told(lack)
    # First what is small: if it is damaged, that shows before the minutes that the rest takes.
    voice = parts.sound.read(place.device, chosen.whole) if parts.sound else None
    listener = parts.ears.read(place.device, place.dtype) if parts.ears else None
    body = read_body(family, parts.shape, parts.checkpoint, place, chosen.quiet,
                     chosen.watch)  # fmt: skip
    own = heads_path(family, parts.folder)
    heads, note = _fitted(chosen.heads or own, body, asked=chosen.heads is not None)
    prompts = family.prompts(parts.words)
    exits, default_exit = family.exits_of(parts.shape.num_hidden_layers)
    return SpokenLM(
        name=_name_of(family, chosen),
        title=family.title,
        transformer=body,
        vocabulary=family.vocabulary(parts.shape.vocab_size),
        layout=family.layout,
        encode_prompt=prompts.encode_prompt,
        decode_text=prompts.decode_text,
        max_tokens=min(family.most_tokens, parts.shape.max_position_embeddings // 2),
        candidate_exits=exits,
        default_exit=default_exit,
        exit_heads=heads,
        vocoder=voice,
        speech_rate=family.speech_rate,
        sampling=family.sampling,
        dialogue=prompts,
        system_prompt=family.system_prompt,
        listener=listener,
        silence=parts.silence,
        deafness=parts.deafness,
        notes=(place.reason, note),
        licence=family.licence,
        heads_file=own,
        derived_prefix=family.derived_prefix,
    )


def placed(family: Family, parts: Checked, options: Options) -> fits.Placement:
    """Where a model goes with all that hears and speaks; nothing of it has been read yet.

    Raises:
        TooLarge: there is not enough memory.
    """

    def beside(dtype: torch.dtype) -> int:
        heard = parts.ears.nbytes(dtype) if parts.ears else 0
        return heard + (parts.sound.nbytes if parts.sound else 0)

    tokens = min(family.tokens, parts.shape.max_position_embeddings)
    need = fits.Need(family.title, parts.shape, tokens, family.speech_rows, beside)
    return fits.place(need, options.device, options.dtype, options.bits)


def read_body(
    family: Family,
    shape: TransformerConfig,
    checkpoint: Checkpoint,
    place: fits.Placement,
    quiet: bool = True,
    watch: Watch | None = None,
) -> Transformer:
    """Read the weights of the transformer to where they go.

    Args:
        family: of the model.
        shape: of the transformer.
        checkpoint: its weights, open.
        place: device, precision and bits.
        quiet: no progress on the terminal.
        watch: told how far it is.
    """
    told = _Reading(family.title, 2 * sum(fits.parameters(shape)), quiet, watch)
    state = NamedTensors(checkpoint, family.sources(shape), told)
    body = Transformer.from_state_dict(state, shape, place.dtype, place.device, place.bits)
    graphs.prepare(body)
    return body


def heads_path(family: Family, folder: Path) -> Path:
    """Where fitted heads of a model are kept: beside a local folder's files, else in runs/."""
    home = folder if titled(folder) == folder.name else HEADS_FOLDER
    return home / family.heads_name


def _fitted(path: Path, body: Transformer, asked: bool) -> tuple[dict[int, Head], str]:
    """Fitted exit heads where there are some, and what the page says of them.

    Raises:
        ValueError: the file is damaged or of another model; or, where asked for, missing.
    """
    if not asked and not path.is_file():
        return {}, (
            "Exit heads: none are fitted for this model, so exits use the untrained one (final "
            "norm and the model's own rows); python -m spark.training.exit_heads fits some."
        )
    found = load_heads(path, base_hash(body.final_gain, body.unembedding))
    layers = ", ".join(map(str, sorted(found)))
    heads = {layer: head.to(body.device, body.dtype) for layer, head in found.items()}
    return heads, (
        f"Exit heads: fitted at layer {layers} ({path.name}); the untrained one at other exits."
    )


class _Reading:
    """Bytes read so far, on the terminal, where somebody watches, and to `watch`."""

    def __init__(self, title: str, total: int, quiet: bool, watch: Watch | None) -> None:
        self._title, self._total, self._read, self._shown = title, max(total, 1), 0, -1
        self._quiet, self._watch = quiet or not sys.stderr.isatty(), watch

    def __call__(self, nbytes: int) -> None:
        self._read += nbytes
        if self._watch:
            self._watch(Progress(f"Loading {self._title}", self._read, self._total))
        percent = min(100 * self._read // self._total, 100)
        if not self._quiet and percent > self._shown:
            self._shown = percent
            end = "\n" if percent == 100 else ""
            print(f"\rLoading {self._title}: {percent} %", end=end, file=sys.stderr, flush=True)


def _name_of(family: Family, options: Options) -> str:
    """What a loaded model is called: the registry's name, or the folder or repository given."""
    source = options.source
    if source is None or str(source) == family.repo:
        return family.name
    return str(source) if hub.is_repo(str(source)) else Path(source).resolve().name


def unavailable(family: Family, device: str | None = None) -> str:
    """Why a model cannot run on this machine, whatever is downloaded; or an empty string.

    Counted as published, with what hears and what speaks; on the best device, or on the one given.
    """
    need = fits.Need(family.title, family.shape, family.tokens, family.speech_rows, family.beside)
    for bits in (16, 8):
        try:
            fits.place(need, device, bits=bits)
            return ""
        except fits.TooLarge as error:
            reason = str(error)
    return reason


def absent(family: Family) -> str:
    """What has to be done before a page can offer a model; or an empty string.

    What hears and speaks may be missing: then the page says so where it matters.
    """
    if hub.cached(family.repo):
        return ""
    return (
        f"its weights ({family.nbytes / 1e9:.0f} GB) are not on this machine: run "
        f"`python -m spark.models {family.name}` once, which fetches them, and start again"
    )
