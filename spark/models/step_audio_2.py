"""Step-Audio-2-mini: a Qwen2 of 28 layers that writes one text token, then four speech tokens.

Knows the model's config, names of weights, marks and prompt form (Step-Audio 2, arXiv 2507.16632,
and its published code); the arithmetic is `spark.transformer`'s. What hears and what speaks are
modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spark.modality import Interleave, Vocabulary
from spark.models import large, step_listener, step_vocoder
from spark.models.base import Prompt, Turn
from spark.models.checkpoint import Checkpoint, CheckpointError
from spark.models.family import Family, Hearing
from spark.models.step_listener import PREFIXES
from spark.models.turns import Prompts
from spark.models.words import JsonWords, Words
from spark.sampling import SamplingSettings
from spark.weights import TransformerConfig

SYSTEM = "You are a helpful assistant."
N_CODES = 6561
FILLER_CODE = N_CODES  # <audio_6561>: silence, never sent to a vocoder
FIRST_MARK, FIRST_SPEECH = 151643, 151696
# What a reply may hold besides text and codes; other marks are for prompts.
MARKS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|EOT|>": 151665,
    "<|BOT|>": 151666,
    "<audio_start>": 151688,
    "<audio_end>": 151689,
    "<audio_patch>": 151690,
    "<tts_start>": 151693,
    "<tts_end>": 151694,
    "<tts_pad>": 151695,
}
KNOWN = MARKS | {f"<audio_{code}>": FIRST_SPEECH + code for code in range(N_CODES + 1)}
# The published code stops at <|EOT|>; the config's own class ends a text at all three.
_STOPS = ("<|EOT|>", "<|endoftext|>", "<|im_end|>")
_REPLY_MARKS = (*_STOPS, "<tts_start>", "<tts_end>", "<tts_pad>")
PATCH_MARKS = (MARKS["<audio_start>"], MARKS["<audio_patch>"], MARKS["<audio_end>"])


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json's numbers under transformers' names.

    They stand under `text_config`, or at the top in later models of the family.
    """
    text = {**config, **(config.get("text_config") or {}), "model_type": "qwen2"}
    text.setdefault("num_key_value_heads", text.get("num_attention_groups"))
    _expect_one_theta(text)
    text["tie_word_embeddings"] = False
    return text


def _expect_one_theta(text: Mapping[str, Any]) -> None:
    """Refuse two bases of the rotation that differ.

    The published files have `rope_theta`; transformers 5 writes it under `rope_parameters`.
    """
    there = (text, text.get("rope_parameters") or {})
    thetas = {float(place["rope_theta"]) for place in there if place.get("rope_theta") is not None}
    if len(thetas) > 1:
        raise CheckpointError(
            f"config.json says two values of rope_theta ({', '.join(map(str, sorted(thetas)))}): "
            "fetch it again"
        )


def shape_of(config: Mapping[str, Any]) -> TransformerConfig:
    """The language model's shape, from a config.json; raises CheckpointError."""
    return large.read_shape(_fields, config)


def weight_names(shape: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the language model's tensors, which are those of Qwen2ForCausalLM."""
    width, inner = shape.hidden_size, shape.intermediate_size
    sizes = {"q": shape.num_attention_heads * shape.head_dim}
    sizes["k"] = sizes["v"] = shape.num_key_value_heads * shape.head_dim
    names: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (shape.vocab_size, width),
    }
    for index in range(shape.num_hidden_layers):
        layer = f"model.layers.{index}."
        for name, size in sizes.items():
            names[f"{layer}self_attn.{name}_proj.weight"] = (size, width)
            names[f"{layer}self_attn.{name}_proj.bias"] = (size,)
        names[f"{layer}self_attn.o_proj.weight"] = (width, sizes["q"])
        names[f"{layer}mlp.gate_proj.weight"] = names[f"{layer}mlp.up_proj.weight"] = (inner, width)
        names[f"{layer}mlp.down_proj.weight"] = (width, inner)
        names[f"{layer}input_layernorm.weight"] = (width,)
        names[f"{layer}post_attention_layernorm.weight"] = (width,)
    return names


def vocabulary(size: int) -> Vocabulary:
    """Ids by meaning, for an embedding of `size` rows."""
    filler = KNOWN[f"<audio_{FILLER_CODE}>"]
    control = tuple(sorted([*(MARKS[name] for name in _REPLY_MARKS), filler]))
    above = (*range(FIRST_MARK, FIRST_SPEECH), *range(filler + 1, size))
    return Vocabulary(
        size=size,
        speech_start=FIRST_SPEECH,
        n_codes=N_CODES,
        stop_ids=tuple(MARKS[name] for name in _STOPS),
        control_ids=control,
        filler=filler,
        tts_pad=MARKS["<tts_pad>"],
        tts_start=MARKS["<tts_start>"],
        tts_end=MARKS["<tts_end>"],
        idle_ids=tuple(sorted(set(above) - set(control))),
    )


class StepPrompts(Prompts):
    """The model's prompt form: turns between `<|BOT|>` role and `<|EOT|>`."""

    def __init__(self, words: Words) -> None:
        super().__init__(words, FIRST_MARK)

    def encode(
        self, turns: Sequence[Turn], system: str | None = None, speak: bool = True
    ) -> Prompt:
        """A whole conversation and the opening of the reply; see `Dialogue`.

        An empty system prompt leaves that turn out.
        """
        self._expect_question(turns)
        prompt = Prompt([])
        chosen = SYSTEM if system is None else system
        if chosen:
            prompt = self._turn("system", Turn("user", chosen))
        for turn in turns:
            part = self._turn("human", turn) if turn.role == "user" else self._reply(turn)
            prompt = prompt.then(part)
        return prompt.then(self._opening(speak))

    def follow(self, turn: Turn, finished: bool, speak: bool = True) -> Prompt:
        """What comes after a reply that the engine still holds; see `Dialogue`."""
        end = [] if finished else [MARKS["<|EOT|>"]]
        return Prompt(end).then(self._turn("human", turn)).then(self._opening(speak))

    def _turn(self, role: str, turn: Turn) -> Prompt:
        """`<|BOT|>` role, a line's end, text and recordings, `<|EOT|>`.

        Role and text are one piece to the tokenizer unless there are recordings, as in the
        published code.
        """
        self._expect_words(turn)
        bot, eot = MARKS["<|BOT|>"], MARKS["<|EOT|>"]
        if not turn.heard:
            return Prompt([bot, *self._words.encode(f"{role}\n{turn.text}"), eot])
        prompt = Prompt([bot, *self._words.encode(f"{role}\n"), *self._words.encode(turn.text)])
        for heard in turn.heard:
            prompt = prompt.then(Prompt.of(heard))
        return prompt.then(Prompt([eot]))

    def _reply(self, turn: Turn) -> Prompt:
        """A past reply: as it was generated, without its end, or as text, or one and the other."""
        bot, eot, ids = MARKS["<|BOT|>"], MARKS["<|EOT|>"], list(turn.ids)
        if ids and ids[-1] in {MARKS[name] for name in _STOPS}:
            ids.pop()
        if not ids:
            return Prompt([bot, *self._words.encode(f"assistant\n{turn.text}"), eot])
        spoken = any(i >= FIRST_SPEECH for i in ids)
        start = [MARKS["<tts_start>"]] if spoken and ids[0] != MARKS["<tts_start>"] else []
        words = self._words.encode(turn.text)
        return Prompt([bot, *self._words.encode("assistant\n"), *start, *ids, *words, eot])

    def _opening(self, speak: bool) -> Prompt:
        start = [MARKS["<tts_start>"]] if speak else []
        return Prompt([MARKS["<|BOT|>"], *self._words.encode("assistant\n"), *start])


def _ears(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any], width: int
) -> tuple[Hearing, str]:
    """What hears lies in the model's own checkpoint."""
    return step_listener.offered(checkpoint, config, width, PATCH_MARKS), ""


FAMILY = Family(
    name="step-audio-2-mini",
    title="Step-Audio-2-mini",
    kind="step_audio_2",
    repo="stepfun-ai/Step-Audio-2-mini",
    files=("config.json", "tokenizer.json", "added_tokens.json", "model*.safetensors*"),
    nbytes=17_870_000_000,
    parts=(step_vocoder.PARTS, step_vocoder.VOICE),
    licence="Apache-2.0, code and weights.",
    shape=TransformerConfig(
        family="qwen2", vocab_size=158720, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, head_dim=128,
        rms_norm_eps=1e-6, rope_theta=1e6, rotary_dim=128, max_position_embeddings=16384,
        tie_word_embeddings=False,
    ),
    speech_rows=N_CODES + len(_REPLY_MARKS) + 1,
    tokens=4096,
    exits=(14, 18, 20, 22, 24, 26),
    default_exit=22,
    heads_name="step-audio-2-mini-exit-heads.safetensors",
    layout=Interleave(1, 4),
    speech_rate=25.0,
    most_tokens=2048,  # the published code's limit: 65 s of speech
    sampling=SamplingSettings(temperature=0.7, top_p=0.9, repetition_penalty=1.05),  # its examples
    system_prompt=SYSTEM,
    marks=KNOWN,
    apart=PREFIXES,
    read_shape=shape_of,
    weight_names=weight_names,
    sources=lambda shape: {name: (name, None) for name in weight_names(shape)},
    words=JsonWords,
    prompts=StepPrompts,
    vocabulary=vocabulary,
    ears=_ears,
    voice=step_vocoder.offered,
    beside=lambda dtype: step_listener.published_bytes(dtype) + step_vocoder.published_bytes(),
)  # fmt: skip
load = partial(large.load, FAMILY)
unavailable, absent = partial(large.unavailable, FAMILY), partial(large.absent, FAMILY)
