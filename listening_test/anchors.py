"""Anchors made from a clip: the same speech, spoilt in a known way.

They stand at known places of the scale, so that what raters heard is comparable between tests
(ITU-T P.800 and P.808 ask for such reference conditions, ITU-R BS.1534 for low-pass anchors).
Knows samples; which anchors a study has is in its file.
"""

from __future__ import annotations

import numpy as np
from scipy import signal

from listening_test.levelling import Samples, StimulusError, mono

# BS.1534's low-pass anchor of 3.5 kHz is 50 dB down at 4.5 kHz; here at the same ratio, 60 dB.
_STOP = 4.0 / 3.5
_STOP_DB = 60.0


def low_passed(samples: Samples, rate: int, cutoff: int, name: str) -> Samples:
    """The clip without what lies above `cutoff` Hz, in time with the clip: (n,) at full scale 1.

    Args:
        samples: (n,) or (n, channels).
        name: of the anchor's clip, for messages.

    Raises:
        StimulusError: the clip holds nothing above `cutoff`, so that the anchor would be the clip.
    """
    stop = cutoff * _STOP
    if stop >= rate / 2:
        raise StimulusError(
            f"{name}: at {rate} Hz there is no low-pass anchor of {cutoff} Hz. Take reference "
            f"clips of more than {2 * stop:.0f} Hz, or another anchor."
        )
    taps, beta = signal.kaiserord(_STOP_DB, (stop - cutoff) / (rate / 2))
    taps |= 1  # odd: a whole number of samples of delay
    kernel = signal.firwin(taps, (cutoff + stop) / 2, window=("kaiser", beta), fs=rate)
    filtered: Samples = signal.fftconvolve(mono(samples), kernel, mode="same")
    return filtered


def modulated_noise(samples: Samples, q_db: float, seed: list[int]) -> Samples:
    """The clip with noise that follows it, Q dB below it at every moment: (n,).

    The modulated noise reference unit of ITU-T P.810: x (1 + 10^(-Q/20) N), N Gaussian of variance
    1. As in its wideband use nothing is cut off; noise reaches as high as the clip's rate does.

    Args:
        samples: (n,) or (n, channels).
        seed: of the noise, so that a clip prepared again is the same.
    """
    clean = mono(samples)
    clean = clean - clean.mean(axis=0) if len(clean) else clean
    noise = np.random.default_rng(seed).standard_normal(len(clean))
    noisy: Samples = clean * (1 + 10 ** (-q_db / 20) * noise)
    return noisy
