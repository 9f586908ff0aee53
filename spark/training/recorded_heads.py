"""Exit heads of the embedded model, fitted on the recordings that it was trained on.

`python -m spark.training.recorded_heads --data DIR --model DIR --minutes M`, the last stage of
`make train`. For heads from a model's own replies see `exit_heads`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from spark.models import embedded
from spark.models.base import SpokenLM
from spark.training import mixture
from spark.training.exit_fitting import Agreement, Fitting, rate_for, slot_states
from spark.training.sequences import Writer, load_tokenizer, padded

SPOKEN = mixture.Shares(aloud=0.6, aloud_written=0.0, answer_spoken=0.4, answer_written=0.0)


def speech_slots(lm: SpokenLM, targets: Tensor) -> Tensor:
    """Where (B, T) the next id is a speech code or filler."""
    words = lm.vocabulary
    speech = (targets >= words.speech_start) & (targets < words.speech_end)
    return speech | (targets == words.filler)


def fit(data: Path, model: Path, minutes: float, tokens: int = 3072) -> dict[int, Agreement]:
    """Fits and saves heads for every candidate exit; returns their agreement with full depth."""
    torch.manual_seed(0)
    lm = embedded.load(model)
    fitting, peak = Fitting(lm), rate_for(lm.transformer.config.hidden_size)
    writer = Writer(load_tokenizer(data / "tokenizer.json"))
    stream = mixture.of(data, writer, SPOKEN, seed=77).batches(tokens)
    begun, shown = time.time(), time.time()
    while (progress := (time.time() - begun) / (60 * minutes)) < 1:
        ids, targets = (torch.from_numpy(x) for x in padded(next(stream), writer.pad))
        states = slot_states(lm, ids, speech_slots(lm, targets), fitting.exits)
        fitting.step(states, peak * max(0.02, 1 - progress))
        if time.time() - shown > 20:
            shown = time.time()
            print({k: round(v.overlap, 3) for k, v in fitting.agreements().items()}, flush=True)
    fitting.save(model / embedded.HEADS_FILE)
    return fitting.agreements()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=embedded.FOLDER)
    parser.add_argument("--minutes", type=float, default=8.0)
    arguments = parser.parse_args()
    for layer, agreement in fit(arguments.data, arguments.model, arguments.minutes).items():
        print(f"exit {layer}: top-1 {agreement.top1:.3f}, overlap {agreement.overlap:.3f}")


if __name__ == "__main__":
    main()
