"""Trains the codec's encoder and codebook with the decoder's coarse blocks; no sound is made.

`python -m spark.training.codebook --said DIR --out FILE --minutes M`. From the codes and their
neighbours the blocks must tell mel spectra, pitch, and the phone of every 10 ms: without the phones
codes are spent on what is loud, and consonants are lost. First the latents pass a Gaussian channel
of the codebook's rate, which teaches near latents to mean nearly the same; then k-means places the
points; then all moves together (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937), the points as
moving averages of the latents they own. `spark.training.decoder` learns to speak afterwards, with
the codes given.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spark import hardware
from spark.speech.codec import (
    CODE_SAMPLES,
    COMPONENTS,
    DIMENSIONS,
    FRAMES,
    HOP,
    LOOK_AHEAD,
    N_CODES,
    N_MELS,
    SAMPLE_RATE,
    Codec,
    Encoder,
    nearest,
)
from spark.training import recordings
from spark.training.pitch import pitch
from spark.training.sequences import phones_of
from spark.training.teacher import PHONES

CROP = 43  # codes: 1.7 s
BATCH = 24
_FOR_COMPONENTS = 20_000  # vectors that the principal components are taken from
_FOR_POINTS = 120_000  # latents that k-means sees
_ROUNDS = 10  # of k-means
_CHANNEL_SHARE = 0.3  # of the time, before the points are placed
_CHANNEL_RATE, _POINTS_RATE = 2e-3, 1.5e-3  # peak learning rates before and after
_WEIGHTS = (1.0, 0.3, 1.0, 0.2)  # of mel (nepers), phones (nats), pitch (octaves), voicing (nats)
_COMMIT = 0.25  # weight of the distance from latents to their points
_KEEP = 0.99  # a step, of the moving averages that points follow
_FORSAKEN = 0.1  # of an even share: a point that owns less is moved to some latent
_REVIVED = 48  # points at most, every 50 steps
_WARM_UP = 100  # steps, of each part
_CENTRE = 7.5  # log2 Hz: where the untrained pitch stands
_DECAY = 0.5  # the last share of each part's time, in which the rate falls


class Heard(NamedTuple):
    """What the codes must tell, one row a code, of many recordings in a row."""

    spectra: Tensor  # (codes, FRAMES * N_MELS) log mel magnitudes
    signed_f0: Tensor  # (codes, FRAMES) Hz, negative where unvoiced
    phones: Tensor  # (codes, FRAMES) indices into PHONES


def heard(encoder: Encoder, said: Path, most: int) -> Heard:
    """Spectra, pitch and phones of the first recordings."""
    rows = []
    for i, (_, utterance) in enumerate(recordings.read(said)):
        if i == most:
            break
        frames = len(utterance.samples) // CODE_SAMPLES * FRAMES
        wave = torch.from_numpy(utterance.samples[: frames * HOP].astype(np.float32) / 32768)
        phones = phones_of(utterance, frames, SAMPLE_RATE / HOP).astype(np.int64)
        rows.append(
            (
                encoder.log_mel(wave[None])[0].reshape(-1, FRAMES * N_MELS),
                torch.from_numpy(pitch(utterance.samples)[:frames]).reshape(-1, FRAMES),
                torch.from_numpy(phones).reshape(-1, FRAMES),
            )
        )
    return Heard(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


def fit_components(encoder: Encoder, spectra: Tensor, signed_f0: Tensor) -> None:
    """Sets the encoder's buffers."""
    generator = torch.Generator().manual_seed(0)
    encoder.mean = spectra.mean(0)
    some = torch.randperm(len(spectra), generator=generator)[:_FOR_COMPONENTS]
    _, _, directions = torch.linalg.svd(spectra[some] - encoder.mean, full_matrices=False)
    encoder.basis = directions[:COMPONENTS].T.contiguous()
    encoder.centre = torch.log2(signed_f0.abs()).mean()
    encoder.deviation = ((spectra[some] - encoder.mean) @ encoder.basis).std()


def k_means(points: Tensor, k: int, rounds: int) -> Tensor:
    """Lloyd's algorithm from k random points; an empty cluster restarts at a random point."""
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[:k]].clone()
    for _ in range(rounds):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=k)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        spare = points[torch.randint(len(points), (k,), generator=generator)]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), spare)
    return centres


class Autoencoder(nn.Module):
    """Encoder, channel or codebook, and the decoder's coarse blocks with heads to throw away.

    A code's embedding is its row of the decoder's table plus `into` of its point; through the
    latter the gradient reaches the encoder. `settle` adds it to the table when all is done, and
    the latents' standardisation to the encoder.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        width = codec.decoder.inward.embedding_dim
        self.codec = codec
        self.standard = nn.BatchNorm1d(DIMENSIONS, affine=False, momentum=0.02)
        self.into = nn.Linear(DIMENSIONS, width)
        self.norm = nn.LayerNorm(width)
        self.sizes = (FRAMES * N_MELS, FRAMES * len(PHONES), FRAMES, FRAMES)
        self.outward = nn.Linear(width, sum(self.sizes))
        nn.init.zeros_(codec.decoder.inward.weight)
        # Capacity of DIMENSIONS parallel Gaussian channels (Shannon 1949): log2 N_CODES bits.
        self.noise = (2 ** (2 * math.log2(N_CODES) / DIMENSIONS) - 1) ** -0.5

    def latents(self, measures: Tensor) -> Tensor:
        """Standardised latents (B, T, DIMENSIONS) of measures (B, T, MEASURES)."""
        refined = self.codec.encoder.refined(measures)
        return self.standard(refined.flatten(0, 1)).unflatten(0, refined.shape[:2])

    def losses(self, embedded: Tensor, target: Heard) -> Tensor:
        """(mel, phones, pitch, voicing) of codes' embeddings (B, T, width), (4,)."""
        x = embedded
        for block in self.codec.decoder.coarse:
            x, _ = block(x)
        told = self.outward(self.norm(x))[:, LOOK_AHEAD:].split(self.sizes, dim=-1)
        spectra, f0, phones = target.spectra, target.signed_f0, target.phones
        spectra, f0, phones = (part[:, :-LOOK_AHEAD] for part in (spectra, f0, phones))
        loud = 0.25 + (spectra + 6.5).clamp(0, 4) / 4
        mel = ((told[0] - spectra).abs() * loud).mean()
        named = functional.cross_entropy(told[1].reshape(-1, len(PHONES)), phones.flatten())
        voiced = (f0 > 0).float()
        weight = voiced.clamp_min(0.05)
        octaves = (told[2] + _CENTRE - torch.log2(f0.abs())).abs()
        pitched = (octaves * weight).sum() / weight.sum()
        voicing = functional.binary_cross_entropy_with_logits(told[3], voiced)
        return torch.stack([mel, named, pitched, voicing])

    def through_channel(self, measures: Tensor, target: Heard) -> Tensor:
        latents = self.latents(measures)
        return self.losses(self.into(latents + self.noise * torch.randn_like(latents)), target)

    def through_codes(
        self, measures: Tensor, target: Heard
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses (4,), distance to the points (), latents (B * T, DIMENSIONS), codes (B * T,)."""
        latents = self.latents(measures)
        flat, points = latents.detach().flatten(0, 1), self.codec.encoder.points
        codes = nearest(flat, points)
        chosen = points[codes].view_as(latents).detach()
        straight = chosen + latents - latents.detach()
        rows = self.codec.decoder.inward(codes.view(latents.shape[:2]))
        losses = self.losses(self.into(straight) + rows, target)
        return losses, ((latents - chosen) ** 2).mean(), flat, codes

    @torch.no_grad()
    def settle(self) -> None:
        encoder, standard = self.codec.encoder, self.standard
        assert standard.running_var is not None
        assert standard.running_mean is not None
        deviation = (standard.running_var + standard.eps).sqrt()
        encoder.outward.weight.div_(deviation[:, None])
        encoder.outward.bias.sub_(standard.running_mean).div_(deviation)
        self.codec.decoder.inward.weight.add_(self.into(encoder.points))


class Followers:
    """The points as moving averages of the latents they own."""

    def __init__(self, model: Autoencoder, latents: Tensor) -> None:
        self.rows = model.codec.decoder.inward.weight
        self.points = model.codec.encoder.points
        self.even = BATCH * CROP / N_CODES
        self.points.data.copy_(k_means(latents, N_CODES, _ROUNDS))
        owned = torch.bincount(nearest(latents, self.points.data), minlength=N_CODES)
        self.counts = owned.float() * (BATCH * CROP / len(latents))
        self.sums = self.points.data * self.counts[:, None]

    @torch.no_grad()
    def follow(self, latents: Tensor, codes: Tensor) -> None:
        new = torch.bincount(codes, minlength=N_CODES).to(self.counts)
        self.counts.mul_(_KEEP).add_(new, alpha=1 - _KEEP)
        self.sums.mul_(_KEEP).index_add_(0, codes, latents, alpha=1 - _KEEP)
        owning = (self.counts > 1e-3)[:, None]  # others stay where they are
        self.points.copy_(torch.where(owning, self.sums / self.counts[:, None], self.points))

    @torch.no_grad()
    def revive(self, latents: Tensor) -> None:
        """Moves forsaken points to latents; their rows begin as nothing in particular."""
        forsaken = (self.counts < _FORSAKEN * self.even).nonzero()[:_REVIVED, 0]
        self.points[forsaken] = latents[torch.randint(len(latents), (len(forsaken),))]
        self.counts[forsaken] = 0.5 * self.even
        self.sums[forsaken] = self.points[forsaken] * 0.5 * self.even
        self.rows[forsaken] = 0.0


class Training:
    """The data on the device, and the steps; `of_part` counts those since the part began."""

    def __init__(self, codec: Codec, data: Heard) -> None:
        where = hardware.device()
        self.model = Autoencoder(codec).to(where)
        codec.encoder.points.requires_grad_(False)
        self.data = Heard(*(part.to(where) for part in data))
        self.measures = codec.encoder.measures(self.data.spectra, self.data.signed_f0)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=_CHANNEL_RATE, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self.generator = torch.Generator().manual_seed(0)
        self.running, self.step, self.of_part = torch.zeros(4), 0, 0

    def batch(self) -> tuple[Tensor, Heard]:
        """Measures and targets of random crops; they may run from one recording into the next."""
        starts = torch.randint(len(self.measures) - CROP, (BATCH, 1), generator=self.generator)
        rows = starts + torch.arange(CROP)
        return self.measures[rows], Heard(*(part[rows] for part in self.data))

    def descend(self, losses: Tensor, more: Tensor | float, rate: float) -> None:
        self.of_part += 1
        for group in self.optimiser.param_groups:
            group["lr"] = rate * min(1.0, self.of_part / _WARM_UP)
        self.optimiser.zero_grad()
        ((losses * losses.new_tensor(_WEIGHTS)).sum() + more).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.step += 1
        self.running = self.running.lerp(losses.detach().cpu(), max(0.01, 1 / self.step))
        if self.step % 100 == 0:
            mel, phones, octaves, _ = self.running.tolist()
            print(f"step {self.step} mel {mel:.4f} phones {phones:.4f} nats {octaves:.4f} octaves",
                  flush=True)  # fmt: skip

    def latents(self) -> Tensor:
        """Of the first recordings, (codes, DIMENSIONS)."""
        self.model.eval()
        with torch.no_grad():
            parts = self.measures[:_FOR_POINTS].split(4000)
            rows = torch.cat([self.model.latents(part[None])[0] for part in parts])
        self.model.train()
        return rows


def _falling(begun: float, minutes: float) -> tuple[float, float]:
    """How much of a part's time is over, and the rate's factor."""
    over = (time.time() - begun) / (60 * minutes)
    return over, min(1.0, max(0.03, (1 - over) / _DECAY))


def train(codec: Codec, data: Heard, minutes: float) -> Tensor:
    """Trains `codec` in place; returns the running losses."""
    training = Training(codec, data)
    begun, channel = time.time(), _CHANNEL_SHARE * minutes
    while (now := _falling(begun, channel))[0] < 1:
        measures, target = training.batch()
        losses = training.model.through_channel(measures, target)
        training.descend(losses, 0.0, _CHANNEL_RATE * now[1])
    followers = Followers(training.model, training.latents())
    begun, training.of_part = time.time(), 0
    while (now := _falling(begun, minutes - channel))[0] < 1:
        measures, target = training.batch()
        losses, distance, latents, codes = training.model.through_codes(measures, target)
        training.descend(losses, _COMMIT * distance, _POINTS_RATE * now[1])
        followers.follow(latents, codes)
        if training.step % 50 == 0 and now[0] < 0.6:
            followers.revive(latents)
    training.model.settle()
    codec.cpu()
    return training.running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--most", type=int, default=4000, help="recordings used")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = Codec()
    with torch.inference_mode():
        data = heard(codec.encoder, arguments.said, arguments.most)
    data = Heard(*(part.clone() for part in data))
    fit_components(codec.encoder, data.spectra, data.signed_f0)
    mel, phones, octaves, _ = train(codec, data, arguments.minutes).tolist()
    codec.save(arguments.out)
    print(f"{len(data.spectra)} x 40 ms, {N_CODES} codes: weighted mel {mel:.3f} nepers, "
          f"phones {phones:.3f} nats, {octaves:.3f} octaves")  # fmt: skip


if __name__ == "__main__":
    main()
