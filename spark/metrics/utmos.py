"""Predicted naturalness by UTMOSv2, the predictor of the paper's figures, where it is installed.

An extra: the package and its weights (`pip install git+https://github.com/sarulab-speech/UTMOSv2`;
arXiv 2409.09305) are no requirement. Its scores and DNSMOS's (`mos`) are different quantities and
never share a column. Knows sound only.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from spark.speech.audio import Pcm, resample, to_float

_RATE = 16_000  # Hz; the only rate the predictor takes
_SHORTEST_S = 0.5  # as of DNSMOS: below it there is more echo than speech


def unavailable() -> str:
    """Why it cannot be used and what helps, or an empty string."""
    if find_spec("utmosv2") is not None:
        return ""
    return (
        "UTMOSv2 is not installed: pip install git+https://github.com/sarulab-speech/UTMOSv2 "
        "(it fetches its weights at the first use), or leave it out"
    )


@cache
def _model() -> Any:
    import utmosv2

    return utmosv2.create_model(pretrained=True)


def predict(pcm: Pcm, sample_rate: int) -> float | None:
    """Predicted mean opinion score, 1 to 5, of mono int16 sound (n,).

    None where there is nothing to judge: less than half a second, or silence. Whatever the
    predictor draws at random is drawn from the same seed for each clip: a clip has one score.
    """
    if len(pcm) < _SHORTEST_S * sample_rate or not np.any(pcm):
        return None
    samples = to_float(resample(pcm, sample_rate, _RATE))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the package draws from numpy's global generator
        found = _model().predict(data=samples, device=device, num_workers=0, verbose=False)
    return float(np.asarray(found).reshape(()))
