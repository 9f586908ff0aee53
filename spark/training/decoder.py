"""Trains the codec's decoder on the teacher's recordings and answers, codes given.

`python -m spark.training.decoder --said DIR --codebook FILE --out FILE --minutes M` resumes from
FILE's `.state` if it is there. Spectral losses on the sound, and two helpers that speed it up: the
mel spectrum read from the decoder's features by a linear layer that is thrown away, and the pitch.
The answers are what is heard most; those to the number pairs that are held out stay unheard.
The filters are trained under the measured pitch, so that they need not blur for its errors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spark import hardware
from spark.speech.codec import CODE_SAMPLES, FRAMES, LOOK_AHEAD, N_MELS, Codec
from spark.speech.source_filter import DELAY, HOP, initial_state
from spark.training import questions, recordings, teacher
from spark.training.pitch import pitch
from spark.training.teacher import Utterance

CROP = 32  # codes: 1.28 s
BATCH = 16
PEAK_RATE = 3e-3
RESOLUTIONS = ((256, 80), (512, 160), (1024, 320))
_WEIGHTS = (1.0, 1.0, 2.0)  # of the spectral, mel and pitch losses
_FLOOR = 1e-2  # of an STFT magnitude: about 60 dB under speech, the 16-bit noise of the teacher


def heard(folder: Path, most: int) -> Iterator[Utterance]:
    """At most so many of the recordings under `folder`, and every answer that is trained on."""
    for _, said in itertools.islice(recordings.read(folder), most):
        yield said
    for answer in questions.answers(held_out=False):
        yield teacher.speak(answer)


class Clips:
    """Recordings in memory with codes and pitch, and random crops of them."""

    def __init__(self, codec: Codec, said: Iterable[Utterance], seed: int) -> None:
        self.waves: list[np.ndarray] = []
        self.pitches: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []
        for utterance in said:
            f0 = pitch(utterance.samples)
            self.waves.append(utterance.samples)
            self.pitches.append(f0)
            self.codes.append(np.array(codec.encode(utterance.samples, f0), np.int64))
        self.rng = np.random.default_rng(seed)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B, CROP * 640) in [-1, 1], signed pitch (B, CROP * 4), codes (B, CROP).

        Crops begin on a code's edge; a clip that is too short goes on with its last code.
        """
        waves = np.zeros((BATCH, CROP * CODE_SAMPLES), np.float32)
        pitches = np.full((BATCH, CROP * FRAMES), -180.0, np.float32)
        codes = np.zeros((BATCH, CROP), np.int64)
        for row in range(BATCH):
            which = int(self.rng.integers(len(self.waves)))
            line = self.codes[which]
            start = int(self.rng.integers(max(1, len(line) - CROP + 1)))
            wave = self.waves[which][start * CODE_SAMPLES :][: CROP * CODE_SAMPLES]
            f0 = self.pitches[which][start * FRAMES :][: CROP * FRAMES]
            waves[row, : len(wave)], pitches[row, : len(f0)] = wave / 32768, f0
            codes[row] = np.pad(line[start : start + CROP], (0, CROP), mode="edge")[:CROP]
        return torch.from_numpy(waves), torch.from_numpy(pitches), torch.from_numpy(codes)


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Log-magnitude L1 plus spectral convergence, mean over RESOLUTIONS (arXiv 1910.11480)."""
    total = output.new_zeros(())
    for n_fft, hop in RESOLUTIONS:
        window = torch.hann_window(n_fft, device=output.device)
        a, b = (
            torch.stft(x, n_fft, hop, window=window, return_complex=True).abs()
            for x in (output, target)
        )
        logs = (torch.log(a + _FLOOR) - torch.log(b + _FLOOR)).abs().mean()
        total = total + logs + torch.linalg.norm(a - b) / torch.linalg.norm(b).clamp_min(1.0)
    return total / len(RESOLUTIONS)


def octaves_off(f0: Tensor, signed_f0: Tensor) -> Tensor:
    """Mean distance of pitch (B, frames) in Hz from the measured; unvoiced frames hardly count."""
    weight = torch.where(signed_f0 > 0, 1.0, 0.05)
    octaves = (torch.log2(f0) - torch.log2(signed_f0.abs())).abs()
    return (octaves * weight).sum() / weight.sum()


class Trainee(nn.Module):
    """The codec and the helper that is thrown away."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec
        self.mel = nn.Linear(codec.decoder.outward.in_features, N_MELS)

    def losses(self, waves: Tensor, signed_f0: Tensor, codes: Tensor, noise: int) -> Tensor:
        """(spectral, mel in nepers, pitch in octaves) of one batch, (3,)."""
        codec, late = self.codec, LOOK_AHEAD * FRAMES
        features, _ = codec.decoder.features(codes)
        f0, pulse, hiss = codec.decoder.controls(features)
        target = signed_f0.abs()
        pitched = octaves_off(f0[:, late:], signed_f0[:, :-late])
        log_mel = codec.encoder.log_mel(waves)[:, :-late]
        mel = (self.mel(features)[:, late:] - log_mel).abs().mean()
        driven = torch.cat([target[:, :1].expand(-1, late), target[:, :-late]], dim=1)
        sound, _ = codec.synthesis(driven, pulse, hiss, initial_state(driven[:, :1], noise))
        sound = sound[:, late * HOP + DELAY :]
        return torch.stack([spectral_loss(sound, waves[:, : sound.shape[1]]), mel, pitched])


@dataclass
class Progress:
    """Where a training stands, and its running losses."""

    step: int = 0
    spent: float = 0.0  # seconds in earlier runs

    def __post_init__(self) -> None:
        self.running, self.weight = torch.zeros(3), 0.0

    def add(self, losses: Tensor) -> None:
        self.step += 1
        self.running = 0.98 * self.running + 0.02 * losses.detach().cpu()
        self.weight = 0.98 * self.weight + 0.02

    def line(self, elapsed: float) -> str:
        spectral, mel, pitched = (self.running / max(self.weight, 1e-9)).tolist()
        return (
            f"step {self.step} {elapsed / 60:.1f} min spectral {spectral:.4f} mel {mel:.4f} "
            f"pitch {pitched:.4f} octaves"
        )


def train(said: Path, codebook: Path, out: Path, minutes: float, most: int) -> None:
    """Trains until `minutes` are spent, earlier runs included; saves now and then."""
    codec = Codec.load(codebook).train()
    torch.manual_seed(0)
    clips = Clips(codec, heard(said, most), seed=1)
    where = hardware.device()
    trainee = Trainee(codec).to(where)
    optimiser = torch.optim.AdamW(trainee.parameters(), betas=(0.8, 0.98), weight_decay=1e-3)
    state_path, progress = out.with_suffix(".state"), Progress()
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=where)
        if not torch.equal(state["trainee"]["codec.encoder.points"], codec.encoder.points):
            raise ValueError(f"{state_path} belongs to another codebook: remove it to start anew")
        trainee.load_state_dict(state["trainee"])
        optimiser.load_state_dict(state["optimiser"])
        progress = Progress(state["step"], state["spent"])
        clips.rng = np.random.default_rng([1, progress.step])  # other crops than the last start's
    begun, shown = time.time() - progress.spent, time.time()
    while (elapsed := time.time() - begun) < 60 * minutes:
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * elapsed / (60 * minutes)))
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * min(1, (progress.step + 1) / 100) * falling
        waves, pitches, codes = (part.to(where) for part in clips.batch())
        losses = trainee.losses(waves, pitches, codes, int(clips.rng.integers(1 << 16)))
        optimiser.zero_grad()
        (losses * losses.new_tensor(_WEIGHTS)).sum().backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 2.0)
        optimiser.step()
        progress.add(losses)
        if time.time() - shown > 30:
            shown = time.time()
            print(progress.line(elapsed), flush=True)
            codec.save(out)
            kept = {"trainee": trainee.state_dict(), "optimiser": optimiser.state_dict()}
            partial = state_path.with_suffix(".partial")
            torch.save(kept | {"step": progress.step, "spent": elapsed}, partial)
            partial.rename(state_path)
    codec.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--codebook", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--most", type=int, default=2000, help="recordings used")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(**vars(arguments))


if __name__ == "__main__":
    main()
