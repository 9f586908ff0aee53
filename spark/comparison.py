"""What a comparison is asked for and what comes of it; settings, replies, figures.

Holds values: it runs no model (`spark.compare` does) and writes no file (`spark.bundle` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from spark.acceptance import Acceptance
from spark.heads import HeadKind
from spark.models.base import Heard, Pcm, Prompt, PromptError, SpokenLM, Turn
from spark.named import acceptance, spark_policy
from spark.sampling import SamplingSettings
from spark.schedule import ConfidenceExit, FullDepth, Measure, Policy
from spark.timing import Timing
from spark.trace import Trace


@dataclass(frozen=True)
class Recording:
    """A spoken prompt: mono int16 samples (n,) at `rate` Hz."""

    pcm: Pcm
    rate: int

    def beside(self, text: str) -> str:
        """What stands in a comparison for a prompt of this and what was typed."""
        spoken = f"(a recording of {len(self.pcm) / self.rate:.1f} s)"
        return f"{text} {spoken}" if text.strip() else spoken


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, before the prompt of a comparison.

    Attributes:
        text: as typed.
        recording: what was asked aloud.
        reply: token ids as they were generated.
        words: of the reply.
    """

    text: str
    recording: Recording | None
    reply: tuple[int, ...]
    words: str

    @property
    def asked(self) -> str:
        """The question in words."""
        return self.recording.beside(self.text) if self.recording else self.text


@dataclass(frozen=True)
class CompareSettings:
    """How the three policies of a comparison are set.

    Attributes:
        schedule: SPAR-K's: "triple", "even", "odd", "k4" for one full position in every 4, "drift"
            for a K that follows the drift, or every position's exit layer, "f-11-11-9"
            (`spark.named`).
        exit_layer: SPAR-K's; None is the model's own choice.
        drift_target: mean distance of exits from full depth up to which K grows, 0 to 1.
        acceptance: of tokens drawn at exits, by both policies that exit: "always", "exact", or
            which near misses stand too (`spark.named`): "0.5" nats, "sound:1.5".
        measure: of confidence exit.
        threshold: of confidence exit, 0 to 1; the default is one the paper names (App. B.1).
        candidates: layers confidence exit tries; empty: all that the model offers.
        decay: CALM's, of the threshold; None keeps it constant.
        head: fitted exit heads, or the untrained ones (final norm and base rows).
        temperature, top_p, repetition_penalty, seed: of the sampling, the same for all policies;
            `of` takes a model's own. The embedded model is
            understood better the cooler it speaks: of 42 sentences that are not the evaluation's,
            WER 51 % at 0.7, 49 % at 0.5, 46 % at 0.3 and greedy (fifth weights); 0.3 leaves the
            seed its say.
        system: the system prompt; None is the model's own.
        max_tokens: longest reply; None is the model's own, which is the most it takes.
    """

    schedule: str = "triple"
    exit_layer: int | None = None
    drift_target: float = 0.1
    acceptance: str = "always"
    measure: Measure = "max_prob"
    threshold: float = 0.5
    candidates: tuple[int, ...] = ()
    decay: float | None = None
    head: HeadKind = "fitted"
    temperature: float = 0.3
    top_p: float = 0.9
    seed: int = 1
    repetition_penalty: float = 1.0
    system: str | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, lm: SpokenLM, **given: Any) -> CompareSettings:
        """A model's own sampling, but for what is given; None counts as not given."""
        own = lm.sampling
        drawn = {
            "temperature": own.temperature,
            "top_p": own.top_p,
            "repetition_penalty": own.repetition_penalty,
        }
        return cls(**{**drawn, **{name: v for name, v in given.items() if v is not None}})

    def sampling(self) -> SamplingSettings:
        """How tokens are drawn; raises ValueError for values out of range."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    def accepted(self, lm: SpokenLM) -> Acceptance:
        """Which tokens drawn at exits stand; raises ValueError where the name means nothing."""
        return acceptance(self.acceptance, lm)

    def limit(self, lm: SpokenLM) -> int:
        """Tokens of a reply at most."""
        return lm.max_tokens if self.max_tokens is None else min(self.max_tokens, lm.max_tokens)

    def prompt(
        self,
        lm: SpokenLM,
        text: str,
        recording: Recording | None = None,
        earlier: Sequence[Exchange] = (),
    ) -> Prompt:
        """The prompt in the model's form; raises PromptError where it cannot take it.

        Args:
            lm: the model.
            text: as typed.
            recording: a spoken prompt, with or without typed words.
            earlier: the conversation so far, oldest first.
        """
        if self.system is None and recording is None and not earlier:
            return Prompt(lm.encode_prompt(text))
        turns = []
        for past in earlier:
            turns.append(_question(lm, past.text, past.recording))
            turns.append(Turn("assistant", ids=past.reply))
        turns.append(_question(lm, text, recording))
        if lm.dialogue is None:
            what = "one question at a time" if earlier else "no system prompt: leave it empty"
            raise PromptError(f"{lm.title} takes {what}.")
        made = lm.dialogue.encode(turns, self.system)
        room = lm.transformer.config.max_position_embeddings - self.limit(lm)
        if earlier and len(made.ids) > room:
            raise PromptError(
                f"The conversation has become too long: {len(made.ids)} tokens, and beside a reply "
                f"{lm.title} has room for {room}. Begin a new one, or allow shorter replies."
            )
        return made

    def resolved(self, lm: SpokenLM) -> CompareSettings:
        """The same with the model's own choices filled in."""
        return replace(
            self,
            exit_layer=lm.default_exit if self.exit_layer is None else self.exit_layer,
            candidates=self.candidates or lm.candidate_exits,
        )

    def policies(self, lm: SpokenLM) -> tuple[Policy, ...]:
        """Full depth, SPAR-K and confidence exit, in this order.

        Raises:
            ValueError: a setting that means nothing, or not with this model.
        """
        chosen = self.resolved(lm)
        exit_layer, candidates = chosen.exit_layer, chosen.candidates
        assert exit_layer is not None
        schedule = spark_policy(self.schedule, exit_layer, lm.layout, self.drift_target)
        for layer in (exit_layer, *schedule.exit_layers(), *candidates):
            if layer not in lm.candidate_exits:
                offered = ", ".join(map(str, lm.candidate_exits))
                raise ValueError(f"there is no exit at layer {layer}: choose one of {offered}")
        if self.head not in get_args(HeadKind):
            raise ValueError(f"unknown exit head {self.head!r}: use fitted or untrained")
        confidence = ConfidenceExit(self.measure, self.threshold, candidates, self.decay)
        return (FullDepth(), schedule, confidence)


def _question(lm: SpokenLM, text: str, recording: Recording | None) -> Turn:
    heard: tuple[Heard, ...] = ()
    if recording is not None:
        if lm.listener is None:
            raise PromptError(f"{lm.title} takes no spoken prompt: {lm.deafness}.")
        heard = lm.listener.hear(recording.pcm, recording.rate)
    return Turn("user", text, heard)


@dataclass
class Reply:
    """What one policy came to. None is what was not computed, or cannot be.

    Attributes:
        policy: its name.
        trace: token by token.
        text: the reply's words.
        pcm: mono int16 sound (n,); None without a vocoder or without speech.
        sample_rate: of the sound, Hz.
        vocoder_ms: wall-clock of turning all codes into the sound.
        first_audio_ms: prefill, tokens and vocoder until the first samples could be played.
        heard: what the recogniser heard.
        wer_vs_text: of what was heard against the reply's own text.
        mos_predicted: DNSMOS P.808.
        identical_to_full: whether every token is full depth's.
        first_divergence_s: audio time of the first speech token that differs.
        timing: change in time a token against full depth, from interleaved replays.
        replayed_ms: median time a token over those replays.
    """

    policy: str
    trace: Trace
    text: str
    pcm: Pcm | None = None
    sample_rate: int | None = None
    vocoder_ms: float | None = None
    first_audio_ms: float | None = None
    heard: str | None = None
    wer_vs_text: float | None = None
    mos_predicted: float | None = None
    identical_to_full: bool | None = None
    first_divergence_s: float | None = None
    timing: Timing | None = None
    replayed_ms: float | None = None

    def real_time_factor(self) -> float | None:
        """Prefill, tokens and vocoder over the sound's duration; below 1 is faster than speech.

        The tokens' time is that of the replays where there are some.
        """
        figures = self.trace.summary()
        if not figures["audio_s"] or self.vocoder_ms is None:
            return None
        decode = figures["decode_ms"]
        if self.replayed_ms is not None:
            decode = self.replayed_ms * len(self.trace.steps)
        spent = figures["prefill_ms"] + decode + self.vocoder_ms
        return float(spent / 1e3 / figures["audio_s"])

    def summary(self) -> dict[str, Any]:
        """The policy's entry of summary.json, keys in the contract's order."""
        figures = self.trace.summary()
        taken = ("n_text", "n_speech", "mean_depth_text", "mean_depth_speech", "layers",
                 "traffic_ratio", "ms_per_token")  # fmt: skip
        return {
            "name": self.policy,
            "text": self.text,
            **{key: figures[key] for key in taken},
            "real_time_factor": self.real_time_factor(),
            "first_audio_ms": self.first_audio_ms,
            "audio_s": figures["audio_s"],
            "identical_to_full": self.identical_to_full,
            "first_divergence_s": self.first_divergence_s,
            "wer_vs_text": self.wer_vs_text,
            "mos_predicted": self.mos_predicted,
        }


@dataclass
class Comparison:
    """A finished comparison, or as much of it as there is.

    Attributes:
        model, text, settings: what was asked, as typed.
        recording: what was asked aloud.
        earlier: the conversation before it, the same for all policies.
        replies: in the order of the policies.
        stopped: whether it was stopped before its end.
    """

    model: str
    text: str
    settings: CompareSettings
    recording: Recording | None = None
    earlier: tuple[Exchange, ...] = ()
    replies: list[Reply] = field(default_factory=list)
    stopped: bool = False

    @property
    def prompt(self) -> str:
        """What was asked, in words."""
        return self.recording.beside(self.text) if self.recording else self.text

    def continued(self) -> tuple[Exchange, ...]:
        """The conversation up to full depth's reply, for another question to follow."""
        if not self.replies:
            return self.earlier
        full = self.replies[0]
        last = Exchange(self.text, self.recording, tuple(full.trace.ids()), full.text)
        return (*self.earlier, last)

    def reply(self, policy: str) -> Reply | None:
        """The reply of a policy, None while there is none."""
        return next((reply for reply in self.replies if reply.policy == policy), None)
