"""What an offline recogniser hears, and how far that is from the words that were meant.

The recogniser is pocketsphinx with its default US English model: small, free, the same everywhere
and easily fooled. Its error rate compares policies; it is no measure of what people understand.
Knows sound and words, no model of ours.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Literal, cast

import jiwer
from pocketsphinx import Decoder

from spark.speech.audio import Pcm, resample
from spark.text import normalise

__all__ = ["ASR_RATE", "Op", "aligned", "normalise", "transcribe", "word_error_rate"]

ASR_RATE = 16_000  # Hz; the default model's
# Shorter sound than this holds no word, and the recogniser's front end wants some frames.
_SHORTEST_S = 0.1

Op = Literal["equal", "substitute", "insert", "delete"]
_lock = threading.Lock()  # the decoder is not safe to share while it runs


@cache
def _decoder() -> Decoder:
    return Decoder(loglevel="FATAL")


def transcribe(pcm: Pcm, sample_rate: int) -> str:
    """Words heard in mono int16 sound (n,), normalised; empty where none are heard.

    The decoder's running cepstral mean and noise estimate are reset before each clip: without
    that a transcript would depend on the clips before it.
    """
    if len(pcm) < _SHORTEST_S * sample_rate:
        return ""
    samples = resample(pcm, sample_rate, ASR_RATE)
    with _lock:
        decoder = _decoder()
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        return normalise(heard.hypstr, longest=None) if heard else ""


def word_error_rate(reference: str, heard: str) -> float:
    """Substituted, deleted and inserted words over the reference's words; may exceed 1.

    Both sides are normalised first, so that case, punctuation and digits do not count.

    Raises:
        ValueError: the reference has no words.
    """
    reference, heard = normalise(reference, longest=None), normalise(heard, longest=None)
    if not reference:
        raise ValueError("a word error rate needs a reference with at least one word")
    return float(jiwer.wer(reference, heard)) if heard else 1.0


def aligned(reference: str, heard: str) -> list[tuple[Op, str, str]]:
    """The cheapest way from the reference to what was heard, word by word.

    Returns:
        (operation, reference word, heard word); a word that is missing on one side is "".
    """
    wanted = normalise(reference, longest=None).split()
    got = normalise(heard, longest=None).split()
    if not wanted or not got:
        rest: list[tuple[Op, str, str]] = [("delete", word, "") for word in wanted]
        return rest + [("insert", "", word) for word in got]
    pairs: list[tuple[Op, str, str]] = []
    for chunk in jiwer.process_words(" ".join(wanted), " ".join(got)).alignments[0]:
        left = wanted[chunk.ref_start_idx : chunk.ref_end_idx]
        right = got[chunk.hyp_start_idx : chunk.hyp_end_idx]
        blank = [""] * max(len(left), len(right))
        words = zip(left or blank, right or blank, strict=True)
        op = cast(Op, chunk.type)
        pairs += [(op, wanted_word, got_word) for wanted_word, got_word in words]
    return pairs
