"""What the paper reports of the models it used, to stand beside our own figures of the same ones.

SPAR-K, arXiv 2603.09215v1, Table 2, as careful reading notes give it; None where they have no
figure. Means are of AlpacaEval, Llama Questions, TriviaQA and Web Questions under an LLM judge,
MOS is UTMOSv2's, WER of Whisper-large-v3 against the model's own text.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2603.09215v1, Table 2"


@dataclass(frozen=True)
class Published:
    """A row: policy, mean of four sets, predicted MOS, WER in per cent, mean speech depth."""

    policy: str
    mean: float
    mos: float | None
    wer: float | None
    depth: float | None


_ROWS = {
    ("Step-Audio-2-mini", 28): (
        Published("full depth", 54.22, 3.710, 1.51, 28),
        Published("SPAR-K Triple, exit 22", 55.29, 3.668, 1.51, 25),
        Published("fixed exit 25, no refresh", 50.13, 3.058, 3.40, 25),
        Published("entropy, exit 26", 41.51, 1.651, 11.01, None),
    ),
    ("GLM-4-Voice-9B", 40): (
        Published("full depth", 52.37, 2.982, 4.31, 40),
        Published("SPAR-K Triple, exit 37", 51.94, 2.909, 5.77, 38),
        Published("SPAR-K Even, exit 36", 50.83, None, 5.36, 38),
        Published("SPAR-K Odd, exit 36", 50.35, None, 5.06, 38),
        Published("confidence, exit 36", 52.89, None, 7.62, None),
    ),
}


def published(title: str, layers: int) -> tuple[Published, ...]:
    """The paper's rows of a model; none where it is not one of the paper's.

    Args:
        title: of the model, for people.
        layers: of its transformer; a smaller one of the same shape is another model.
    """
    return _ROWS.get((title, layers), ())
