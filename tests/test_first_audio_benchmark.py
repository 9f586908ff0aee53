"""The first-audio benchmark prints one row a variant, and its figures are the replies' own."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import first_audio
from spark.engine import Generation
from spark.models.base import Pcm
from spark.trace import Step
from tests.tiny import BleepStream, tiny_lm, tiny_prompt


def test_the_last_line_is_json_with_a_row_for_every_variant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--model random --repeats 2 --tokens 11"
    monkeypatch.setattr(sys, "argv", ["first_audio", *options.split()])
    first_audio.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    by_name = {row["variant"]: row for row in result["rows"]}
    assert list(by_name) == [name for name, *_ in first_audio.VARIANTS]
    full, spark = by_name["full"], by_name["spark"]
    assert (full["time_ratio"], full["traffic_ratio"], full["mean_depth_speech"]) == (1, 1, 14)
    assert spark["traffic_ratio"] < 1
    assert spark["acceptance_rate"] is spark["drift"] is None
    assert 0 <= by_name["spark, drift meter"]["drift"] <= 1
    assert by_name["spark, drift meter"]["traffic_ratio"] == spark["traffic_ratio"]
    assert 0 <= by_name["spark, exact"]["acceptance_rate"] <= 1
    for row in result["rows"]:
        low, high = row["ms_per_token_range"]
        assert low <= row["ms_per_token"] <= high
        assert row["audio_ms"] is None, "random weights have no vocoder"


def test_first_sound_is_counted_without_and_with_the_vocoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow step and a slow push are each found in their own figure, and in no other."""
    lm = replace(tiny_lm(0), encode_prompt=lambda text: tiny_prompt("hello"))
    step, push = Generation.__next__, BleepStream.push

    def slow_step(made: Generation) -> Step:
        time.sleep(0.002)
        return step(made)

    def slow_push(stream: BleepStream, codes: list[int]) -> Pcm:
        time.sleep(0.05)
        return push(stream, codes)

    monkeypatch.setattr(Generation, "__next__", slow_step)
    monkeypatch.setattr(BleepStream, "push", slow_push)
    got = first_audio.measure(lm, repeats=1, tokens=40)
    for name, (heard,) in got.items():
        assert len(heard.trace.steps) == 40, name
        first = next(s.index for s in heard.trace.steps if lm.vocabulary.is_speech(s.token_id))
        assert heard.tokens_ms is not None
        assert heard.audio_ms is not None
        assert heard.tokens_ms >= 2 * (first + 1)
        assert heard.audio_ms >= heard.tokens_ms + 50
        assert heard.ms_per_token >= 2
        inside = sum(s.elapsed_ms for s in heard.trace.steps) / 40
        assert heard.ms_per_token > inside + 1.9, "the loop's own time is the reply's too"
