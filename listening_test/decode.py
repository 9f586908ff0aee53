"""Stimuli from spark: one prompt decoded under several depth policies, before any test.

The only place of this half that knows spark. spark is imported when a study asks for a policy,
so that a test of plain WAV folders needs no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    from spark import models

    return models.load(name)


def sources_sha256(model: str) -> str:
    """Hash of the model's files: other weights speak differently, so their clips are others."""
    from spark import models

    digest = hashlib.sha256(model.encode())
    for path in models.files(model):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def decode_policies(
    model: str, prompt: str, policies: Sequence[str], seed: int
) -> dict[str, tuple[npt.NDArray[np.int16], int]]:
    """Speech of one prompt under each policy: name -> (int16 mono samples (n,), Hz).

    The settings are those the Compare page starts with.

    Raises:
        ValueError: the model cannot take the prompt, or a policy's reply has no sound.
    """
    from spark.compare import compare
    from spark.comparison import CompareSettings

    lm = _model(model)
    comparison = compare(lm, prompt, CompareSettings.of(lm, seed=seed), listen=False)
    sounds = {}
    for name in policies:
        reply = comparison.reply(name)
        if reply is None or reply.pcm is None or reply.sample_rate is None:
            raise ValueError(f"{name} gives no sound for the prompt {prompt!r}; take another one")
        sounds[name] = (reply.pcm, reply.sample_rate)
    return sounds
