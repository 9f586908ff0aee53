"""Trains the codec's encoder and codebook with the decoder's first half, on mel spectra and pitch.

`python -m spark.training.codebook --said DIR --out FILE --minutes M`. Begins at k-means; then
encoder, points and decoder move together (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937), and
the encoder learns to choose codes in view of their neighbours. No sound is made here, which makes
a step cheap; `spark.training.decoder` learns that afterwards, with the codes given.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spark.speech.codec import (
    CODE_SAMPLES,
    COMPONENTS,
    FRAMES,
    HOP,
    LOOK_AHEAD,
    MEASURES,
    N_CODES,
    N_MELS,
    Codec,
    Encoder,
    nearest,
)
from spark.training import hardware, recordings
from spark.training.decoder import Trainee, octaves_off
from spark.training.pitch import pitch

CROP = 40  # codes: 1.6 s
BATCH = 12
PEAK_RATE = 1e-3
_FOR_COMPONENTS = 20_000  # vectors that the principal components are taken from
_ROUNDS = 25  # of k-means
_COMMIT, _FOLLOW = 0.1, 0.5  # weights: measures stay near their point, points near their measures
_POINTS_RATE = 5.0  # of the points, relative to all else
_PITCH = 2.0  # weight of the pitch, in octaves, beside mel spectra in nepers
_DECAY = 0.4  # the last share of the time, in which the rate falls


def measured(encoder: Encoder, said: Path, most: int) -> tuple[Tensor, Tensor]:
    """Spectra (codes, 4 N_MELS) and signed pitch (codes, 4) of the first recordings."""
    spectra, pitches = [], []
    for i, (_, utterance) in enumerate(recordings.read(said)):
        if i == most:
            break
        length = len(utterance.samples) // CODE_SAMPLES * CODE_SAMPLES
        wave = torch.from_numpy(utterance.samples[:length].astype(np.float32) / 32768)
        spectra.append(encoder.log_mel(wave[None])[0].reshape(-1, FRAMES * N_MELS))
        f0 = pitch(utterance.samples)[: length // HOP]
        pitches.append(torch.from_numpy(f0).reshape(-1, FRAMES))
    return torch.cat(spectra), torch.cat(pitches)


def fit_components(encoder: Encoder, spectra: Tensor, pitches: Tensor) -> None:
    """Sets the encoder's buffers."""
    generator = torch.Generator().manual_seed(0)
    encoder.mean = spectra.mean(0)
    some = torch.randperm(len(spectra), generator=generator)[:_FOR_COMPONENTS]
    _, _, directions = torch.linalg.svd(spectra[some] - encoder.mean, full_matrices=False)
    encoder.basis = directions[:COMPONENTS].T.contiguous()
    encoder.centre = torch.log2(pitches.abs()).mean()
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
    """Encoder, codebook, and the decoder up to its features, pitch and the mel helper.

    A code's embedding is its row of the decoder's table plus `into` of its point; through the
    latter the gradient reaches the encoder. `tabulate` adds it to the table when all is done.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.trainee = Trainee(codec)
        self.into = nn.Linear(MEASURES, codec.decoder.inward.embedding_dim)
        with torch.no_grad():
            codec.decoder.inward.weight.mul_(0.1)

    def losses(self, spectra: Tensor, measures: Tensor, signed_f0: Tensor) -> Tensor:
        """(mel in nepers, pitch in octaves, distances to and of the points), (4,).

        spectra (B, T, 4 N_MELS), measures (B, T, MEASURES), pitch (B, T, 4).
        """
        codec, late = self.trainee.codec, LOOK_AHEAD * FRAMES
        refined = codec.encoder.refined(measures)
        points = codec.encoder.points
        codes = nearest(refined.detach().flatten(0, 1), points.detach()).view(refined.shape[:2])
        chosen = points[codes]
        straight = chosen.detach() + refined - refined.detach()
        features, _ = codec.decoder.features_of(self.into(straight) + codec.decoder.inward(codes))
        f0, _, _ = codec.decoder.controls(features)
        target = spectra.flatten(1).unflatten(1, (-1, N_MELS))[:, :-late]
        mel = (self.trainee.mel(features)[:, late:] - target).abs().mean()
        pitched = octaves_off(f0[:, late:], signed_f0.flatten(1)[:, :-late])
        commit = ((refined - chosen.detach()) ** 2).mean()
        follow = ((refined.detach() - chosen) ** 2).mean()
        return torch.stack([mel, pitched, commit, follow])

    @torch.no_grad()
    def tabulate(self) -> None:
        codec = self.trainee.codec
        codec.decoder.inward.weight.add_(self.into(codec.encoder.points))


def train(codec: Codec, spectra: Tensor, pitches: Tensor, minutes: float) -> Tensor:
    """Trains `codec` in place; returns the running losses."""
    generator = torch.Generator().manual_seed(0)
    where = hardware.device()
    model, points = Autoencoder(codec).to(where), codec.encoder.points
    spectra, pitches = spectra.to(where), pitches.to(where)
    measures = codec.encoder.measures(spectra, pitches)
    with torch.no_grad():
        points.copy_(k_means(measures.cpu(), N_CODES, _ROUNDS))
    others = [p for p in model.parameters() if p is not points]
    groups = [{"params": others, "scale": 1.0}, {"params": [points], "scale": _POINTS_RATE}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    weights = torch.tensor([1.0, _PITCH, _COMMIT, _FOLLOW], device=where)
    begun, shown, step, running = time.time(), 0.0, 0, torch.zeros(4)
    while (progress := (time.time() - begun) / (60 * minutes)) < 1:
        rate = PEAK_RATE * min(1.0, (step + 1) / 200, max(0.02, (1 - progress) / _DECAY))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        starts = torch.randint(len(spectra) - CROP, (BATCH, 1), generator=generator)
        rows = starts + torch.arange(CROP)
        losses = model.losses(spectra[rows], measures[rows], pitches[rows])
        optimiser.zero_grad()
        (losses * weights).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        running = running.lerp(losses.detach().cpu(), max(0.01, 1 / step))
        if time.time() - shown > 30:
            shown = time.time()
            print(f"step {step} mel {running[0]:.4f} pitch {running[1]:.4f} octaves", flush=True)
    model.tabulate()
    codec.cpu()
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--most", type=int, default=2500, help="recordings used")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = Codec()
    with torch.inference_mode():
        spectra, pitches = measured(codec.encoder, arguments.said, arguments.most)
    spectra, pitches = spectra.clone(), pitches.clone()
    fit_components(codec.encoder, spectra, pitches)
    mel, octaves, _, _ = train(codec, spectra, pitches, arguments.minutes).tolist()
    codec.save(arguments.out)
    print(f"{len(spectra)} x 40 ms, {N_CODES} codes: mel {mel:.3f} nepers, {octaves:.3f} octaves")


if __name__ == "__main__":
    main()
