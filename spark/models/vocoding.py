"""What the vocoders of the large models share: where their files are, and sound out of pieces.

Knows files, int16 and streams; knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from spark.models.base import VocoderStream
from spark.speech.audio import Pcm, to_pcm

EMPTY = np.zeros(0, np.int16)


@dataclass(frozen=True)
class Parts:
    """Files that a model needs beside its language model.

    Attributes:
        what: they are, for people.
        repo: OWNER/NAME of the hub.
        files: by path in the repository.
        nbytes: of them all, as published.
        own: whether it is the language model's own repository.
        packages: of Python that read them, beside what the language model needs.
    """

    what: str
    repo: str
    files: tuple[str, ...]
    nbytes: int
    own: bool = False
    packages: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What fetches the files into the hub's cache."""
        return f"hf download {self.repo} {' '.join(self.files)}"

    def found(self, folder: Path) -> Path | None:
        """The folder that holds all files, None where there is none.

        Looked at: the model's own folder where the files are of its repository, one of the other
        repository's name in it or beside it, and the hub's cache.
        """
        name = self.repo.split("/")[1]
        places = [folder] if self.own else [folder / name, folder.parent / name]
        cached = try_to_load_from_cache(self.repo, self.files[0])
        if isinstance(cached, str):
            places.append(Path(cached.removesuffix(self.files[0])))
        return next((place for place in places if not self._missing(place)), None)

    def reason(self, folder: Path) -> str:
        """Why it cannot be used and the commands that help; empty where it can."""
        lacking = [name for name in self.packages if find_spec(name) is None]
        commands = [f"`python -m pip install {' '.join(lacking)}`"] if lacking else []
        if not self.found(folder):
            lacking = [*(self._missing(folder) if self.own else self.files), *lacking]
            commands.insert(0, f"`{self.command}`")
        if not commands:
            return ""
        return (
            f"{self.what} is not here ({', '.join(lacking)}): run {' and '.join(commands)} and "
            "start again"
        )

    def _missing(self, place: Path) -> list[str]:
        return [name for name in self.files if not (place / name).is_file()]


def seeded(piece: int) -> torch.Generator:
    """Chance for one piece of sound: the same codes always sound the same."""
    return torch.Generator().manual_seed(piece)


def crossfaded(later: Tensor, earlier: Tensor) -> Tensor:
    """`later` (..., n) whose beginning comes out of `earlier` (..., m), by halves of a Hamming
    window over 2 m."""
    overlap = earlier.shape[-1]
    window = torch.from_numpy(np.hamming(2 * overlap)).to(later)
    begin = later[..., :overlap] * window[:overlap] + earlier * window[overlap:]
    return torch.cat((begin, later[..., overlap:]), dim=-1)


def pcm_of(samples: Tensor) -> Pcm:
    """int16 (n,) of float samples (1, n)."""
    return to_pcm(samples[0].float().cpu().numpy())


def joined(stream: VocoderStream, codes: Sequence[int]) -> Pcm:
    """All that a fresh stream makes of some codes."""
    return np.concatenate((stream.push(codes), stream.flush()))


class Whole:
    """A vocoder that waits for the last code and makes the sound in one pass.

    Args:
        make: codes -> samples.
        sample_rate: Hz.
        frame_rate: codes a second.
    """

    def __init__(
        self, make: Callable[[Sequence[int]], Pcm], sample_rate: int, frame_rate: float
    ) -> None:
        self._make, self.sample_rate, self.frame_rate = make, sample_rate, frame_rate

    def decode(self, codes: Sequence[int]) -> Pcm:
        """See `Vocoder`."""
        return self._make(codes) if len(codes) else EMPTY

    def stream(self) -> _Collected:
        """A stream that gives nothing before its end."""
        return _Collected(self)


class _Collected:
    def __init__(self, vocoder: Whole) -> None:
        self._vocoder, self._codes = vocoder, list[int]()

    def push(self, codes: Sequence[int]) -> Pcm:
        self._codes += codes
        return EMPTY

    def flush(self) -> Pcm:
        return self._vocoder.decode(self._codes)
