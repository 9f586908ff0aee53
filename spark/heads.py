"""Output heads: a norm, an optional lens, and the rows of some or all token ids.

A head turns states at one layer into logits. It knows neither which layer that is nor when it is
asked; fitted heads are saved with a hash of the base head, so that they cannot be put on another
model by mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spark.norm import Norm
from spark.weights import wide

if TYPE_CHECKING:
    from spark.modality import Vocabulary
    from spark.models.base import SpokenLM
    from spark.transformer import Transformer


@dataclass(frozen=True)
class Head:
    """Logits = rows . norm(h + lens(h)), the form of the tuned lens (arXiv 2303.08112).

    Attributes:
        gain: (D,) of the RMSNorm.
        rows: (R, D).
        eps: of the RMSNorm.
        row_ids: (R,) int64 token ids of the rows, ascending; None for the whole vocabulary.
        lens: (D, D), added to the identity; None for the identity.
        lens_bias: (D,), given with the lens.
    """

    gain: Tensor
    rows: Tensor
    eps: float
    row_ids: Tensor | None = None
    lens: Tensor | None = None
    lens_bias: Tensor | None = None
    _norm: Norm = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_norm", Norm(self.gain, self.eps))
        object.__setattr__(self, "rows", wide(self.rows))
        if self.row_ids is not None and self.row_ids.shape != self.rows.shape[:1]:
            raise ValueError("a head needs one token id a row")
        if (self.lens is None) != (self.lens_bias is None):
            raise ValueError("a lens and its bias come together")

    def logits(self, states: Tensor) -> Tensor:
        """Logits (..., R) of states (..., D)."""
        if self.lens is not None:
            states = states + F.linear(states, self.lens, self.lens_bias)
        return F.linear(self._norm(states), self.rows)

    def covers(self, ids: Iterable[int]) -> bool:
        """Whether every id has a row."""
        if self.row_ids is None:
            return all(0 <= i < self.rows.shape[0] for i in ids)
        return set(ids) <= set(self.row_ids.tolist())

    def restricted(self, ids: Tensor) -> Head:
        """The same head with only the rows of `ids` (those it has), ascending."""
        held = torch.arange(self.rows.shape[0]) if self.row_ids is None else self.row_ids.cpu()
        kept = torch.isin(held, ids.cpu()).nonzero().squeeze(1)
        device = self.rows.device
        return replace(self, rows=self.rows[kept.to(device)], row_ids=held[kept].to(device))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Head:
        """The head on another device and in another precision."""
        ids = None if self.row_ids is None else self.row_ids.to(device)
        lens = None if self.lens is None else self.lens.to(device, dtype)
        bias = None if self.lens_bias is None else self.lens_bias.to(device, dtype)
        gain, rows = self.gain.to(device, dtype), self.rows.to(device, dtype)
        return Head(gain, rows, self.eps, ids, lens, bias)

    @property
    def nbytes(self) -> int:
        """Bytes of weights read to evaluate it once."""
        parts = (self.gain, self.rows, self.lens, self.lens_bias)
        return sum(part.nbytes for part in parts if part is not None)


def shared_columns(one: Head, other: Head) -> tuple[Tensor, Tensor]:
    """Columns of two heads' logits that stand for the same tokens, (n,) int64 each, ascending."""
    ours, theirs = (
        torch.arange(head.rows.shape[0], device=head.rows.device)
        if head.row_ids is None
        else head.row_ids
        for head in (one, other)
    )
    return (
        torch.isin(ours, theirs).nonzero().squeeze(1),
        torch.isin(theirs, ours).nonzero().squeeze(1),
    )


HeadKind = Literal["fitted", "untrained"]


def base_head(lm: SpokenLM) -> Head:
    """The model's own head: final norm and the whole vocabulary."""
    body = lm.transformer
    return Head(body.final_gain, body.unembedding, body.config.rms_norm_eps)


def untrained_head(lm: SpokenLM, rows: Literal["full", "speech"] = "full") -> Head:
    """The model's own head for use at an exit layer, whole or with speech and control rows."""
    kept = _KEPT.setdefault(lm.transformer, {})
    found = kept.get((lm.vocabulary, rows))
    if found is None:
        with torch.inference_mode(False):  # others may train beside it
            head = base_head(lm)
            made = head if rows == "full" else head.restricted(lm.vocabulary.speech_rows())
        found = kept.setdefault((lm.vocabulary, rows), made)
    return found


# One for all engines of a model: copies take memory, and what is recorded of a head
# (`spark.graphs`) serves that head.
_KEPT: WeakKeyDictionary[Transformer, dict[tuple[Vocabulary, str], Head]] = WeakKeyDictionary()


def base_hash(gain: Tensor, rows: Tensor) -> str:
    """SHA-256 of a base head, final norm then rows, as float32 bytes."""
    digest = hashlib.sha256()
    for tensor in (gain, rows):
        for part in tensor.detach().split(_HASHED_ROWS):  # a large head in float32 takes gigabytes
            digest.update(part.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_HASHED_ROWS = 4096
_PARTS = ("gain", "rows", "row_ids", "lens", "lens_bias")


def save_heads(
    path: Path | str, heads: Mapping[int, Head], base: str, about: Mapping[str, str] | None = None
) -> None:
    """Write heads by exit layer into one safetensors file, with the hash of their base head.

    Args:
        path: of the file.
        heads: by exit layer.
        base: `base_hash` of the head they were fitted beside.
        about: words for whoever looks into the file.
    """
    tensors, metadata = {}, {**(about or {}), "base_hash": base}
    for layer, head in heads.items():
        metadata[f"{layer}.eps"] = repr(head.eps)
        for part in _PARTS:
            value = getattr(head, part)
            if value is not None:
                # Heads may share tensors, which the format does not know.
                plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                tensors[f"{layer}.{part}"] = plain
    save_file(tensors, str(path), metadata=metadata)


def load_heads(path: Path | str, base: str) -> dict[int, Head]:
    """Read the heads that `save_heads` wrote, by exit layer.

    Raises:
        ValueError: there is no such file, it holds no whole heads, or they were fitted on another
            base head than the one with hash `base`.
    """
    path = Path(path)
    expect_heads(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is cut off, damaged or no file of exit heads: fetch or fit them again"
        ) from error
    if "base_hash" not in metadata:
        raise ValueError(f"{path} holds no exit heads: give a file that spark.training wrote")
    if metadata["base_hash"] != base:
        raise ValueError(f"{path} holds heads fitted on another model: fit them anew")
    try:
        layers = sorted({int(name.split(".")[0]) for name in tensors})
        return {layer: _read_head(layer, tensors, metadata) for layer in layers}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} lacks a part of its heads ({error}): fit them anew") from error


def expect_heads(path: Path) -> None:
    """Refuse a file of heads that is not there, which a large model need not be loaded for."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the exit heads that were fitted")


def _read_head(layer: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Head:
    part = {name: tensors.get(f"{layer}.{name}") for name in _PARTS}
    gain, rows = tensors[f"{layer}.gain"], tensors[f"{layer}.rows"]
    eps = float(metadata[f"{layer}.eps"])
    return Head(gain, rows, eps, part["row_ids"], part["lens"], part["lens_bias"])


class HeadBank:
    """The heads one engine may evaluate, by name.

    Names: `full` and `speech` (the base head, whole or sliced), `exit11` (fitted, layer 11),
    `untrained` and `untrained-speech` (the base head at an exit layer).

    A head that lacks some control rows is cut down to its speech rows: it could not see a stop,
    so it must not decide one.

    Args:
        lm: the model.
        speech_row_head: whether slots that must hold speech compute speech and control rows only.
        kind: which heads decide at exit layers.
    """

    def __init__(self, lm: SpokenLM, speech_row_head: bool, kind: HeadKind) -> None:
        full, speech = untrained_head(lm, "full"), untrained_head(lm, "speech")
        self._sliced = speech_row_head
        self._fitted: dict[int, str] = {}
        self.heads = {"full": full, "untrained": full}
        self.heads |= {"speech": speech, "untrained-speech": speech}
        if kind == "fitted":
            for layer, head in lm.exit_heads.items():
                self._fitted[layer] = f"exit{layer}"
                self.heads[f"exit{layer}"] = _seeing_stops(lm, layer, head)

    def name(self, layer: int | None, speech: bool) -> str:
        """Name of the head for an exit layer (None: full depth) in a slot of forced speech or not.

        Where no fitted head exists, or it lacks the text rows that a slot needs, the untrained
        one stands in.
        """
        sliced = speech and self._sliced
        if layer is None:
            return "speech" if sliced else "full"
        fitted = self._fitted.get(layer)
        if fitted and (speech or self.heads[fitted].row_ids is None):
            return fitted
        return "untrained-speech" if sliced else "untrained"

    def full_name(self, deciding: str, speech: bool) -> str:
        """Name of the head that full depth is charged with where the head `deciding` decided.

        A fitted head without text rows stands against the base head without them, also where
        full depth computes every row: fewer rows are no saving of depth.
        """
        narrow = deciding in self._fitted.values() and self.heads[deciding].row_ids is not None
        return "speech" if narrow else self.name(None, speech)

    def nbytes(self) -> dict[str, int]:
        """Bytes read by one evaluation of each head."""
        return {name: head.nbytes for name, head in self.heads.items()}


def _seeing_stops(lm: SpokenLM, layer: int, head: Head) -> Head:
    words, body = lm.vocabulary, lm.transformer
    kept = _FITTED.setdefault(body, {})
    given, here = kept.get((words, layer), (None, None))
    if here is None or given is not head:
        with torch.inference_mode(False):
            here = head.to(body.device, body.dtype)
            if not here.covers(words.control_ids):
                here = here.restricted(torch.arange(words.speech_start, words.speech_end))
        kept[words, layer] = head, here
    return here


# The same for those that were fitted: by layer, one as it was given and as it is used.
_FITTED: WeakKeyDictionary[Transformer, dict[tuple[Vocabulary, int], tuple[Head, Head]]] = (
    WeakKeyDictionary()
)
