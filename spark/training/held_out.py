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
from torch import Tensor
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
) -> dict[int, tuple[float, float]]:
    """Per depth: (cross-entropy in nats, share guessed right) of a code, mean over all codes.

    The full depth first, then every exit layer with its untrained head: the same norm and rows.
    """
    full = model.config.num_hidden_layers
    exits = [depth for depth in reversed(embedded.EXIT_LAYERS) if depth < full]
    found: dict[int, list[tuple[Tensor, Tensor]]] = {depth: [] for depth in (full, *exits)}
    for exchange in exchanges:
        ids, targets = (torch.from_numpy(x) for x in padded([exchange], writer.pad))
        coded = (targets >= writer.audio) & (targets < writer.filler)
        out = model.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        for depth, of_depth in found.items():
            early = depth < full
            states = model.model.norm(out.hidden_states[depth]) if early else out.last_hidden_state
            logits = model.lm_head(states[coded])
            losses = functional.cross_entropy(logits, targets[coded], reduction="none")
            of_depth.append((losses, logits.argmax(-1) == targets[coded]))
    return {
        depth: (
            float(torch.cat([losses for losses, _ in rows]).mean()),
            float(torch.cat([hits for _, hits in rows]).float().mean()),
        )
        for depth, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=embedded.FOLDER)
    folder = parser.parse_args().model
    writer = Writer(load_tokenizer(folder / "tokenizer.json"))
    said = [(text, teacher.speak(text)) for text in recordings.script()[-_SENTENCES:]]
    rows = encoded(Codec.load(folder / "codec.safetensors"), said)
    exchanges = [writer.spoken(f"say {row.text}", row) for row in rows]
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    print(f"{len(rows)} sentences, {sum(len(row.codes) for row in rows)} codes")
    for depth, (nats, right) in speech_loss(model, writer, exchanges).items():
        print(f"after {depth} layers: {nats:.3f} nats a code, {right:.1%} right")


if __name__ == "__main__":
    main()
