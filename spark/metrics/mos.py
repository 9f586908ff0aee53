"""Predicted naturalness of a clip: DNSMOS P.808, a network's guess at a listening test's mean.

The predictor (speechmos; Reddy et al. 2021, arXiv 2010.15258) was trained on noisy and denoised
telephone-band speech, so its scores rank clips of one voice; they do not replace listeners.
The package's `run` also evaluates a second network, twelve times as slow, whose scores nobody
here reads; so its P.808 network and its spectrogram are used directly.
Knows sound only.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from speechmos import dnsmos

from spark.speech.audio import Pcm, resample, to_float

MOS_RATE = 16_000  # Hz; the only rate the predictor takes
_WINDOW = int(9.01 * MOS_RATE)  # it looks at 9.01 s at a time; shorter clips are repeated
_TRIM = 160  # samples left off the window before the spectrogram, as the package does
# Below half a second a clip would be judged on its own echo more than on speech.
_SHORTEST_S = 0.5


@cache
def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # The network is tiny: a pool of spinning threads only takes time from the decoder's.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(dnsmos.__file__).parent / "dnsmos_models" / "model_v8.onnx"
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict(pcm: Pcm, sample_rate: int) -> float | None:
    """Predicted mean opinion score, 1 to 5, of mono int16 sound (n,).

    Any rate and length are taken; longer clips are the mean over windows one second apart.
    None where there is nothing to judge: less than half a second, or silence.
    """
    if len(pcm) < _SHORTEST_S * sample_rate or not np.any(pcm):
        return None
    samples = to_float(resample(pcm, sample_rate, MOS_RATE))
    # The package doubles a clip until it is long enough, and counts windows from that length.
    doublings = max(0, math.ceil(math.log2(_WINDOW / len(samples))))
    samples = np.tile(samples, 2**doublings)
    windows = int(len(samples) // MOS_RATE - _WINDOW / MOS_RATE) + 1
    starts = [i * MOS_RATE for i in range(windows) if i * MOS_RATE + _WINDOW <= len(samples)]
    return float(np.mean([_score(samples[at : at + _WINDOW]) for at in starts]))


def _score(window: NDArray[np.float32]) -> float:
    # The package's spectrogram is a method that uses nothing of its object.
    spectrogram = dnsmos.DNSMOS.audio_melspec(None, audio=window[:-_TRIM])
    features = spectrogram.astype(np.float32)[np.newaxis]
    return float(_session().run(None, {"input_1": features})[0][0][0])
