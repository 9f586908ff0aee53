"""The embedded model's codec: 16 kHz speech <-> one of 2,048 codes for every 40 ms.

Encoder: log mel spectra and pitch of 40 ms -> principal components -> ConvNeXt blocks (Liu et al.
2022, arXiv 2201.03545) -> nearest of the codebook's points (VQ-VAE, arXiv 1711.00937). Decoder:
causal blocks of the same kind that see LOOK_AHEAD codes ahead and predict pitch and two filters for
`source_filter`; a postfilter gives the filters back the movement in time that averaging takes away.
Decoding always runs in granules of four codes, so that a stream and a whole clip give the same
samples, bit for bit.
Knows nothing of language models or of how it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from spark.speech import source_filter
from spark.speech.source_filter import DELAY, HOP, N_BINS, SAMPLE_RATE, SourceFilter, SourceState

N_CODES = 2048
FRAMES = 4  # spectral frames a code
CODE_SAMPLES = FRAMES * HOP  # 640: 40 ms
FRAME_RATE = SAMPLE_RATE / CODE_SAMPLES
GRANULE = 4  # codes decoded at a time: one chunk of the TA4 layout
LOOK_AHEAD = 3  # codes the decoder sees beyond the one it speaks
SPREAD = 2  # frames to either side that the postfilter sees
SHARPNESS = 0.6  # of the postfilter: +0.15 predicted MOS at equal WER on 45 training sentences
N_MELS = 80
COMPONENTS = 96  # principal components of a code's mel spectra
MEASURES = COMPONENTS + 4  # and two values each of pitch and voicing
DIMENSIONS = 12  # of the codebook's points
_FLOOR = -7.5  # of a log mel magnitude: the teacher's noise floor, so that silence is one sound
# How much pitch (octaves) and voicing weigh against log mel spectra before the encoder.
_PITCH_WEIGHT, _VOICING_WEIGHT = 25.0, 6.0
_F0_RANGE = (80.0, 400.0)


class Block(nn.Module):
    """ConvNeXt block on (B, T, C): depthwise convolution, then a pointwise bottleneck.

    A window of `kernel` inputs, the last `ahead` of them in the future; causal without. The caller
    may hand in the last kernel - 1 inputs as `past` of a causal block; they are silence without it.
    """

    def __init__(self, width: int, kernel: int, expansion: int = 3, ahead: int = 0) -> None:
        super().__init__()
        self.reach, self.ahead = kernel - 1, ahead
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the block's output (B, T, C) and its last kernel - 1 inputs."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.reach - self.ahead, x.shape[2])
        line = torch.cat([past, x, x.new_zeros(x.shape[0], self.ahead, x.shape[2])], dim=1)
        y = self.norm(self.depthwise(line.transpose(1, 2)).transpose(1, 2))
        y = self.down(functional.gelu(self.up(y)))
        return x + self.scale * y, line[:, -self.reach :]


class Encoder(nn.Module):
    """Samples and pitch -> codes; sees 12 codes to either side, since encoding need not stream."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        mel = mel_filter_bank(N_BINS, N_MELS, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney")
        self.mel: Tensor
        self.mean: Tensor
        self.basis: Tensor
        self.centre: Tensor
        self.deviation: Tensor
        self.register_buffer("mel", torch.tensor(mel, dtype=torch.float32), persistent=False)
        self.register_buffer("mean", torch.zeros(FRAMES * N_MELS))
        self.register_buffer("basis", torch.zeros(FRAMES * N_MELS, COMPONENTS))
        self.register_buffer("centre", torch.zeros(()))  # mean pitch, log2 Hz
        self.register_buffer("deviation", torch.ones(()))  # of the components
        self.inward = nn.Linear(MEASURES, width)
        self.blocks = nn.ModuleList(Block(width, 7, expansion=2, ahead=3) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, DIMENSIONS)
        self.points = nn.Parameter(torch.randn(N_CODES, DIMENSIONS))

    def log_mel(self, samples: Tensor) -> Tensor:
        """Log mel magnitudes (B, samples / 160, N_MELS) of samples (B, n) in [-1, 1]."""
        margin = (source_filter.N_FFT - HOP) // 2
        frames = functional.pad(samples, (margin, margin)).unfold(1, source_filter.N_FFT, HOP)
        window = torch.hann_window(source_filter.N_FFT, device=samples.device)
        magnitudes = torch.fft.rfft(frames * window).abs() @ self.mel
        return torch.log(magnitudes.clamp_min(1e-5)).clamp_min(_FLOOR)

    def measures(self, spectra: Tensor, signed_f0: Tensor) -> Tensor:
        """Inputs (codes, MEASURES) from spectra (codes, 4 N_MELS) and pitch (codes, 4), negative
        where unvoiced."""
        voiced = (signed_f0 > 0).float()[:, 1::2]
        octaves = torch.log2(signed_f0.abs())[:, 1::2] - self.centre
        parts = ((spectra - self.mean) @ self.basis, octaves * voiced * _PITCH_WEIGHT)
        return torch.cat([*parts, voiced * _VOICING_WEIGHT], dim=1) / self.deviation

    def refined(self, measures: Tensor) -> Tensor:
        """What is quantised, (B, codes, DIMENSIONS), of measures (B, codes, MEASURES)."""
        x = self.inward(measures)
        for block in self.blocks:
            x, _ = block(x)
        return self.outward(self.norm(x))

    def forward(self, measures: Tensor) -> Tensor:
        """Codes (B, codes) of measures (B, codes, MEASURES)."""
        refined = self.refined(measures)
        return nearest(refined.flatten(0, 1), self.points).reshape(refined.shape[:2])


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index (n,) of the centre (k, d) nearest to each point (n, d)."""
    norms = (centres * centres).sum(1)
    return torch.cat([(norms - 2 * part @ centres.T).argmin(1) for part in points.split(4096)])


class Decoder(nn.Module):
    """Codes (B, codes) -> per 10 ms frame: f0 (Hz), log pulse and noise filters.

    The frames come LOOK_AHEAD codes late: the first of them describe no speech.
    """

    def __init__(self, width: int = 256, fine_width: int = 160) -> None:
        super().__init__()
        self.inward = nn.Embedding(N_CODES, width)
        self.coarse = nn.ModuleList(Block(width, 7) for _ in range(4))
        self.spread = nn.Linear(width, FRAMES * fine_width)
        self.fine = nn.ModuleList(Block(fine_width, 7) for _ in range(3))
        self.norm = nn.LayerNorm(fine_width)
        self.outward = nn.Linear(fine_width, 1 + 2 * N_BINS)
        nn.init.constant_(self.outward.bias[1:], -3.0)  # speech is far below one
        self.sizes = (1, N_BINS, N_BINS)

    def features(
        self, codes: Tensor, past: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Normed features (B, 4 codes, fine width) and the blocks' memory."""
        x = self.inward(codes)
        memory: list[Tensor] = []
        for block in (*self.coarse, None, *self.fine):
            if block is None:
                x = self.spread(x).reshape(x.shape[0], FRAMES * x.shape[1], -1)
                continue
            x, kept = block(x, past[len(memory)] if past else None)
            memory.append(kept)
        return self.norm(x), memory

    def controls(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f0 (B, frames) in Hz and two filters (B, frames, N_BINS) of features."""
        pitch, pulse, noise = self.outward(features).split(self.sizes, dim=-1)
        low, high = _F0_RANGE
        return low * (high / low) ** torch.sigmoid(pitch[..., 0]), pulse, noise


def sharpened(filters: Tensor) -> Tensor:
    """Log filters (B, frames + 2 SPREAD, bins), their movement in time enlarged: (B, frames, bins).

    A decoder trained on mean errors speaks too evenly; parametric synthesis mends that with
    postfilters on the modulation spectrum (Takamichi et al. 2014, ICASSP). This one adds
    SHARPNESS times the distance from the mean of the 2 SPREAD + 1 frames around.
    """
    here = filters[:, SPREAD:-SPREAD]
    return here + SHARPNESS * (here - filters.unfold(1, 2 * SPREAD + 1, 1).mean(-1))


class Codec(nn.Module):
    """Encoder, decoder and synthesis under one roof; a `Vocoder` of spark.models."""

    sample_rate = SAMPLE_RATE
    frame_rate = FRAME_RATE

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.synthesis = SourceFilter()

    @classmethod
    def load(cls, path: Path) -> Codec:
        """Reads weights written by `save`; strict about names and shapes."""
        codec = cls()
        codec.load_state_dict(load_file(path))  # copied into float32
        return codec.eval()

    def save(self, path: Path) -> None:
        """Writes the weights in float16, at half the size."""
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, path)

    @torch.inference_mode()
    def encode(self, samples: np.ndarray, signed_f0: np.ndarray) -> list[int]:
        """int16 mono (n,) at 16 kHz and its pitch (n // 160,) -> ceil(n / 640) codes.

        Pitch is in Hz, negative where unvoiced (`spark.training.pitch` measures it).
        """
        padded = np.pad(samples, (0, -len(samples) % CODE_SAMPLES)).astype(np.float32) / 32768
        f0 = np.pad(signed_f0, (0, len(padded) // HOP - len(signed_f0)), mode="edge")
        spectra = self.encoder.log_mel(torch.from_numpy(padded)[None])[0]
        measures = self.encoder.measures(
            spectra.reshape(-1, FRAMES * N_MELS), torch.from_numpy(f0).reshape(-1, FRAMES)
        )
        return [int(code) for code in self.encoder(measures[None])[0]]

    @property
    def code_points(self) -> Tensor:
        """The codebook's points (N_CODES, DIMENSIONS): sounds of near codes are near."""
        return self.encoder.points.detach()

    def stream(self) -> CodecStream:
        """A fresh stream: push codes, get samples."""
        return CodecStream(self)

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """Codes -> int16 mono (640 * len(codes),) at 16 kHz."""
        stream = self.stream()
        return np.concatenate([stream.push(codes), stream.flush()])


class CodecStream:
    """Codes in, int16 samples out, in granules; whatever the chunking, the samples are the same."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.waiting: list[int] = []
        self.received = 0
        self.given = 0
        # Samples before the first real one.
        self.skip = LOOK_AHEAD * CODE_SAMPLES + SPREAD * HOP + DELAY
        self.last = 0  # the latest code spoken: the end of a clip is padded with it
        self.past: list[Tensor] | None = None
        self.line: Tensor | None = None  # the last 2 SPREAD frames before the postfilter
        self.source: SourceState | None = None

    def push(self, codes: Sequence[int]) -> np.ndarray:
        """Takes any number of codes; returns the samples (n,) that are final by now."""
        for code in codes:
            if not 0 <= code < N_CODES:
                raise ValueError(f"speech code {code} is outside 0..{N_CODES - 1}")
        self.waiting += codes
        self.received += len(codes)
        pieces = [np.zeros(0, np.int16)]
        while len(self.waiting) >= GRANULE:
            pieces.append(self._granule(self.waiting[:GRANULE]))
            del self.waiting[:GRANULE]
        ready = np.concatenate(pieces)
        self.given += len(ready)
        return ready

    def flush(self) -> np.ndarray:
        """The rest of the clip; 640 samples a code in all. The stream is finished after it."""
        if not self.received:
            return np.zeros(0, np.int16)
        last = self.waiting[-1] if self.waiting else self.last
        pieces = [np.zeros(0, np.int16)]
        while self.given + sum(map(len, pieces)) < self.received * CODE_SAMPLES:
            granule = (self.waiting + [last] * GRANULE)[:GRANULE]
            self.waiting = []
            pieces.append(self._granule(granule))
        rest = np.concatenate(pieces)
        return rest[: self.received * CODE_SAMPLES - self.given]

    @torch.inference_mode()
    def _granule(self, codes: list[int]) -> np.ndarray:
        self.last = codes[-1]
        features, self.past = self.codec.decoder.features(torch.tensor([codes]), self.past)
        f0, pulse, noise = self._postfiltered(*self.codec.decoder.controls(features))
        if self.source is None:
            self.source = source_filter.initial_state(f0[:, :1])
        samples, self.source = self.codec.synthesis(f0, pulse, noise, self.source)
        kept = samples[0, self.skip :] if self.skip < samples.shape[1] else samples[0, :0]
        self.skip = max(0, self.skip - samples.shape[1])
        return torch.round(kept.clamp(-1, 1) * 32767).to(torch.int16).numpy()

    def _postfiltered(
        self, f0: Tensor, pulse: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The controls of SPREAD frames ago, sharpened."""
        frames = torch.cat([f0[..., None], pulse, noise], dim=-1)
        if self.line is None:
            self.line = frames[:, :1].expand(-1, 2 * SPREAD, -1)
        line = torch.cat([self.line, frames], dim=1)
        self.line = line[:, -2 * SPREAD :]
        pulse, noise = sharpened(line[..., 1:]).split(N_BINS, dim=-1)
        return line[:, SPREAD:-SPREAD, 0], pulse, noise
