"""A large model in its true shape with random weights: its cost without its download.

Weights are written as the published files are (names, shards, index, bf16) and read again by the
lab's own way, so that the time to load is measured too. Random weights say nothing, so tokens are
scripted after the layout, and confidence exit is scripted to be sure at SPAR-K's exit layer; what
they are scripted instead of is computed all the same. Knows no tokenizer, no ears and no voice.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import conditions
from spark.engine import Engine
from spark.modality import Slot
from spark.models import fits, glm4_voice, large, step_audio_2
from spark.models.base import SpokenLM
from spark.models.checkpoint import INDEX, Checkpoint
from spark.models.family import Family
from spark.weights import TransformerConfig
from spark.work import Draw, Drawn, Part, Run, Sure, Token
from spark.worker import Worker

FAMILIES = {module.FAMILY.name: module.FAMILY for module in (step_audio_2, glm4_voice)}
_SHARD = 2**31  # bytes of a file at most, of which one at a time is in memory
_SCALE = 0.02  # of the weights, as models of this size begin
_PROMPT = 64  # ids
_GIB, _GB = 2**30, 1e9


@dataclass(frozen=True)
class TrueShape:
    """What is to be built.

    Attributes:
        name: of the large model.
        layers: fewer than it has, for a trial; None for all.
        device: None for the best there is.
        bits: 8 keeps the layers' matrices as 8-bit integers.
    """

    name: str
    layers: int | None = None
    device: str | None = None
    bits: fits.Bits = 16

    @property
    def family(self) -> Family:
        """Of the model; raises ValueError for any other."""
        if self.name not in FAMILIES:
            raise ValueError(f"--random: there is {' and '.join(FAMILIES)}, not {self.name}")
        return FAMILIES[self.name]

    @property
    def shape(self) -> TransformerConfig:
        """Of its transformer; raises ValueError for a number of layers that it cannot have."""
        shape = self.family.shape
        layers = shape.num_hidden_layers if self.layers is None else self.layers
        if not 2 <= layers <= shape.num_hidden_layers:
            raise ValueError(f"--layers: from 2 to {shape.num_hidden_layers}")
        return replace(shape, num_hidden_layers=layers, max_position_embeddings=
                       min(shape.max_position_embeddings, large.MOST_POSITIONS))  # fmt: skip


def load(wanted: TrueShape, folder: Path | None = None) -> tuple[SpokenLM, dict[str, Any]]:
    """Write the weights, read them, and tell how long that took.

    Args:
        wanted: what is to be built.
        folder: for the files, which stay and are read again another time; None for a temporary one.

    Raises:
        ValueError: no such model, too little memory or disk.
    """
    family, shape = wanted.family, wanted.shape
    need = fits.Need(family.title, shape, family.tokens, family.speech_rows)
    place = fits.place(need, wanted.device, torch.bfloat16, wanted.bits)
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as home:
        written = write(family, shape, Path(home), place.device)
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place.device)
        begun = time.perf_counter()
        checkpoint = Checkpoint.open(Path(home))
        checkpoint.require(family.weight_names(shape))
        body = large.read_body(family, shape, checkpoint, place)
        if body.device.type == "cuda":
            torch.cuda.synchronize(body.device)
        load_s = time.perf_counter() - begun
    exits, default_exit = family.exits_of(shape.num_hidden_layers)
    words = family.vocabulary(shape.vocab_size)
    ids = list(range(100, 100 + _PROMPT)) + ([words.tts_start] if words.tts_start else [])
    lm = SpokenLM(
        name=family.name,
        title=f"{family.title}, random weights",
        transformer=body,
        vocabulary=words,
        layout=family.layout,
        encode_prompt=lambda text: ids,
        decode_text=lambda ids: "",
        max_tokens=family.most_tokens,
        candidate_exits=exits,
        default_exit=default_exit,
        speech_rate=family.speech_rate,
    )
    return lm, {
        "random": True,
        "confidence_scripted_at": default_exit,
        "device_name": _device_name(body.device),
        "layers": shape.num_hidden_layers,
        "weights_gb": checkpoint.nbytes / _GB,
        "written_s": written,
        "load_s": load_s,
        "load_gb": conditions.peak_gb(body.device),
        "prompt_tokens": len(ids),
    }


def write(family: Family, shape: TransformerConfig, folder: Path, device: torch.device) -> float:
    """Random weights under the published names, a shard at a time; seconds it took.

    Files that are there already are kept: a run that was stopped goes on.

    Raises:
        ValueError: the disk has no room for them.
    """
    begun, shards = time.perf_counter(), _shards(family.weight_names(shape))
    placed: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
             for number in range(1, len(shards) + 1)]  # fmt: skip
    missing = sum(_nbytes(size) for path, shard in zip(files, shards, strict=True)
                  for size in shard.values() if not path.exists())  # fmt: skip
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(
            f"the weights take {missing / _GIB:.1f} GiB of disk and {free / _GIB:.1f} GiB are "
            f"free in {folder}: make room, or name another place with --folder"
        )
    for number, (path, shard) in enumerate(zip(files, shards, strict=True)):
        placed |= dict.fromkeys(shard, path.name)
        if not path.exists():
            make = torch.Generator(device).manual_seed(number)
            part = path.with_suffix(".part")
            save_file({name: _random(name, size, make) for name, size in shard.items()}, part)
            part.rename(path)
            print(f"weights: {number + 1} of {len(files)} files", file=sys.stderr, flush=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    return time.perf_counter() - begun


def _shards(names: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The tensors, in their order, in groups that a file holds."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, size in names.items():
        if groups[-1] and held + _nbytes(size) > _SHARD:
            groups.append({})
            held = 0
        groups[-1][name] = size
        held += _nbytes(size)
    return groups


def _nbytes(size: Sequence[int]) -> int:
    return torch.bfloat16.itemsize * torch.Size(size).numel()


def _random(name: str, size: tuple[int, ...], make: torch.Generator) -> Tensor:
    """Ones for a norm, else a normal distribution."""
    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=torch.bfloat16)
    values = torch.empty(size, dtype=torch.bfloat16, device=make.device)
    return values.normal_(0, _SCALE, generator=make).cpu()


class ScriptedWorker(Worker):
    """Does all the work there is, and answers after a script.

    Args:
        engine: whose weights and heads.
        tokens: of the reply, in order.
        start: position of the first of them.
        sure_at: layer at which a policy that asks is sure.
        compiled: as `Worker` has it.
    """

    def __init__(
        self, engine: Engine, tokens: Sequence[int], start: int, sure_at: int, compiled: bool
    ) -> None:
        super().__init__(engine.lm.transformer, engine.bank, compiled)
        self._tokens, self._start, self._sure_at = tokens, start, sure_at
        self._high = 0

    def run(self, work: Run) -> Tensor:
        """Layers over rows; notes how high they went."""
        self._high = work.high
        return super().run(work)

    def _token(self, work: Token) -> Drawn:
        (place,) = work.how.positions
        drawn, token = super()._token(work), self._tokens[place - self._start]

        def read() -> tuple[int, float, bool]:
            _, sureness, _ = drawn.read()
            return token, sureness, True

        ids = None if drawn.ids is None else torch.full_like(drawn.ids, token)
        return replace(drawn, read=read, ids=ids)

    def _do(self, work: Part) -> Tensor:
        done = super()._do(work)
        if isinstance(work, Draw):
            int(done[0])  # waits for it, as a step does that needs the token
            scripted = [self._tokens[place - self._start] for place in work.how.positions]
            return torch.tensor(scripted, device=done.device)
        if isinstance(work, Sure):
            return torch.full_like(done, float(self._high == self._sure_at))
        return done


class ScriptedEngine(Engine):
    """An engine whose replies are scripted."""

    def __init__(
        self,
        lm: SpokenLM,
        script: Sequence[int],
        speech_row_head: bool = True,
        compiled: bool = True,
    ) -> None:
        super().__init__(lm, speech_row_head, outside_mass=False)
        start = len(lm.encode_prompt(""))
        self._worker = ScriptedWorker(self, script, start, lm.default_exit, compiled)


def script(lm: SpokenLM, tokens: int) -> list[int]:
    """Ids that keep to the layout: text and codes in turn, all different from their neighbours."""
    words, found = lm.vocabulary, list[int]()
    layout = lm.layout.start(words, lm.encode_prompt("")[-1])
    for place in range(tokens):
        speech = layout.slot is Slot.SPEECH
        found.append(words.speech_start + place % words.n_codes if speech else 200 + place)
        layout.advance(found[-1])
    return found


def engines(lm: SpokenLM, tokens: int) -> tuple[Engine, Engine, Engine]:
    """Scripted ones: with speech rows only in slots of speech, with all rows, without graphs."""
    told = script(lm, tokens)
    whole = ScriptedEngine(lm, told, speech_row_head=False)
    return ScriptedEngine(lm, told), whole, ScriptedEngine(lm, told, compiled=False)


def told(result: dict[str, Any]) -> str:
    """What is to be said of load, prefill and memory."""
    return (
        f"{result['layers']} layers, {result['weights_gb']:.1f} GB of weights on "
        f"{result['device_name']}: loaded in {result['load_s']:.1f} s "
        f"with at most {result['load_gb']:.1f} GB in use, "
        f"{result['prompt_tokens']} prompt tokens in {result['prefill_ms']:.0f} ms; at most "
        f"{result['peak_gb']:.1f} GB in all (generate, which shares the weights, included)"
    )


def _device_name(where: torch.device) -> str:
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
