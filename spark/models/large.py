"""What the two large models share: from a checkpoint's folder to a transformer on its device.

Knows placement, strict loading and exit heads; the families know their config, names and prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spark.heads import Head, base_hash, load_heads
from spark.models import fits, hub
from spark.models.checkpoint import Checkpoint, CheckpointError, NamedTensors, titled
from spark.transformer import Transformer
from spark.weights import TransformerConfig

# Where fitted heads of hub models go: the cache's folders are not ours to write to.
HEADS_FOLDER = Path(__file__).resolve().parents[2] / "runs" / "exit_heads"
HEADS_FILE = "exit_heads.safetensors"
Sources = Mapping[str, tuple[str, tuple[int, int] | None]]


@dataclass(frozen=True)
class Family:
    """A large model as it is published.

    Attributes:
        name: in the registry.
        title: for people.
        repo: OWNER/NAME of the hub.
        files: patterns of the files needed.
        nbytes: of the weight files.
        shape: of its transformer.
        speech_rows: rows of the head that speech slots compute.
        tokens: of a prompt and a reply at most, for the memory's sake.
        exits: candidate exit layers, of its number of layers.
        default_exit: the paper's.
        heads_name: of the file of fitted heads; licences may ask for a name.
    """

    name: str
    title: str
    repo: str
    files: tuple[str, ...]
    nbytes: int
    shape: TransformerConfig
    speech_rows: int
    tokens: int
    exits: tuple[int, ...]
    default_exit: int
    heads_name: str

    def exits_of(self, layers: int) -> tuple[tuple[int, ...], int]:
        """Candidate exits and the default for a depth; the same shares of another depth."""
        if layers == self.shape.num_hidden_layers:
            return self.exits, self.default_exit

        def scaled(layer: int) -> int:
            share = layer / self.shape.num_hidden_layers
            return min(max(round(share * layers), 1), layers - 1)

        return tuple(sorted({scaled(layer) for layer in self.exits})), scaled(self.default_exit)


def unavailable(family: Family) -> str:
    """Why the model cannot run on this machine, whatever is downloaded; or an empty string."""
    for bits in (16, 8):
        try:
            fits.place(family.title, family.shape, family.tokens, family.speech_rows, bits=bits)
            return ""
        except fits.TooLarge as error:
            reason = str(error)
    return reason


def absent(family: Family) -> str:
    """What has to be done before a page can offer the model; or an empty string."""
    if hub.cached(family.repo):
        return ""
    return (
        f"its weights ({family.nbytes / 1e9:.0f} GB) are not on this machine: run "
        f"`python -m spark.models {family.name}` once, which fetches them, and start again"
    )


@dataclass(frozen=True)
class Loaded:
    """A body on its device.

    Attributes:
        body: the transformer.
        heads: fitted exit heads, by layer.
        notes: for the page.
    """

    body: Transformer
    heads: dict[int, Head]
    notes: tuple[str, ...]


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
    """

    source: str | Path | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    bits: fits.Bits = 16
    quiet: bool = False
    voice: Path | None = None
    whole: bool = False


def folder_of(family: Family, options: Options) -> Path:
    """The folder with the model's files, fetched where needed."""
    source = options.source or family.repo
    published = str(source) == family.repo
    return hub.fetch(source, family.files, family.nbytes if published else 0)


def expect_kind(config: Mapping[str, object], kind: str, family: Family, folder: Path) -> None:
    """Refuse the folder of another family, before its keys are compared one by one."""
    found = config.get("model_type")
    if found != kind:
        raise CheckpointError(
            f"{titled(folder)} holds a model of type {found!r}, {family.title} is {kind!r}: give "
            "the folder of the right model, or --model with the right name"
        )


def load_body(
    family: Family, folder: Path, checkpoint: Checkpoint, shape: TransformerConfig,
    sources: Sources, options: Options,
) -> Loaded:  # fmt: skip
    """Place and read the weights, whose names and shapes have been checked.

    Raises:
        TooLarge: there is not enough memory.
        CheckpointError: fitted heads lie beside it that are not its own.
    """
    tokens = min(family.tokens, shape.max_position_embeddings)
    place = fits.place(
        family.title, shape, tokens, family.speech_rows, options.device, options.dtype, options.bits
    )
    total = 2 * sum(fits.parameters(shape))
    state = NamedTensors(checkpoint, sources, _Progress(family.title, total, options.quiet))
    body = Transformer.from_state_dict(state, shape, place.dtype, place.device, place.bits)
    heads, note = _fitted(family, folder, body)
    return Loaded(body, heads, (place.reason, note))


def heads_path(family: Family, folder: Path) -> Path:
    """Where fitted heads of a model are kept: beside a local folder's files, else in runs/."""
    if titled(folder) == folder.name:
        return folder / HEADS_FILE
    return HEADS_FOLDER / family.heads_name


def _fitted(family: Family, folder: Path, body: Transformer) -> tuple[dict[int, Head], str]:
    """Fitted exit heads where there are some, and what the page says of them."""
    path = heads_path(family, folder)
    if not path.is_file():
        return {}, (
            "Exit heads: none are fitted for this model, so exits use the untrained one (final "
            "norm and the model's own rows)."
        )
    found = load_heads(path, base_hash(body.final_gain, body.unembedding))
    layers = ", ".join(map(str, sorted(found)))
    heads = {layer: head.to(body.device, body.dtype) for layer, head in found.items()}
    return heads, f"Exit heads: fitted at layer {layers}; the untrained one at other exits."


class _Progress:
    """Bytes read so far, on the terminal, where somebody watches."""

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        self._title, self._total, self._read, self._shown = title, max(total, 1), 0, -1
        self._quiet = quiet or not sys.stderr.isatty()

    def __call__(self, nbytes: int) -> None:
        self._read += nbytes
        percent = min(100 * self._read // self._total, 100)
        if not self._quiet and percent > self._shown:
            self._shown = percent
            end = "\n" if percent == 100 else ""
            print(f"\rLoading {self._title}: {percent} %", end=end, file=sys.stderr, flush=True)


def name_of(family: Family, options: Options) -> str:
    """What a loaded model is called: the registry's name, or the folder or repository given."""
    source = options.source
    if source is None or str(source) == family.repo:
        return family.name
    return str(source) if hub.is_repo(str(source)) else Path(source).resolve().name


def shape_for_reading(shape: TransformerConfig, most: int) -> TransformerConfig:
    """The shape with no more positions than are of use: rotary tables are made for all."""
    return replace(shape, max_position_embeddings=min(shape.max_position_embeddings, most))
