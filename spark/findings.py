"""What a comparison found, in plain sentences: what exits saved, changed, and how far they lay.

Words from figures, nothing else: knows no page and no plot.
"""

from __future__ import annotations

import math

from spark.comparison import Comparison, Reply
from spark.modality import Modality

POLICY_TITLES = {"full": "Full depth", "spark": "SPAR-K", "confidence": "Confidence exit"}


def finding(comparison: Comparison) -> str:
    """One or two plain sentences on what the exits saved and what they changed."""
    sentences = [_sentence(reply, comparison) for reply in comparison.replies[1:]]
    if comparison.stopped:
        sentences.append("The run was stopped before its end, so figures cover what is there.")
    return " ".join(sentences)


def _sentence(reply: Reply, comparison: Comparison) -> str:
    figures, layers = reply.trace.summary(), len(reply.trace.weights.layers)
    name = POLICY_TITLES.get(reply.policy, reply.policy)
    speech = [step for step in reply.trace.steps if step.modality is Modality.SPEECH]
    if not speech:
        return f"{name} spoke no token."
    shallow = sum(step.depth < layers for step in speech)
    ran = (
        f"{name} ran {shallow} of {len(speech)} speech tokens shallow and read {_weights(figures)}"
    )
    return f"{ran}; {_change(reply, comparison.replies[0])}."


def _weights(figures: dict[str, float]) -> str:
    saved = round(100 * (1 - figures["traffic_ratio"]))
    if saved == 0:
        return "as many weights as full depth"
    return f"{abs(saved)} % {'fewer' if saved > 0 else 'more'} weights"


def _change(reply: Reply, full: Reply) -> str:
    if reply.identical_to_full:
        return "every token is the same as at full depth"
    words = "says the same words" if reply.text == full.text else "says other words"
    if reply.identical_to_full is None and reply.first_divergence_s is None:
        return "it was stopped too early to say whether it parts from full depth"
    if reply.first_divergence_s is None:
        return f"it {words}, with the same sound tokens"
    return f"it {words}, and its sound parts from full depth's at {reply.first_divergence_s:.2f} s"


def drift_words(comparison: Comparison) -> str:
    """How far exits lay from full depth; empty where none was held against it."""
    return " ".join(filter(None, map(_drift_words, comparison.replies)))


def _drift_words(reply: Reply) -> str:
    seen = reply.trace.drifted()
    if not seen:
        return ""
    name = POLICY_TITLES.get(reply.policy, reply.policy)
    figures, worst = reply.trace.summary(), max(seen, key=lambda step: step.drift)
    tokens = "one token" if len(seen) == 1 else f"{len(seen)} tokens"
    words = (
        f"{name}: where it exited, the exit head and full depth share "
        f"{100 * (1 - figures['drift']):.0f} % of their probability, in the mean over {tokens} "
        f"(KL {figures['kl']:.2f} nats)"
    )
    if len(seen) > 1:
        at = f"token {worst.index}"
        if not math.isnan(worst.time_s):
            at += f", {worst.time_s:.2f} s"
        words += f"; least at {at}: {100 * (1 - worst.drift):.0f} %"
    ks = sorted({step.k for step in reply.trace.steps if step.k is not None})
    if ks:
        words += f"; K stayed at {ks[0]}" if len(ks) == 1 else f"; K went from {ks[0]} to {ks[-1]}"
    return f"{words}."
