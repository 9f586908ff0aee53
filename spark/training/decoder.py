"""Trains the codec's decoder on the teacher's recordings and answers, codes given.

`python -m spark.training.decoder --said DIR --codebook FILE --out FILE --minutes M [--critics]`
resumes from FILE's `.state` if it is there. Spectral losses on the sound, and two helpers that
speed it up: the mel spectrum read from the decoder's features by a linear layer that is thrown
away, and the pitch. With `--critics`, for a codec that is trained already, `critic` has a say too:
without it the sound is a mean of what it might be. The answers are what is heard most, so half of
the crops are theirs; those to the number pairs that are held out stay unheard.
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
from spark.training.critic import Critics
from spark.training.pitch import pitch
from spark.training.teacher import Utterance

CROP = 32  # codes: 1.28 s
BATCH = 16
PEAK_RATE, CRITICS_RATE = 3e-3, 1e-3  # of a new decoder, and of one that critics go on with
RESOLUTIONS = ((256, 80), (512, 160), (1024, 320))
_WEIGHTS = (1.0, 0.5, 2.0, 1.0)  # of the spectral, helper's mel, pitch and sound's mel losses
_CRITICS_WEIGHT = 0.2
_ALONE = 300  # steps in which new critics learn before the decoder listens to them
_SLOWNESS = 0.003  # of the moving average of weights that is saved
_FLOOR = 1e-2  # of an STFT magnitude: about 60 dB under speech, the 16-bit noise of the teacher


def heard(folder: Path, most: int) -> Iterator[Utterance]:
    """At most so many of the recordings under `folder`."""
    for _, said in itertools.islice(recordings.read(folder), most):
        yield said


def answers() -> Iterator[Utterance]:
    """Every answer that is trained on."""
    for answer in questions.answers(held_out=False):
        yield teacher.speak(answer)


class Clips:
    """Speech in memory with codes and pitch, and random crops: each group gives an equal share."""

    def __init__(self, codec: Codec, groups: Iterable[Iterable[Utterance]], seed: int) -> None:
        self.waves: list[np.ndarray] = []
        self.pitches: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []
        self.groups: list[range] = []
        for group in groups:
            first = len(self.waves)
            for utterance in group:
                f0 = pitch(utterance.samples)
                self.waves.append(utterance.samples)
                self.pitches.append(f0)
                self.codes.append(np.array(codec.encode(utterance.samples, f0), np.int64))
            self.groups.append(range(first, len(self.waves)))
        self.rng = np.random.default_rng(seed)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B, CROP * 640) in [-1, 1], signed pitch (B, CROP * 4), codes (B, CROP).

        Crops begin on a code's edge; a clip that is too short goes on with its last code.
        """
        waves = np.zeros((BATCH, CROP * CODE_SAMPLES), np.float32)
        pitches = np.full((BATCH, CROP * FRAMES), -180.0, np.float32)
        codes = np.zeros((BATCH, CROP), np.int64)
        for row in range(BATCH):
            group = self.groups[int(self.rng.integers(len(self.groups)))]
            which = group[int(self.rng.integers(len(group)))]
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

    def losses(
        self, waves: Tensor, signed_f0: Tensor, codes: Tensor, noise: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of one batch, and the sound and the teacher's (B, n) that belong together.

        The losses are (4,): spectral, mel of the helper in nepers, pitch in octaves, mel of the
        sound in nepers.
        """
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
        real = waves[:, : sound.shape[1]]
        heard_mel = (codec.encoder.log_mel(sound) - codec.encoder.log_mel(real)).abs().mean()
        return torch.stack([spectral_loss(sound, real), mel, pitched, heard_mel]), sound, real


@dataclass
class Progress:
    """Where a training stands, and its running losses."""

    step: int = 0
    spent: float = 0.0  # seconds in earlier runs

    def __post_init__(self) -> None:
        self.running, self.weight = torch.zeros(4), 0.0

    def add(self, losses: Tensor) -> None:
        self.step += 1
        self.running = 0.98 * self.running + 0.02 * losses.detach().cpu()
        self.weight = 0.98 * self.weight + 0.02

    def line(self, elapsed: float) -> str:
        spectral, mel, pitched, sound = (self.running / max(self.weight, 1e-9)).tolist()
        return (
            f"step {self.step} {elapsed / 60:.1f} min spectral {spectral:.4f} mel {mel:.4f} "
            f"pitch {pitched:.4f} octaves, mel of the sound {sound:.4f}"
        )


class Training:
    """A codec's decoder in training: its helper, optimiser, critics and moving average."""

    def __init__(self, codec: Codec, critics: bool) -> None:
        self.trainee, self.progress = Trainee(codec), Progress()
        nn.Module.to(self.trainee, hardware.device())
        self.optimiser = torch.optim.AdamW(
            self.trainee.parameters(), betas=(0.8, 0.98), weight_decay=1e-3
        )
        self.critics: Critics | None = None
        if critics:
            self.critics = Critics(codec.encoder.log_mel)
            nn.Module.to(self.critics, hardware.device())
        self.average = {k: v.clone() for k, v in codec.decoder.state_dict().items()}

    def resume(self, path: Path) -> bool:
        """Goes on from a checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another codebook, or to a training with other critics.
        """
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location=hardware.device())
        points = self.trainee.codec.encoder.points
        if not torch.equal(state["trainee"]["codec.encoder.points"], points):
            raise ValueError(f"{path} belongs to another codebook: remove it to start anew")
        if (state["critics"] is None) != (self.critics is None):
            raise ValueError(f"{path} was trained with other critics: remove it to start anew")
        self.trainee.load_state_dict(state["trainee"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.critics is not None:
            self.critics.load_state_dict(state["critics"])
            self.critics.optimiser.load_state_dict(state["critics_optimiser"])
        self.average = state["average"]
        self.progress = Progress(state["step"], state["spent"])
        return True

    def step(self, batch: tuple[Tensor, Tensor, Tensor], noise: int, falling: float) -> None:
        """One step on a batch; `falling` from one to nearly nought as time goes by."""
        peak = PEAK_RATE if self.critics is None else CRITICS_RATE
        for group in self.optimiser.param_groups:
            group["lr"] = peak * min(1, (self.progress.step + 1) / 100) * falling
        losses, sound, real = self.trainee.losses(*batch, noise)
        total = (losses * losses.new_tensor(_WEIGHTS)).sum()
        if self.critics is not None:
            self.critics.learn(sound, real, falling)
            if self.progress.step >= _ALONE:
                total = total + _CRITICS_WEIGHT * self.critics.deceived(sound, real)
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 2.0)
        self.optimiser.step()
        for name, value in self.trainee.codec.decoder.state_dict().items():
            self.average[name].lerp_(value, max(_SLOWNESS, 1 / (self.progress.step + 1)))
        self.progress.add(losses)

    def save(self, out: Path) -> None:
        """Writes the codec with the decoder's averaged weights."""
        decoder = self.trainee.codec.decoder
        latest = {k: v.clone() for k, v in decoder.state_dict().items()}
        decoder.load_state_dict(self.average)
        self.trainee.codec.save(out)
        decoder.load_state_dict(latest)

    def checkpoint(self, path: Path, elapsed: float) -> None:
        """Writes what `resume` reads."""
        critics = self.critics
        state = {
            "trainee": self.trainee.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "critics": None if critics is None else critics.state_dict(),
            "critics_optimiser": None if critics is None else critics.optimiser.state_dict(),
            "average": self.average,
            "step": self.progress.step,
            "spent": elapsed,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)


def train(
    said: Path, codebook: Path, out: Path, minutes: float, most: int, critics: bool = False
) -> None:
    """Trains until `minutes` are spent, earlier runs included; saves now and then."""
    codec = Codec.load(codebook).train()
    torch.manual_seed(0)
    clips = Clips(codec, (heard(said, most), answers()), seed=1)
    training, state = Training(codec, critics), out.with_suffix(".state")
    if training.resume(state):  # other crops than the last start's
        clips.rng = np.random.default_rng([1, training.progress.step])
    where = hardware.device()
    begun, shown = time.time() - training.progress.spent, time.time()
    while (elapsed := time.time() - begun) < 60 * minutes:
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * elapsed / (60 * minutes)))
        waves, pitches, codes = (part.to(where) for part in clips.batch())
        training.step((waves, pitches, codes), int(clips.rng.integers(1 << 16)), falling)
        if time.time() - shown > 30:
            shown = time.time()
            print(training.progress.line(elapsed), flush=True)
            training.save(out)
            training.checkpoint(state, elapsed)
    training.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True)
    parser.add_argument("--codebook", type=Path, required=True, help="a codec to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--most", type=int, default=2000, help="recordings used")
    parser.add_argument("--critics", action="store_true", help="go on under critics")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(**vars(arguments))


if __name__ == "__main__":
    main()
