"""GLM-4-Voice-9B: a GLM of 40 layers that writes 13 text tokens, then 26 speech tokens, in turn.

Knows the model's config, names of weights, marks and prompt form (GLM-4-Voice, arXiv 2412.02612,
and its published code); the arithmetic is `spark.transformer`'s. The weights are under the GLM-4
model licence, which asks for "Built with glm-4" and for derived names that begin with glm-4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spark.modality import Interleave, Vocabulary
from spark.models import glm_listener, glm_vocoder, large
from spark.models.base import Prompt, PromptError, Turn
from spark.models.checkpoint import Checkpoint, CheckpointError
from spark.models.family import Family, Hearing
from spark.models.turns import Prompts
from spark.models.words import RankWords, Words
from spark.sampling import SamplingSettings
from spark.weights import TransformerConfig

# The texts the model was trained with, grammar and spaces included: with others it leaves the
# interleaving.
_TASK = (
    "User will provide you with a {kind} instruction. Do it step by step. First, think about the "
    "instruction and respond in a interleaved manner, with 13 text token followed by 26 audio "
    "tokens."
)
SYSTEM_TEXT, SYSTEM_SPEECH = _TASK.format(kind="text"), _TASK.format(kind="speech") + " "
OPENING = "streaming_transcription\n"  # plain text after <|assistant|>
N_CODES = 16384
FIRST_MARK, FIRST_SPEECH = 151329, 152353
MARKS = {
    "<|endoftext|>": 151329,
    "[MASK]": 151330,
    "[gMASK]": 151331,
    "[sMASK]": 151332,
    "<sop>": 151333,
    "<eop>": 151334,
    "<|system|>": 151335,
    "<|user|>": 151336,
    "<|assistant|>": 151337,
    "<|observation|>": 151338,
    "<|begin_of_audio|>": 151343,
    "<|end_of_audio|>": 151344,
}
KNOWN = MARKS | {f"<|audio_{code}|>": FIRST_SPEECH + code for code in range(N_CODES)}
# The published code stops at <|user|>; the other two end a reply by the generation config.
_STOPS = ("<|user|>", "<|endoftext|>", "<|observation|>")
_ROTARY = "transformer.rotary_pos_emb."  # a buffer that follows from the config
_REFUSED = {  # fields of the config with the one value the transformer does
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "original_rope": True,
    "tie_word_embeddings": False,
}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a config.json with ChatGLM's names under transformers'."""
    for name, value in _REFUSED.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json says {name} {config[name]}, which this model never had: give the "
                "files of GLM-4-Voice-9B"
            )
    return {
        "model_type": "glm",
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "rope_theta": 1e4 * config.get("rope_ratio", 1),
        "max_position_embeddings": config.get("seq_length", large.MOST_POSITIONS),
    }


def shape_of(config: Mapping[str, Any]) -> TransformerConfig:
    """The shape, from a config.json; raises CheckpointError."""
    return large.read_shape(_fields, config)


_FIXED = {
    "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
    "model.norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.dense.weight",
    "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
    "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
}
_QKV = "self_attention.query_key_value"


def sources(shape: TransformerConfig) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """By GlmForCausalLM's name: the checkpoint's name, and which rows of it."""
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    rows = {
        "q": (0, queries),
        "k": (queries, queries + keys),
        "v": (queries + keys, queries + 2 * keys),
    }
    found: dict[str, tuple[str, tuple[int, int] | None]] = {
        name: (source, None) for name, source in _FIXED.items()
    }
    for index in range(shape.num_hidden_layers):
        ours, theirs = f"model.layers.{index}.", f"transformer.encoder.layers.{index}."
        for name, source in _IN_LAYER.items():
            found[ours + name] = (theirs + source, None)
        for name, part in rows.items():
            for kind in ("weight", "bias"):
                found[f"{ours}self_attn.{name}_proj.{kind}"] = (f"{theirs}{_QKV}.{kind}", part)
    return found


def weight_names(shape: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors."""
    width, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
    fused = (heads + 2 * shape.num_key_value_heads) * shape.head_dim
    ends = (shape.vocab_size, width)
    names: dict[str, tuple[int, ...]] = dict(zip(_FIXED.values(), (ends, (width,), ends),
                                                 strict=True))  # fmt: skip
    in_layer = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attention.dense.weight": (width, heads * shape.head_dim),
        "mlp.dense_h_to_4h.weight": (2 * inner, width),
        "mlp.dense_4h_to_h.weight": (width, inner),
        f"{_QKV}.weight": (fused, width),
        f"{_QKV}.bias": (fused,),
    }
    for index in range(shape.num_hidden_layers):
        layer = f"transformer.encoder.layers.{index}."
        names |= {layer + name: size for name, size in in_layer.items()}
    return names


def vocabulary(size: int) -> Vocabulary:
    """Ids by meaning, for an embedding of `size` rows."""
    stops = tuple(MARKS[name] for name in _STOPS)
    above = (*range(FIRST_MARK, FIRST_SPEECH), *range(FIRST_SPEECH + N_CODES, size))
    return Vocabulary(
        size=size,
        speech_start=FIRST_SPEECH,
        n_codes=N_CODES,
        stop_ids=stops,
        control_ids=tuple(sorted(stops)),
        idle_ids=tuple(sorted(set(above) - set(stops))),
    )


class GlmPrompts(Prompts):
    """The model's prompt form: a fixed system text, then `<|user|>` and `<|assistant|>` in turn.

    A user's mark also ends the reply before it.
    """

    def __init__(self, words: Words) -> None:
        super().__init__(words, FIRST_MARK)

    def encode(
        self, turns: Sequence[Turn], system: str | None = None, speak: bool = True
    ) -> Prompt:
        """A whole conversation and the opening of the reply; see `Dialogue`.

        Raises:
            PromptError: besides an empty turn: a system prompt, or a reply without speech, for
                which the model was not trained.
        """
        self._expect_question(turns)
        if system is not None:
            raise PromptError("GLM-4-Voice knows its own system prompt only: leave it empty.")
        first = next(turn for turn in turns if turn.role == "user")
        own = SYSTEM_SPEECH if first.heard else SYSTEM_TEXT
        start = [MARKS["[gMASK]"], MARKS["<sop>"], MARKS["<|system|>"]]
        prompt = Prompt([*start, *self._words.encode(f"\n{own}")])
        for turn in turns:
            prompt = prompt.then(self._turn(turn) if turn.role == "user" else self._reply(turn))
        return prompt.then(self._opening(speak))

    def follow(self, turn: Turn, finished: bool, speak: bool = True) -> Prompt:
        """What comes after a reply that the engine still holds; see `Dialogue`.

        A finished reply ended with `<|user|>`, which then begins the next turn.
        """
        prompt = self._turn(turn)
        rest = Prompt(prompt.ids[1:], tuple((i - 1, rows) for i, rows in prompt.features))
        return (rest if finished else prompt).then(self._opening(speak))

    def _turn(self, turn: Turn) -> Prompt:
        self._expect_words(turn)
        prompt = Prompt([MARKS["<|user|>"], *self._words.encode(f"\n{turn.text}")])
        for heard in turn.heard:
            prompt = prompt.then(Prompt.of(heard))
        return prompt

    def _reply(self, turn: Turn) -> Prompt:
        """A past reply: as it was generated, without its end; or as text."""
        ids = list(turn.ids)
        if ids and ids[-1] in {MARKS[name] for name in _STOPS}:
            ids.pop()
        return self._opening(True).then(Prompt([*ids, *self._words.encode(turn.text)]))

    def _opening(self, speak: bool) -> Prompt:
        if not speak:
            raise PromptError("GLM-4-Voice always answers in speech: ask for a spoken reply.")
        return Prompt([MARKS["<|assistant|>"], *self._words.encode(OPENING)])


def _ears(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any], width: int
) -> tuple[Hearing | None, str]:
    """What hears is a model of its own."""
    begin, end = MARKS["<|begin_of_audio|>"], MARKS["<|end_of_audio|>"]
    return glm_listener.offered(folder, begin, end, FIRST_SPEECH)


FAMILY = Family(
    name="glm-4-voice-9b",
    title="GLM-4-Voice-9B",
    kind="chatglm",
    repo="zai-org/glm-4-voice-9b",
    files=("config.json", "tokenizer.model", "tokenizer_config.json", "model*.safetensors*"),
    nbytes=19_090_000_000,
    parts=(glm_listener.PARTS, glm_vocoder.PARTS),
    licence=(
        "Built with glm-4. The weights are under the GLM-4 model licence: free for research, "
        "registration for commercial use."
    ),
    shape=TransformerConfig(
        family="glm", vocab_size=168960, hidden_size=4096, intermediate_size=13696,
        num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=2, head_dim=128,
        rms_norm_eps=3.90625e-08, rope_theta=1e4, rotary_dim=64, max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
    speech_rows=N_CODES + len(_STOPS),
    tokens=4096,
    exits=(20, 28, 32, 34, 36, 37, 38),
    default_exit=37,
    heads_name="glm-4-voice-9b-exit-heads.safetensors",
    layout=Interleave(13, 26, speech_tail=True),
    speech_rate=12.5,
    most_tokens=2000,  # the published demo's limit
    sampling=SamplingSettings(temperature=0.2, top_p=0.8),  # the published demo's
    system_prompt=None,
    marks=KNOWN,
    apart=(_ROTARY,),
    read_shape=shape_of,
    weight_names=weight_names,
    sources=sources,
    words=RankWords,
    prompts=GlmPrompts,
    vocabulary=vocabulary,
    ears=_ears,
    voice=glm_vocoder.offered,
    derived_prefix="glm-4",
    beside=lambda _: glm_listener.published_bytes() + glm_vocoder.published_bytes(),
)  # fmt: skip
load = partial(large.load, FAMILY)
unavailable, absent = partial(large.unavailable, FAMILY), partial(large.absent, FAMILY)
