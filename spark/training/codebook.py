"""Fits the codec's encoder: principal components of mel spectra, then k-means.

`python -m spark.training.codebook --said DIR --out FILE`. No gradients, a few minutes. Knows
nothing of the decoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spark.speech.codec import (
    CODE_SAMPLES,
    COMPONENTS,
    FRAMES,
    HOP,
    N_CODES,
    N_MELS,
    Codec,
    Encoder,
    nearest,
)
from spark.training import recordings
from spark.training.pitch import pitch

ROUNDS = 25
_FOR_COMPONENTS = 20_000  # vectors that the principal components are taken from


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


def fit(encoder: Encoder, spectra: Tensor, pitches: Tensor) -> None:
    """Sets the encoder's buffers."""
    generator = torch.Generator().manual_seed(0)
    encoder.mean = spectra.mean(0)
    some = torch.randperm(len(spectra), generator=generator)[:_FOR_COMPONENTS]
    _, _, directions = torch.linalg.svd(spectra[some] - encoder.mean, full_matrices=False)
    encoder.basis = directions[:COMPONENTS].T.contiguous()
    encoder.centre = torch.log2(pitches.abs()).mean()
    encoder.points = k_means(encoder.project(spectra, pitches), N_CODES, ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=2500, help="recordings used")
    arguments = parser.parse_args()
    codec = Codec()
    with torch.inference_mode():
        spectra, pitches = measured(codec.encoder, arguments.said, arguments.most)
        fit(codec.encoder, spectra, pitches)
    codec.save(arguments.out)
    print(f"{len(spectra)} vectors of 40 ms, {N_CODES} codes")


if __name__ == "__main__":
    main()
