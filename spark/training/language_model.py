"""Trains the embedded spoken language model: transformers' Qwen2 on the mixture, fp32 or bf16.

`python -m spark.training.language_model --data DIR --out DIR --minutes M [--workers 2]`; resumes
from DIR/state.pt. bf16 autocast is used where the processor multiplies bf16 in hardware. Workers
are processes with one thread each that average their gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from spark import hardware
from spark.models import embedded
from spark.speech.codec import Codec
from spark.training import mixture
from spark.training.hints import Hints, middle
from spark.training.initial_weights import EMBEDDING, lay_copying, relate_codes
from spark.training.sequences import Exchange, Writer, load_tokenizer, padded

LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 14, 256, 4, 2, 512
ROPE_THETA = 10000.0
PEAK_RATE = 1.5e-3
WARM_UP = 100  # steps
WEIGHT_DECAY = 0.15  # of matrices: a sum that training never saw needs rules, not memory
TEXT_WEIGHT = 3.0  # of a text or control target's loss: few among codes, and any slip is heard
# Exits that the early-exit loss looks at. The models of the paper never learnt to be left half-way,
# and an exit there is to show what that does: so only the deep candidates are helped.
HELPED_EXITS = tuple(exit_layer for exit_layer in embedded.EXIT_LAYERS if exit_layer > 9)
DECAY = 0.3  # the last share of the time, in which the rate falls to nearly nothing


@dataclass(frozen=True)
class Settings:
    data: Path
    out: Path
    minutes: float
    tokens: int  # ids a step and worker
    workers: int
    peak_rate: float
    layers: int
    start: Path | None
    written: bool
    early_exit_loss: float


def configuration(vocabulary: int, layers: int = LAYERS) -> Qwen2Config:
    """The embedded model's shape, or a shallower one's for the first stage."""
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=INNER,
        num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        max_position_embeddings=2048, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip


def grow(shallow: Qwen2ForCausalLM, layers: int) -> Qwen2ForCausalLM:
    """A deeper model that computes the same: old layers spread out, new ones adding nothing.

    Spread evenly, first to first and last to last, so that leaving early misses some of them.
    A new layer starts with zero output matrices and learns from there.
    """
    config = configuration(shallow.config.vocab_size, layers)
    deep = Qwen2ForCausalLM(config)
    for layer in deep.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    old = len(shallow.model.layers)
    for i, layer in enumerate(shallow.model.layers):
        deep.model.layers[round(i * (layers - 1) / (old - 1))].load_state_dict(layer.state_dict())
    for name in ("embed_tokens", "norm"):
        getattr(deep.model, name).load_state_dict(getattr(shallow.model, name).state_dict())
    deep.lm_head.load_state_dict(shallow.lm_head.state_dict())
    return deep


def loss_of(
    model: Qwen2ForCausalLM,
    ids: Tensor,
    targets: Tensor,
    speech: int,
    *,
    exit_layer: int = 0,
    weight: float = 0.0,
    hints: Hints | None = None,
    hinted: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Summed cross-entropy over the targets that count; only their rows reach the head.

    Ids from `speech` up are speech; those below weigh TEXT_WEIGHT. With a `weight`, that times the
    loss after `exit_layer` layers through the same norm and head is added, at text and speech
    alike (early-exit loss as in LayerSkip, arXiv 2404.16710); with `hints`, their loss on the
    targets `hinted`.
    """
    counted = targets != -100
    deep = weight > 0 or hints is not None
    out = model.model(input_ids=ids, use_cache=False, output_hidden_states=deep)
    loss = _entropy(model, out.last_hidden_state[counted], targets[counted], speech)
    if weight > 0:
        early = model.model.norm(out.hidden_states[exit_layer][counted])
        loss = loss + weight * _entropy(model, early, targets[counted], speech)
    if hints is not None and hinted is not None:
        half = out.hidden_states[middle(model.config.num_hidden_layers)]
        loss = loss + hints.loss(half, out.last_hidden_state, *hinted)
    return loss


def _entropy(model: Qwen2ForCausalLM, states: Tensor, targets: Tensor, speech: int) -> Tensor:
    logits = model.lm_head(states).float()
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * torch.where(targets < speech, TEXT_WEIGHT, 1.0)).sum()


def begin(settings: Settings, writer: Writer) -> Trainer:
    """A fresh model and hints, or those grown from the shallower model in `settings.start`."""
    size = writer.tokenizer.get_vocab_size()
    said = json.loads((settings.data / "pronunciations.json").read_text())
    hints = Hints(WIDTH, writer, said)
    if settings.start is not None:
        path = settings.start / "state.pt"
        state = torch.load(path, weights_only=True, map_location="cpu")
        old = 1 + max(int(name.split(".")[2]) for name in state["model"] if ".layers." in name)
        shallow = Qwen2ForCausalLM(configuration(size, old))
        shallow.load_state_dict(state["model"])
        model = grow(shallow, settings.layers)
        hints.load_state_dict(state["hints"])
    else:
        model = Qwen2ForCausalLM(configuration(size, settings.layers))
        points = Codec.load(settings.data / "codebook.safetensors").encoder.points
        with torch.no_grad():
            table = nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING)
            table[writer.audio : writer.filler] = relate_codes(points, WIDTH)
        lay_copying(model, text=writer.bot, theta=ROPE_THETA)
    model.set_attn_implementation("eager")  # half as quick again as sdpa: short rows, small heads
    if settings.workers == 1:
        nn.Module.to(model, hardware.device())
        hints.to(hardware.device())
    return Trainer(settings, model, hints)


def optimiser_of(model: nn.Module, rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def average_gradients(model: nn.Module, counted: int) -> None:
    """Divides summed gradients by all workers' count of targets."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not distributed.is_initialized():
        torch._foreach_div_(gradients, counted)
        return
    total = torch.tensor(float(counted))
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(total)
    distributed.all_reduce(flat)
    parts = (flat / total).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def save(model: Qwen2ForCausalLM, out: Path) -> None:
    """Weights in bf16, in shards below 10 MB."""
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state, max_shard_size="9MB")


@dataclass
class Trainer:
    """A model with its hints and optimiser, and how far it has come."""

    settings: Settings
    model: Qwen2ForCausalLM
    hints: Hints
    step: int = 0
    spent: float = 0.0  # seconds in earlier runs
    seen: int = 0  # ids, padding included

    def __post_init__(self) -> None:
        self.trained = nn.ModuleList([self.model, self.hints])
        self.optimiser = optimiser_of(self.trained, self.settings.peak_rate)

    @property
    def path(self) -> Path:
        return self.settings.out / "state.pt"

    def resume(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=self.model.device)
            self.model.load_state_dict(state["model"])
            self.hints.load_state_dict(state["hints"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.spent, self.seen = state["step"], state["spent"], state["seen"]

    def checkpoint(self, elapsed: float) -> None:
        partial = self.path.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "hints": self.hints.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state | {"step": self.step, "spent": elapsed, "seen": self.seen}, partial)
        partial.rename(self.path)

    def rate(self, progress: float) -> float:
        """Learning rate: up over WARM_UP steps, constant, then down over the last DECAY."""
        falling = max(0.02, min(1.0, (1.0 - progress) / DECAY))
        return self.settings.peak_rate * min(1.0, (self.step + 1) / WARM_UP) * falling

    def exit_layer(self) -> int:
        """The exit that this step's early-exit loss looks at: each of HELPED_EXITS in turn."""
        return HELPED_EXITS[self.step % len(HELPED_EXITS)]

    def train_on(self, batch: Sequence[Exchange], progress: float) -> float:
        """One step; the mean loss of this worker's targets, hints and early exits included."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(progress)
        where = self.model.device
        ids, targets = (torch.from_numpy(x).to(where) for x in padded(batch, self.hints.writer.pad))
        spelt, sounds = self.hints.targets(batch, ids.shape[1])
        with torch.autocast(where.type, torch.bfloat16, enabled=hardware.fast_bf16(where)):
            loss = loss_of(
                self.model, ids, targets, self.hints.writer.audio,
                exit_layer=self.exit_layer(), weight=self.settings.early_exit_loss,
                hints=self.hints, hinted=(spelt.to(where), sounds.to(where)),
            )  # fmt: skip
        self.optimiser.zero_grad()
        loss.backward()
        counted = int((targets != -100).sum())
        average_gradients(self.trained, counted)
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self.seen += ids.numel() * self.settings.workers
        return float(loss.detach()) / counted


def _agreed(elapsed: float) -> float:
    """The first worker's clock, so that all take the same rate and stop together."""
    clock = torch.tensor(elapsed, dtype=torch.float64)
    if distributed.is_initialized():
        distributed.broadcast(clock, 0)
    return float(clock)


def work(rank: int, settings: Settings) -> None:
    """One worker's training, from start or checkpoint to the end of the time."""
    torch.set_num_threads(1)
    if settings.workers > 1:
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {mine[rank % len(mine)]})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
        distributed.init_process_group("gloo", rank=rank, world_size=settings.workers)
    torch.manual_seed(0)
    writer = Writer(load_tokenizer(settings.data / "tokenizer.json"))
    trainer = begin(settings, writer)
    trainer.resume()
    shares = mixture.WRITTEN if settings.written else mixture.Shares()
    source = mixture.of(settings.data, writer, shares, seed=1000 * trainer.step + rank)
    stream = source.batches(settings.tokens)
    begun, shown, saved = time.time() - trainer.spent, 0.0, time.time()
    running, weight = 0.0, 0.0
    while (elapsed := _agreed(time.time() - begun)) < 60 * settings.minutes:
        loss = trainer.train_on(next(stream), elapsed / (60 * settings.minutes))
        running, weight = 0.97 * running + 0.03 * loss, 0.97 * weight + 0.03
        if rank == 0 and time.time() - shown > 30:
            shown = time.time()
            print(
                f"step {trainer.step} {elapsed / 60:.1f} min {trainer.seen / 1e6:.2f} M tokens "
                f"loss {running / weight:.4f}",
                flush=True,
            )
        if rank == 0 and time.time() - saved > 300:
            saved = time.time()
            trainer.checkpoint(elapsed)
    if rank == 0:
        trainer.checkpoint(elapsed)
        save(trainer.model, settings.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="tokenizer.json and codes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all, earlier runs included")
    parser.add_argument("--tokens", type=int, default=640, help="ids a step and worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--start", type=Path, help="folder of a shallower model to grow from")
    parser.add_argument("--written", action="store_true", help="text alone: the first stage")
    parser.add_argument("--early-exit-loss", type=float, default=0.0, help="its weight")
    arguments = parser.parse_args()
    if arguments.early_exit_loss and arguments.layers <= max(embedded.EXIT_LAYERS):
        parser.error(f"--early-exit-loss needs more than {max(embedded.EXIT_LAYERS)} layers")
    settings = Settings(**vars(arguments))
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.workers > 1:
        torch.multiprocessing.spawn(work, (settings,), nprocs=settings.workers)
    else:
        work(0, settings)


if __name__ == "__main__":
    main()
