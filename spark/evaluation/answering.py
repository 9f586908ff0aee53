"""What is kept of a model's reply to an item: words, ears, cost; one line a policy.

The lines of an item share prompt, prefill and seed; where several items are given, replies under
one policy are decoded together. With the teacher installed it says the right answers, straight and
through the codec. Knows nothing of files and tables.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spark import policies
from spark.comparison import CompareSettings, Recording
from spark.compiled import prepare
from spark.engine import Engine, Prefill, decode_batch
from spark.evaluation import alias
from spark.evaluation.scoring import correct, word_errors
from spark.evaluation.suite import Item
from spark.metrics import mos, utmos
from spark.metrics.cost import steps_ratio
from spark.metrics.outside import outside_mass
from spark.metrics.recognisers import POCKETSPHINX, Recogniser, recogniser
from spark.modality import Modality
from spark.models import load
from spark.models.base import Pcm, PromptError, SpokenLM
from spark.sampling import SamplingSettings, seed_for
from spark.schedule import FullDepth, Policy
from spark.speech.audio import read_wav
from spark.speech.codec import Codec
from spark.trace import Trace, first_difference
from spark.training import pitch, teacher

Line = dict[str, Any]
_HEARD = ("heard", "correct_heard", "correct_heard_numbers", "wer", "edits")


@dataclass(frozen=True)
class Job:
    """What a run is asked for.

    Attributes:
        model: as `models.load` takes it.
        settings: of policies and sampling.
        fixed_exit: layer of the policy `fixed`; None is half the model.
        out: folder of the results.
        batch: replies decoded together; with more than one, none has a time of its own.
        policies: words of `spark.policies`, full depth first.
        options: of `models.load`, by name.
        threads: of torch in each worker; rounding, and so a token now and then, hangs on it.
        recogniser: who hears the replies, as `recognisers.recogniser` takes it.
        utmos: whether UTMOSv2 predicts naturalness too.
    """

    model: str
    settings: CompareSettings
    fixed_exit: int | None
    out: Path
    batch: int = 1
    policies: tuple[str, ...] = policies.DEFAULT
    options: tuple[tuple[str, Any], ...] = ()
    threads: int = 1
    recogniser: str = POCKETSPHINX
    utmos: bool = False

    def load(self) -> SpokenLM:
        """The model, ready to decode; errors as of `models.load`."""
        lm = load(self.model, **dict(self.options))
        prepare(lm.transformer, wait=True)
        return lm


@dataclass(frozen=True)
class Task:
    """Items to be answered under these policies, or to be said by the teacher."""

    items: tuple[Item, ...]
    policies: tuple[str, ...]
    teaching: bool


def policies_of(job: Job, lm: SpokenLM, wanted: Sequence[str] | None = None) -> tuple[Policy, ...]:
    """The job's policies, or those of them that are wanted.

    Raises:
        ValueError: a policy or a setting that means nothing, or not with this model.
    """
    job.settings.policies(lm)  # checks what all of them share
    asked = job.policies if wanted is None else wanted
    return tuple(policies.named(word, lm, job.settings, job.fixed_exit) for word in asked)


@dataclass(frozen=True)
class Impression:
    """What a sound is to a listener who does not know what it should say.

    Attributes:
        heard: its words, none where there is no sound.
        mos: predicted by DNSMOS, None where there is nothing to judge.
        utmos: predicted by UTMOSv2; None where it was not asked for, too.
    """

    heard: str
    mos: float | None
    utmos: float | None = None


def impression(ears: Recogniser, pcm: Pcm, rate: int, with_utmos: bool = False) -> Impression:
    """What is heard of a sound, and how natural it is predicted to be."""
    if not len(pcm):
        return Impression("", None)
    natural = utmos.predict(pcm, rate) if with_utmos else None
    return Impression(ears.transcribe(pcm, rate), mos.predict(pcm, rate), natural)


def impression_of(
    lm: SpokenLM, codes: Sequence[int], ears: Recogniser, with_utmos: bool = False
) -> Impression:
    """The impression that a reply's codes make; that of no sound where the model has no voice."""
    if lm.vocoder is None or not codes:
        return Impression("", None)
    return impression(ears, lm.vocoder.decode(codes), lm.vocoder.sample_rate, with_utmos)


def heard_line(job: Job, item: Item, policy: str, text: str, sound: Impression) -> Line:
    """The judged part of a line, with what the job and the item ask for besides."""
    line = judged(recogniser(job.recogniser), item, policy, text, sound)
    if job.utmos:
        line["mos_utmosv2"] = sound.utmos
    return line | _with_numbers(item, text, sound.heard)


def judged(ears: Recogniser, item: Item, policy: str, text: str, sound: Impression) -> Line:
    """What is judged of a reply to an item: its words, what is heard of it, predicted MOS."""
    heard = sound.heard
    errors, own = word_errors(text, heard, ears.normalise), word_errors(item.expected, text)
    return {
        "item_id": item.item_id,
        "family": item.family,
        "split": item.split,
        "policy": policy,
        "prompt": item.prompt,
        "expected": item.expected,
        "text": text,
        "heard": heard,
        "correct_text": correct(item, text),
        "correct_heard": correct(item, heard),
        "wer": errors.edits / errors.words if errors.words else None,
        "edits": errors.edits,
        "words": errors.words,
        "text_edits": own.edits,
        "text_words": own.words,
        "mos_predicted": sound.mos,
    }


def _with_numbers(item: Item, text: str, heard: str) -> Line:
    """Aliases, where there are some, and the match that takes number words for digits."""
    if item.rule != "alias":
        return {}
    return {
        "aliases": list(item.aliases),
        "correct_text_numbers": alias.numbers(text, item.aliases),
        "correct_heard_numbers": alias.numbers(heard, item.aliases),
    }


def seed_of(job: Job, item: Item) -> int:
    """The seed that all policies of an item sample with."""
    return seed_for(job.settings.seed, item.item_id)


def answer(
    lm: SpokenLM, job: Job, items: Sequence[Item], wanted: Sequence[str] | None = None
) -> list[Line]:
    """One line for each item and policy (all, or those wanted), the items' order first.

    The seed is the item's own: items do not share their luck, policies do. Where the model cannot
    take a prompt, the lines say why and hold no figure.
    Where full depth is not wanted, its reply is made all the same: others are held against it.
    """
    engine, chosen = Engine(lm, head=job.settings.head), policies_of(job, lm, wanted)
    full: dict[str, Trace] = {}
    heard: dict[tuple[int, ...], Impression] = {}
    lines: dict[str, list[Line]] = {item.item_id: [] for item in items}
    begun: list[tuple[Item, Prefill, SamplingSettings]] = []
    for item in items:
        try:
            begun.append((item, prefill_of(engine, job, item), sampling_of(job, item)))
        except ValueError as error:  # too long, silent, in letters that the model does not know
            lines[item.item_id] = [_refusal(item, policy.name, str(error)) for policy in chosen]
    for policy in (FullDepth(), *(one for one in chosen if one.name != "full")):
        replies = [
            engine.generate(prefill, policy, sampling, job.settings.limit(lm))
            for _, prefill, sampling in begun
        ]
        for _ in decode_batch(replies, job.batch):
            pass
        for (item, _, _), reply in zip(begun, replies, strict=True):
            full.setdefault(item.item_id, reply.trace)
            if policy in chosen:
                beside = _beside(reply.trace, full[item.item_id])
                lines[item.item_id].append(_line(job, lm, item, reply.trace, heard) | beside)
    return [line for own in lines.values() for line in own]


def sampling_of(job: Job, item: Item) -> SamplingSettings:
    """How all policies of an item draw their tokens."""
    return replace(job.settings, seed=seed_of(job, item)).sampling()


def prefill_of(engine: Engine, job: Job, item: Item) -> Prefill:
    """The item's question, typed or spoken, run once for all policies.

    Raises:
        ValueError: the model cannot take it.
    """
    lm, settings = engine.lm, job.settings
    if item.audio is None:
        asked = settings.prompt(lm, item.prompt)
    else:
        asked = settings.prompt(lm, "", Recording(*read_wav(item.audio)))
    room = lm.transformer.config.max_position_embeddings - settings.limit(lm)
    if len(asked.ids) > room:
        raise PromptError(f"{len(asked.ids)} tokens; beside a reply there is room for {room}")
    return engine.prefill(asked.ids, features=asked.features)


def _refusal(item: Item, policy: str, reason: str) -> Line:
    """The line of a prompt that the model did not take: no figures, and why."""
    kept = ("item_id", "family", "split", "prompt", "expected")
    line = {name: getattr(item, name) for name in kept}
    return line | {"policy": policy, "refused": reason}


def _line(
    job: Job, lm: SpokenLM, item: Item, trace: Trace, known: dict[tuple[int, ...], Impression]
) -> Line:
    """What is kept of a reply; None for all that takes sound where the model has no voice here.

    The same codes, under whichever policy, are listened to once.
    """
    codes, figures, outside = tuple(trace.codes()), trace.summary(), outside_mass(trace)
    if codes not in known:
        known[codes] = impression_of(lm, codes, recogniser(job.recogniser), job.utmos)
    if trace.batch > 1:
        figures["ms_per_token"] = None  # the clock was shared
    text = lm.decode_text(trace.text_ids())
    line = heard_line(job, item, trace.policy, text, known[codes])
    if lm.vocoder is None:  # nobody could hear it, which makes no answer wrong
        line |= {name: None for name in _HEARD if name in line}
    kept = ("mean_depth_text", "mean_depth_speech", "traffic_ratio", "ms_per_token", "audio_s")
    return line | {name: figures[name] for name in kept} | _by_modality(trace) | {
        "outside_mass_n": outside.n,
        "outside_mass_mean": outside.mean,
        "outside_mass_max": outside.largest,
        "seed": trace.sampling.seed,
        "finish": trace.finish,
    }  # fmt: skip


def _beside(trace: Trace, full: Trace) -> Line:
    """How much of a reply's speech is full depth's, token for token at the same place.

    `same_speech` is a share of the longer of the two, None where neither spoke;
    `first_divergence_s` the audio time of the first token that differs, None where none does or
    where the frame rate is unknown.
    """
    ours, theirs = trace.codes(), full.codes()
    alike, longest = sum(map(operator.eq, ours, theirs)), max(len(ours), len(theirs))
    place, rate = first_difference(ours, theirs), trace.frame_rate
    return {
        "same_speech": alike / longest if longest else None,
        "first_divergence_s": place / rate if place is not None and rate else None,
    }


def _by_modality(trace: Trace) -> Line:
    """Tokens, traffic and time of text and of speech; a catch-up is charged to its step."""
    found: Line = {}
    for modality in (Modality.TEXT, Modality.SPEECH):
        steps = [step for step in trace.steps if step.modality is modality]
        name, clocked = modality.value, steps and trace.batch == 1
        elapsed = sum(step.elapsed_ms for step in steps)
        found |= {
            f"n_{name}": len(steps),
            f"traffic_ratio_{name}": steps_ratio(steps, trace) if steps else None,
            f"ms_per_{name}_token": elapsed / len(steps) if clocked else None,
        }
    return found


def taught(job: Job) -> set[str]:
    """The teacher's rows that can be measured here."""
    if not teacher.available():
        return set()
    return {"teacher", "codec"} if job.model == "embedded" and pitch.available() else {"teacher"}


def teach(lm: SpokenLM, job: Job, item: Item) -> list[Line]:
    """The teacher says the expected reply, straight and through the embedded codec."""
    said = teacher.speak(item.expected).samples
    sounds = {"teacher": said}
    if "codec" in taught(job):
        assert isinstance(lm.vocoder, Codec)
        again = lm.vocoder.decode(lm.vocoder.encode(said, pitch.pitch(said)))
        sounds["codec"] = again[: len(said)]
    ears, rate = recogniser(job.recogniser), teacher.SAMPLE_RATE
    return [
        heard_line(job, item, name, item.expected, impression(ears, pcm, rate, job.utmos))
        for name, pcm in sounds.items()
    ]


def work(lm: SpokenLM, job: Job, task: Task) -> list[Line]:
    """The lines of a task."""
    if not task.teaching:
        return answer(lm, job, task.items, task.policies)
    return [line for item in task.items for line in teach(lm, job, item)]
