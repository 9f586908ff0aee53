"""The same codes are listened to once an item, and what is kept of them is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark.comparison import CompareSettings
from spark.evaluation import answering
from spark.evaluation.suite import Item
from spark.metrics import mos
from tests.tiny import tiny_lm


def test_the_same_codes_are_listened_to_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(layers=6, exits=(2, 4, 5))
    item = Item("i", "factual", "test", "ask me", "said", "words")
    words = ("full", "fixed:4", "confidence:1", "confidence:0")
    job = answering.Job("tiny", CompareSettings(max_tokens=24), None, tmp_path, policies=words)
    listened: list[bytes] = []
    plain = mos.predict

    def watched(pcm, rate):
        listened.append(pcm.tobytes())
        return plain(pcm, rate)

    monkeypatch.setattr(mos, "predict", watched)
    lines = answering.answer(lm, job, [item])
    by_policy = {line["policy"]: line for line in lines}
    # A threshold that nothing reaches runs every layer: full depth's tokens.
    assert by_policy["confidence:1"]["same_speech"] == 1
    assert len(listened) == len(set(listened)) < len(lines)
    for name in ("heard", "wer", "mos_predicted", "correct_heard"):
        assert by_policy["confidence:1"][name] == by_policy["full"][name]
