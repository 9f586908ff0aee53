"""What the Compare page says of a reply and of a model, as HTML: head, player, figures, tables.

Strings from values, nothing else: no Gradio, no model. Every text that a person or a model wrote
is escaped here. Sound is in the page as int16 WAV bytes, so that nothing rescales it on the way.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from spark.comparison import Comparison, Exchange, Reply
from spark.findings import POLICY_TITLES, drift_words
from spark.metrics import wer
from spark.modality import Modality
from spark.models.base import SpokenLM
from spark.models.fits import parameters
from spark.named import Nearness, at_dial
from spark.speech.audio import Pcm, wav_bytes
from spark.trace import Step, Trace

LETTERS = "ABC"


def title(policy: str) -> str:
    """A policy's name for people."""
    return POLICY_TITLES.get(policy, policy)


def head(policy: str, note: str = "", letter: str = "") -> str:
    """A card's heading; `letter` after a blind round."""
    before = f"<span class='sk-letter'>{letter}</span> " if letter else ""
    return f"<h2>{before}{escape(title(policy))}</h2><p class='sk-note'>{escape(note)}</p>"


def waiting(policy: str) -> str:
    """A card before its reply begins."""
    return head(policy, "waiting")


def progress(policy: str, trace: Trace, limit: int, words: str) -> str:
    """A card while its reply is made: tokens so far, seconds so far, words so far."""
    done = len(trace.steps)
    audio = trace.audio_s()
    so_far = f"{done} tokens" + (f", {audio:.1f} s of speech" if audio else "")
    return (
        head(policy, so_far)
        + f"<progress max='{limit}' value='{done}' aria-label='{escape(title(policy))}: tokens'>"
        + f"</progress><p class='sk-said'>{escape(words)}</p>"
    )


def player(reply: Reply, label: str = "") -> str:
    """The reply's sound, or a sentence where there is none."""
    if reply.pcm is None or reply.sample_rate is None:
        mute = "the model has no vocoder here; its facts, under Settings, say what is missing"
        why = mute if reply.trace.codes() else "the reply holds no speech"
        return f"<p class='sk-note'>No sound: {why}.</p>"
    return sound(reply.pcm, reply.sample_rate, reply.policy, label or title(reply.policy))


def sound(pcm: Pcm, rate: int, policy: str, label: str) -> str:
    """A player of int16 samples (n,) at a rate in Hz."""
    return (
        f"<audio controls preload='auto' data-policy='{escape(policy)}' "
        f"aria-label='{escape(label)}' src='{_url(pcm, rate)}'></audio>"
    )


def blind_head(place: int) -> str:
    """A card's heading while nobody knows which policy it is."""
    return f"<h2><span class='sk-letter'>{LETTERS[place]}</span></h2>"


def blind_player(reply: Reply, place: int) -> str:
    """The reply's sound behind a button that shows neither its policy nor its length."""
    letter = LETTERS[place]
    if reply.pcm is None:
        return "<p class='sk-note'>No sound.</p>"
    return (
        f"<button type='button' class='sk-blind' data-blind='{letter}'>Play {letter}</button>"
        f"<audio preload='auto' id='blind-{letter}' src='{_wav_url(reply)}'></audio>"
    )


def _wav_url(reply: Reply) -> str:
    assert reply.pcm is not None
    assert reply.sample_rate is not None
    return _url(reply.pcm, reply.sample_rate)


def _url(pcm: Pcm, rate: int) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(wav_bytes(pcm, rate)).decode()}"


def figures(reply: Reply, complete: bool) -> str:
    """Transcripts and the card's figures; what was not measured is not shown."""
    rows = [(name, value) for name, value in _rows(reply) if value]
    table = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    said = escape(reply.text) or "<i>no words</i>"
    heard = _heard(reply) if complete else "<p class='sk-heard'>heard: listening ...</p>"
    return f"<p class='sk-said'>“{said}”</p>{heard}<dl class='sk-figures'>{table}</dl>"


def _heard(reply: Reply) -> str:
    """What the recogniser heard: missing words struck out, others underlined."""
    if reply.heard is None:
        return ""
    if not reply.heard:
        return "<p class='sk-heard'>heard: no words</p>"
    parts = []
    for op, meant, got in wer.aligned(reply.text, reply.heard):
        if op == "equal":
            parts.append(escape(got))
            continue
        if meant:
            parts.append(f"<del>{escape(meant)}</del>")
        if got:
            parts.append(f"<ins>{escape(got)}</ins>")
    return f"<p class='sk-heard'>heard: {' '.join(parts)}</p>"


def _rows(reply: Reply) -> list[tuple[str, str]]:
    summary, layers = reply.summary(), len(reply.trace.weights.layers)
    # A figure of one run beside another's would be read as a difference.
    once = "" if reply.policy == "full" else "not compared: timed once"
    unclear = "" if reply.policy == "full" or _is_timed(reply) else "not distinguishable here"
    return [
        ("speech depth", _depth(summary["mean_depth_speech"], layers)),
        ("text depth", _depth(summary["mean_depth_text"], layers)),
        ("exits kept", _exits_kept(reply)),
        ("exit drift", _drift(reply)),
        ("weights read", _number(summary["traffic_ratio"], lambda v: f"{100 * v:.0f} %")),
        ("time a token", _time(reply, summary["ms_per_token"])),
        ("first sound", _number(summary["first_audio_ms"], lambda v: f"{v:.0f} ms", once)),
        ("real-time factor", _number(summary["real_time_factor"], lambda v: f"{v:.2f}", unclear)),
        ("word errors", _number(summary["wer_vs_text"], lambda v: f"{100 * v:.0f} %")),
        ("predicted MOS", _number(summary["mos_predicted"], lambda v: f"{v:.2f}")),
        ("same as full", _sameness(reply)),
    ]


def _number(value: float | None, form: Callable[[float], str], instead: str = "") -> str:
    """The value in words, or `instead` where it must not stand alone."""
    if value is None or not math.isfinite(value):
        return ""
    return f"<small>{instead}</small>" if instead else form(value)


def _depth(mean: float | None, layers: int) -> str:
    if mean is None:
        return ""
    cut = f" <small>−{100 * (1 - mean / layers):.1f} %</small>" if mean < layers else ""
    return f"{mean:.1f} of {layers}{cut}"


def _exits_kept(reply: Reply) -> str:
    """How many of the tokens drawn at exits stood, where full depth was asked."""
    trace = reply.trace
    if not trace.verified:
        return ""
    kept = trace.verified - trace.corrected
    return f"{kept} of {trace.verified} <small>{len(trace.rejected)} steps taken back</small>"


def _drift(reply: Reply) -> str:
    figures = reply.trace.summary()
    return _number(
        figures["drift"],
        lambda distance: f"{100 * distance:.0f} % <small>KL {figures['kl']:.2f} nats</small>",
    )


def _time(reply: Reply, ms: float | None) -> str:
    if ms is None:
        return ""
    text = f"{ms if reply.replayed_ms is None else reply.replayed_ms:.1f} ms"
    if reply.policy == "full":
        return text
    timing = reply.timing
    if timing is None or not timing.distinguishable:
        runs = f" ({timing.replays} replays)" if timing else ""
        return f"<small>not distinguishable here{runs}</small>"
    change, spread = 100 * timing.change, 100 * timing.half_width
    sign = "−" if change < 0 else "+"
    return (
        f"{text} <small>{sign}{abs(change):.0f} ± {spread:.0f} %, {timing.replays} replays</small>"
    )


def _is_timed(reply: Reply) -> bool:
    """Whether replays tell the reply's time from full depth's."""
    return reply.timing is not None and reply.timing.distinguishable


def _sameness(reply: Reply) -> str:
    if reply.policy == "full":
        return ""
    if reply.identical_to_full:
        return "every token"
    if reply.first_divergence_s is not None:
        return f"until {reply.first_divergence_s:.2f} s"
    return "" if reply.identical_to_full is None else "the sound; not every token"


def summary_table(comparison: Comparison) -> str:
    """Every figure of summary.json, one column a policy; a dash is “not measured”."""
    summaries = [reply.summary() for reply in comparison.replies]
    if not summaries:
        return ""
    names = [title(s["name"]) for s in summaries]
    keys = [key for key in summaries[0] if key != "name"]
    body = "".join(
        f"<tr><th scope='row'>{escape(key)}</th>"
        + "".join(f"<td>{_cell(summary[key])}</td>" for summary in summaries)
        + "</tr>"
        for key in keys
    )
    return (
        scrolling_table("All figures", ["figure", *names], f"<tbody>{body}</tbody>")
        + "<p class='sk-note'>The names are those of summary.json; – means not measured. "
        "first_audio_ms and ms_per_token are of one run each: their differences between policies "
        "mean nothing; those of replays stand on the cards.</p>"
    )


def scrolling_table(name: str, header: Sequence[str], bodies: str, kind: str = "") -> str:
    """A table that scrolls inside itself on a narrow page.

    Args:
        name: for who does not see it: what scrolls must be reachable by keyboard, and named.
        header: of the columns, plain text.
        bodies: its tbody elements, HTML.
        kind: one more class of the table's.
    """
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in header)
    return (
        f"<div class='sk-scroll' tabindex='0' role='region' aria-label='{escape(name)}'>"
        f"<table class='{f'sk-table {kind}'.strip()}'><thead><tr>{head}</tr></thead>"
        f"{bodies}</table></div>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def token_tables(replies: Sequence[Reply]) -> str:
    """Every token of every reply, with a button that plays the sound from there."""
    return "<div class='sk-tokens'>" + "".join(_tokens(reply) for reply in replies) + "</div>"


def _tokens(reply: Reply) -> str:
    name, layers = escape(title(reply.policy)), len(reply.trace.weights.layers)
    rows = "".join(_token_row(step, reply, layers) for step in reply.trace.steps)
    return (
        f"<div class='sk-scroll' tabindex='0' role='region' aria-label='Tokens of {name}'>"
        f"<table class='sk-table'><caption>{name}</caption><thead><tr><th scope='col'>#</th>"
        "<th scope='col'>kind</th><th scope='col'>depth</th><th scope='col'>sure</th>"
        "<th scope='col'>drift</th><th scope='col'>play from</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{_taken_back(reply)}</div>"
    )


def _taken_back(reply: Reply) -> str:
    """The drafts that do not stand, in words: the plot shows them as marks."""
    taken, ahead, told = reply.trace.rejected, len(reply.trace.ahead), ""
    if taken:
        drafts = ", ".join(f"{step.index} (depth {step.depth})" for step in taken)
        told = f"<p class='sk-note'>Drafts taken back, by token: {drafts}.</p>"
    if ahead:
        told += f"<p class='sk-note'>Drawn ahead of the stop and not heard: {ahead} tokens.</p>"
    return told


def _token_row(step: Step, reply: Reply, layers: int) -> str:
    word = f" {escape(step.text.strip())}" if step.modality is Modality.TEXT else ""
    mark = " ▽" if step.refresh else (" ○" if step.depth < layers else "")
    mark += f" K {step.k}" if step.refresh and step.k is not None else ""
    sure = "" if math.isnan(step.confidence) else f"{step.confidence:.2f}"
    drift = "" if math.isnan(step.drift) else f"{100 * step.drift:.0f} %"
    play = ""
    if not math.isnan(step.time_s) and reply.pcm is not None:
        play = (
            f"<button type='button' class='sk-from' data-play='{escape(reply.policy)}' "
            f"data-time='{step.time_s:.3f}' aria-label='{escape(title(reply.policy))}, play from "
            f"{step.time_s:.2f} seconds'>{step.time_s:.2f} s</button>"
        )
    return (
        f"<tr class='sk-{step.modality.value}'><td>{step.index}</td>"
        f"<td>{step.modality.value}{word}</td><td>{step.depth}{mark}</td>"
        f"<td>{sure}</td><td>{drift}</td><td>{play}</td></tr>"
    )


def drifted(comparison: Comparison) -> str:
    """A sentence under the drift line; empty where nothing was measured."""
    words = drift_words(comparison)
    if not words:
        return ""
    return (
        f"<p class='sk-note'><b>Drift.</b> {escape(words)} 100 % would be the same distribution; "
        "both are taken at the sampling's temperature.</p>"
    )


def dial(value: float, nearness: Nearness = "nats") -> str:
    """What the dial from lossless to fast means where it stands."""
    match at_dial(value):
        case "exact":
            told = (
                "Lossless: full depth is asked about every token drawn at an exit, and where the "
                "two differ its own stands. The reply is full depth's, token for token."
            )
        case "always":
            told = "Fast: every token drawn at an exit stands, as SPAR-K was published."
        case amount if nearness == "sound":
            told = (
                "Relaxed: a token drawn at an exit stands if it is full depth's or sounds like it: "
                "a code of the same group, in which no two lie further apart than "
                f"{amount} times the usual distance of neighbours."
            )
        case amount:
            told = (
                f"Relaxed: a token drawn at an exit stands if full depth would have drawn it too, "
                f"had it been {amount} nats likelier."
            )
    return f"<p class='sk-note' role='status'>{told} For SPAR-K and confidence exit.</p>"


def credit(lm: SpokenLM) -> str:
    """A line that always stands in the page: whose voice this is, and under which licence."""
    return f"<p class='sk-note'>Model: <b>{escape(lm.title)}</b>. {escape(lm.licence)}</p>"


def model_facts(lm: SpokenLM) -> str:
    """What a model is here: size, place, exit heads, what it needs to be heard and to hear."""
    body, vocoder = lm.transformer, lm.vocoder
    kind = str(body.dtype).removeprefix("torch.")
    count = sum(parameters(body.config)) / 1e6
    named = f"{count / 1e3:.1f} billion" if count >= 1000 else f"{count:.1f} million"
    size = body.nbytes / 1e9
    stored = f"{size:.1f} GB" if size >= 1 else f"{1e3 * size:.0f} MB"
    rows = [
        ("size", f"{named} parameters, {body.num_layers} layers; {stored} of weights, {kind}"),
        ("sound", f"{vocoder.sample_rate} Hz" if vocoder else f"none: {lm.silence}"),
        ("spoken prompts", "yes" if lm.listener else f"none: {lm.deafness}"),
        ("longest reply", _reply_length(lm)),
        ("licence", lm.licence),
    ]
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in rows if value
    )
    notes = "".join(f"<p class='sk-note'>{escape(note)}</p>" for note in lm.notes)
    return f"<dl class='sk-figures'>{listed}</dl>{notes}"


def _reply_length(lm: SpokenLM) -> str:
    """Tokens of the longest reply, and the seconds of speech in whole groups of so many."""
    rate = lm.vocoder.frame_rate if lm.vocoder else lm.speech_rate
    if not rate:
        return f"{lm.max_tokens} tokens"
    group = lm.layout.n_text + lm.layout.n_speech
    seconds = lm.max_tokens * lm.layout.n_speech / group / rate
    return f"{lm.max_tokens} tokens, about {seconds:.0f} s of speech"


def conversation(earlier: Sequence[Exchange], title: str) -> str:
    """Questions and answers before the one that runs; empty where there are none."""
    lines = "".join(
        f"<p><b>You:</b> {escape(past.asked)}</p><p><b>{escape(title)}:</b> {escape(past.words)}"
        "</p>"
        for past in earlier
    )
    if not lines:
        return ""
    return (
        "<div class='sk-conversation' role='region' aria-label='The conversation so far'>"
        f"{lines}</div>"
    )


def message(text: str, kind: str = "status") -> str:
    """A line under the button: `status` is read out when there is time, `alert` at once."""
    return f"<p class='sk-{kind}' role='{kind}'>{escape(text)}</p>" if text else ""


def beside(text: str, kind: str = "status") -> str:
    """The same words at a second place, without a role: they are read out once."""
    return f"<p class='sk-{kind}'>{escape(text)}</p>" if text else ""
