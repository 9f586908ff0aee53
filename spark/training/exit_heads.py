"""Fits exit heads to a model on its own replies to given prompts.

    python -m spark.training.exit_heads --model step-audio-2-mini --prompts FILE

FILE holds one prompt a line. The model first answers them all at full depth; then a head for each
exit learns full depth's distribution at every speech slot of those answers, read through the model
once a step, so that no states are kept. Both go on where they were when the same command is given
again, and come to the same heads. A tenth of the replies is held out to say what was gained.
Knows files and settings; the learning is `exit_fitting`'s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spark import hardware, jsonl
from spark.heads import base_hash
from spark.models import load
from spark.models.base import SpokenLM
from spark.models.large import HEADS_FOLDER
from spark.models.loading import placement, say
from spark.paths import can_be_made
from spark.training.exit_fitting import Agreement, Fitting, fitting_bytes, rate_for, slot_states
from spark.training.own_replies import Lesson, OwnReplies, prompt_lines, read_prompts

REPLIES, FITTING, SETTINGS = "replies.jsonl", "fitting.safetensors", "settings.json"
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What is to be fitted, on what, and how.

    Attributes:
        prompts: token ids of each.
        exits: layers, ascending.
        epochs: times that every reply is learnt from.
        rate: peak of the learning rate, which falls to a fiftieth in a straight line.
        seed: of replies and of their order.
        max_tokens: of a reply; None is the model's own limit.
    """

    prompts: list[list[int]]
    exits: tuple[int, ...]
    epochs: int
    rate: float
    seed: int
    max_tokens: int | None

    def settings(self, lm: SpokenLM, bits: int) -> dict[str, Any]:
        """What a folder of work must share to go on."""
        body = lm.transformer
        digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return {
            "model": lm.name,
            "base head": base_hash(body.final_gain, body.unembedding),
            "precision": f"{body.dtype}, {bits} bits".removeprefix("torch."),
            "prompts": digest,
            "exits": list(self.exits),
            "epochs": self.epochs,
            "rate": self.rate,
            "seed": self.seed,
            "longest reply": self.max_tokens,
        }


def claim(work: Path, settings: dict[str, Any]) -> None:
    """Make a folder this run's own, or find that it is already.

    Raises:
        ValueError: it holds work under other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / SETTINGS
    held = _read_settings(path) if path.exists() else settings
    other = [name for name in settings if held.get(name) != settings[name]]
    if other:
        raise ValueError(
            f"{work} holds work begun otherwise ({', '.join(other)}): give the settings it was "
            "begun with, another folder with --work, or delete it"
        )
    jsonl.replace(path, json.dumps(settings, indent=1) + "\n")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


class Run:
    """A fitting with its checkpoints.

    Args:
        lm: the model.
        plan: what is wanted.
        work: folder of the checkpoint.
        every_s: seconds between checkpoints.
    """

    def __init__(self, lm: SpokenLM, plan: Plan, work: Path, every_s: float) -> None:
        self._lm, self._plan, self._every_s = lm, plan, every_s
        self._path = work / FITTING
        self.fitting, self.step = Fitting(lm, plan.exits), 0
        self._resume()

    def fit(self, taught: Sequence[Lesson]) -> None:
        """Learn from every reply, `epochs` times, each time in another order."""
        total = self._plan.epochs * len(taught)
        saved, begun, first = time.monotonic(), time.monotonic(), self.step
        while self.step < total:
            epoch, place = divmod(self.step, len(taught))
            shuffle = torch.Generator().manual_seed(self._plan.seed + epoch)
            order = torch.randperm(len(taught), generator=shuffle)
            falling = self._plan.rate * max(0.02, 1 - self.step / total)
            self.fitting.step(self.states(taught[int(order[place])]), falling)
            self.step += 1
            if time.monotonic() - saved >= self._every_s or self.step == total:
                self._checkpoint()
                saved = time.monotonic()
                left = (saved - begun) / (self.step - first) * (total - self.step)
                say(f"step {self.step} of {total}, {left / 60:.1f} min left: "
                      + _told(self.fitting.agreements()))  # fmt: skip

    def states(self, taught: Lesson) -> dict[int, torch.Tensor]:
        """The states that one reply gives at every exit and at full depth."""
        return slot_states(self._lm, taught.ids, taught.keep, self._plan.exits)

    def _checkpoint(self) -> None:
        state = self.fitting.state()
        about = {"step": str(self.step)}
        jsonl.replace_by(self._path, lambda part: save_file(state, str(part), metadata=about))

    def _resume(self) -> None:
        if not self._path.exists():
            return
        try:
            with safe_open(str(self._path), framework="pt") as file:
                self.step = int(file.metadata()["step"])
                names = file.keys()
                self.fitting.restore({name: file.get_tensor(name) for name in names})
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} is damaged: delete it, and the heads are fitted from their "
                "beginning on the replies already made"
            ) from error


def fit(lm: SpokenLM, plan: Plan, work: Path, out: Path, bits: int, every_s: float) -> None:
    """Answer the prompts, fit the heads and write them.

    Raises:
        ValueError: work under other settings, too little memory, no speech to learn from.
    """
    claim(work, plan.settings(lm, bits))
    _expect_memory(lm, plan.exits)
    run = Run(lm, plan, work, every_s)
    replies = OwnReplies(lm, plan.prompts, work / REPLIES, plan.seed, plan.max_tokens)
    begun, before = time.monotonic(), len(replies.made)
    for number in replies.make():
        left = (time.monotonic() - begun) / (number - before) * (len(plan.prompts) - number)
        say(f"reply {number} of {len(plan.prompts)}, {len(replies.made[-1])} tokens, "
              f"{left / 60:.1f} min left")  # fmt: skip
    spoken = replies.lessons()
    if not spoken:
        raise ValueError(
            f"none of the {len(replies.made)} replies holds speech, so there is nothing to fit to: "
            "give prompts that the model answers aloud, or allow longer replies (--max-tokens)"
        )
    held = spoken[9::10]
    taught = [one for number, one in enumerate(spoken) if number % 10 != 9]
    judged, on = (held, "held out") if held else (taught, "fitted to, none are held out below ten")
    untrained = Fitting(lm, plan.exits).measure(run.states(one) for one in judged)
    run.fit(taught)
    fitted = run.fitting.measure(run.states(one) for one in judged)
    say(f"agreement with full depth on {len(judged)} replies ({on}):")
    say(f"  untrained: {_told(untrained)}")
    say(f"  fitted:    {_told(fitted)}")
    about = {"model": lm.name, "licence": lm.licence, "replies": str(len(taught))}
    out.parent.mkdir(parents=True, exist_ok=True)
    jsonl.replace_by(out, lambda part: run.fitting.save(part, about))
    (work / FITTING).unlink(missing_ok=True)  # gigabytes, and of no more use


def _expect_memory(lm: SpokenLM, exits: Sequence[int]) -> None:
    free, wanted = hardware.free_memory(lm.transformer.device), fitting_bytes(lm, exits)
    if free is not None and wanted > free:
        raise ValueError(
            f"fitting {len(exits)} exits takes {wanted / _GIB:.1f} GiB beside the model "
            f"and {free / _GIB:.1f} GiB are free: fit fewer, for example --exits {lm.default_exit}"
        )


def _told(found: dict[int, Agreement]) -> str:
    return ", ".join(
        f"exit {layer} top-1 {one.top1:.3f} overlap {one.overlap:.3f}"
        for layer, one in found.items()
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m spark.training.exit_heads", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--model", required=True, help="a known model, a folder with its files, or OWNER/NAME"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="text, one prompt a line")
    parser.add_argument("--out", type=Path, help="default: where the lab looks for the model's")
    parser.add_argument("--work", type=Path, help="replies and checkpoint; default: under runs/")
    parser.add_argument("--exits", type=int, nargs="+", metavar="LAYER", help="default: all")
    parser.add_argument("--epochs", type=int, default=3, help="times each reply is learnt from")
    parser.add_argument("--rate", type=float, help="of learning; default: by the model's width")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, help="of a reply; default: the model's own")
    parser.add_argument("--checkpoint-seconds", type=float, default=120.0)
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    parser.add_argument("--bits", type=int, choices=(8, 16), help="8: layers as 8-bit integers")
    return parser


def _plan(lm: SpokenLM, given: argparse.Namespace) -> Plan:
    exits = tuple(sorted(set(given.exits or lm.candidate_exits)))
    if unknown := [layer for layer in exits if layer not in lm.candidate_exits]:
        offered = ", ".join(map(str, lm.candidate_exits))
        raise ValueError(f"there is no exit at layer {unknown[0]}: choose from {offered}")
    if given.epochs < 1:
        raise ValueError("--epochs: at least 1")
    rate = rate_for(lm.transformer.config.hidden_size) if given.rate is None else given.rate
    if not 0 < rate < 1:
        raise ValueError("--rate: above 0 and below 1")
    prompts = read_prompts(given.prompts, lm, given.max_tokens)
    return Plan(prompts, exits, given.epochs, rate, given.seed, given.max_tokens)


def _place(lm: SpokenLM, out: Path | None) -> Path:
    """Where the heads go.

    Raises:
        ValueError: there are some already, the place cannot be written, or its name is not one
            that the model's licence allows.
    """
    path = out or lm.heads_file
    if path is None:
        raise ValueError(f"{lm.title} keeps no heads of its own: say where they go with --out")
    if not path.name.startswith(lm.derived_prefix):
        raise ValueError(
            f"--out: the licence of {lm.title} asks that what is made from it be called "
            f"{lm.derived_prefix}...; take {lm.derived_prefix}-{path.name}"
        )
    if path.exists():
        raise ValueError(
            f"there are fitted heads already, {path}: delete them to fit anew, or name another "
            "file with --out"
        )
    if not can_be_made(path.parent):
        raise ValueError(f"no file can be made at {path}: name another place with --out")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit; 0, or 2 after a message about what went wrong, 130 where stopped by hand."""
    given = _arguments().parse_args(arguments)
    try:
        prompt_lines(given.prompts)  # before the minutes that a large model takes to load
        lm = load(given.model, told=say, **placement(given))
        out, plan = _place(lm, given.out), _plan(lm, given)
        work = given.work or HEADS_FOLDER / f"{out.stem}-work"
        fit(lm, plan, work, out, given.bits or 16, given.checkpoint_seconds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped: the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
