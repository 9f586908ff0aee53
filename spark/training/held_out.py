"""What a speech token of a sentence that training never heard costs the embedded model.

`python -m spark.training.held_out [--model DIR]` lets the teacher say the last sentences of the
recordings' list and feeds them to the model, teacher-forced: a quick figure to compare weights by,
on the same codec only. Training reaches none of them as sound; as text alone it may have copied
some. They are not the evaluation's, so that choosing by it does not flatter those. Says nothing of
how replies sound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import Qwen2ForCausalLM

from spark.models import embedded
from spark.speech.codec import Codec
from spark.training import recordings, teacher
from spark.training.codes import encoded
from spark.training.sequences import Exchange, Writer, load_tokenizer, padded

_SENTENCES = 100


@torch.no_grad()
def speech_loss(
    model: Qwen2ForCausalLM, writer: Writer, exchanges: Sequence[Exchange]
) -> tuple[float, float]:
    """(cross-entropy in nats, share guessed right) of a code, mean over all codes."""
    losses, hits = [], []
    for exchange in exchanges:
        ids, targets = (torch.from_numpy(x) for x in padded([exchange], writer.pad))
        logits = model(input_ids=ids, use_cache=False).logits
        coded = (targets >= writer.audio) & (targets < writer.filler)
        losses.append(functional.cross_entropy(logits[coded], targets[coded], reduction="none"))
        hits.append(logits[coded].argmax(-1) == targets[coded])
    return float(torch.cat(losses).mean()), float(torch.cat(hits).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=embedded.FOLDER)
    folder = parser.parse_args().model
    writer = Writer(load_tokenizer(folder / "tokenizer.json"))
    said = [(text, teacher.speak(text)) for text in recordings.script()[-_SENTENCES:]]
    rows = encoded(Codec.load(folder / "codec.safetensors"), said)
    exchanges = [writer.spoken(f"say {row.text}", row) for row in rows]
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    nats, right = speech_loss(model, writer, exchanges)
    codes = sum(len(row.codes) for row in rows)
    print(f"{len(rows)} sentences, {codes} codes: {nats:.3f} nats a code, {right:.1%} right")


if __name__ == "__main__":
    main()
