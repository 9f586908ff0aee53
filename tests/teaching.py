"""A small writer and recordings for the tests of training."""

from __future__ import annotations

import numpy as np

from spark.speech.codec import FRAME_RATE
from spark.training import questions
from spark.training.sequences import Spoken, Writer, train_tokenizer

TEXTS = [fact.answer for fact in questions.facts()] + ["the tide turns at noon"] * 3


def a_writer() -> Writer:
    return Writer(train_tokenizer(TEXTS))


def spoken(text: str, rate: float = 0.3) -> Spoken:
    """A text whose words are `rate` seconds long, with codes 0, 1, 2, ..."""
    words = np.array([[0.32 + rate * i, 0.32 + rate * (i + 1)] for i in range(len(text.split()))])
    length = int((words[-1, 1] + 0.2) * FRAME_RATE)
    phones = np.ones(length, np.int8)
    return Spoken(text, np.arange(length, dtype=np.int16), words.astype(np.float32), phones)
