"""Makes the golden model: tiny weights, and what they must give.

    python -m tests.golden.make

Logits and greedy tokens come from transformers, not from this project; the sampled replies come
from the engine and pin its noise, schedule and catch-up. Run it again only when a change of these
is meant, and say so in CHANGELOG.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from spark.engine import Engine
from spark.modality import Interleave
from spark.models.base import SpokenLM
from spark.sampling import SamplingSettings
from spark.schedule import ConfidenceExit, FullDepth, Policy, Spark
from spark.transformer import Transformer
from tests.tiny import random_state, tiny_config, tiny_prompt, tiny_text, tiny_vocabulary

PATH = Path(__file__).parent
FAMILIES = ("qwen2", "glm")
PROMPT = tuple(tiny_prompt("golden"))
POLICIES: dict[str, Policy] = {
    "full": FullDepth(),
    "spark": Spark(2, variant="triple"),
    "confidence": ConfidenceExit("max_prob", 0.06, (1, 2)),
}
SAMPLING = SamplingSettings(temperature=0.7, top_p=0.9, seed=1)


def config(family: str) -> dict[str, object]:
    """Three layers of width 32."""
    return tiny_config(family, layers=3, attention_bias=True)


def golden_lm(family: str, weights: dict[str, Tensor]) -> SpokenLM:
    """The golden weights as a spoken language model, float32."""
    return SpokenLM(
        name="golden",
        title="Golden",
        transformer=Transformer.from_state_dict(weights, config(family), torch.float32),
        vocabulary=tiny_vocabulary(),
        layout=Interleave(1, 4),
        encode_prompt=tiny_prompt,
        decode_text=tiny_text,
        max_tokens=60,
        candidate_exits=(1, 2),
        default_exit=2,
    )


def replies(lm: SpokenLM) -> dict[str, Tensor]:
    """Tokens and depths of each policy, (2, n) int64."""
    engine = Engine(lm, head="untrained")
    start = engine.prefill(list(PROMPT))
    made = {}
    for name, policy in POLICIES.items():
        steps = list(engine.generate(start, policy, SAMPLING))
        made[name] = torch.tensor([[s.token_id for s in steps], [s.depth for s in steps]])
    return made


@torch.inference_mode()
def expected(family: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits (T, V) of the prompt and 40 greedy tokens, by transformers."""
    plain = {key: value for key, value in config(family).items() if key != "model_type"}
    model: PreTrainedModel
    if family == "glm":
        model = GlmForCausalLM(GlmConfig(pad_token_id=0, **plain))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**plain))
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.eval().generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    greedy = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
    )
    return {"logits": model(ids).logits[0], "greedy": greedy[0, len(PROMPT) :]}


def main() -> None:
    """Write one file a family."""
    for family in FAMILIES:
        weights = {
            name: value.half() for name, value in random_state(config(family), seed=11).items()
        }
        made = expected(family, weights) | replies(golden_lm(family, weights))
        tensors = weights | {f"expected.{name}": value.clone() for name, value in made.items()}
        save_file(tensors, PATH / f"{family}.safetensors")


if __name__ == "__main__":
    main()
