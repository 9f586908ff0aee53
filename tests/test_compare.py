"""Comparisons: the contract's files, what is kept on a stop, where replies part, timing."""

import io
import itertools
import json
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spark import bundle, compare, worker
from spark.comparison import CompareSettings
from spark.modality import Modality
from spark.models.base import PromptError
from spark.speech.audio import read_wav
from spark.timing import timed_change
from spark.trace import first_difference
from tests.tiny import BleepStream, tiny_lm

POLICY_KEYS = [
    "name", "text", "n_text", "n_speech", "mean_depth_text", "mean_depth_speech", "layers",
    "traffic_ratio", "ms_per_token", "real_time_factor", "first_audio_ms", "audio_s",
    "identical_to_full", "first_divergence_s", "wer_vs_text", "mos_predicted",
]  # fmt: skip
TRACE_COLUMNS = [
    "index", "chunk", "slot", "modality", "token_id", "text", "time_s", "depth", "refresh",
    "pending", "head", "confidence", "elapsed_ms", "drift",
]  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def command_files(lm, tmp_path_factory):
    """What the command line writes, with the tiny model in the embedded one's place."""
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "load", lambda name, told: lm)
        asked = ["--model", "embedded", "--prompt", "hello there", "--seed", "7", "--out", str(out)]
        assert compare.main(asked) == 0
    return out


def test_the_contracts_files_and_keys(command_files):
    summary = json.loads((command_files / "summary.json").read_text())
    assert list(summary) == ["model", "prompt", "seed", "settings", "policies"]
    assert summary["prompt"] == "hello there"
    assert summary["seed"] == 7
    assert [policy["name"] for policy in summary["policies"]] == ["full", "spark", "confidence"]
    for policy in summary["policies"]:
        assert list(policy) == POLICY_KEYS
        assert (command_files / f"{policy['name']}.trace.csv").is_file()
        assert (command_files / f"{policy['name']}.wav").is_file()


def test_the_figures_follow_from_the_traces(command_files, lm):
    summary = json.loads((command_files / "summary.json").read_text())
    traces = {
        policy["name"]: pd.read_csv(
            command_files / f"{policy['name']}.trace.csv", keep_default_na=False
        )
        for policy in summary["policies"]
    }
    full = traces["full"]
    for policy in summary["policies"]:
        trace = traces[policy["name"]]
        assert list(trace.columns) == TRACE_COLUMNS
        speech = trace[trace.modality == "speech"]
        assert policy["n_speech"] == len(speech)
        assert policy["n_text"] == (trace.modality == "text").sum()
        assert policy["mean_depth_speech"] == pytest.approx(speech.depth.mean())
        assert policy["ms_per_token"] == pytest.approx(trace.elapsed_ms.mean())
        assert policy["audio_s"] == pytest.approx(len(speech) / 25)
        pcm, rate = read_wav(command_files / f"{policy['name']}.wav")
        assert len(pcm) / rate == pytest.approx(policy["audio_s"])
        same = trace.token_id.tolist() == full.token_id.tolist()
        assert policy["identical_to_full"] is same
        pairs = itertools.zip_longest(speech.token_id, full[full.modality == "speech"].token_id)
        places = [place for place, (ours, theirs) in enumerate(pairs) if ours != theirs]
        expected = places[0] / 25 if places else None
        assert policy["first_divergence_s"] == (expected and pytest.approx(expected))
    spark = next(policy for policy in summary["policies"] if policy["name"] == "spark")
    assert spark["mean_depth_speech"] < lm.transformer.num_layers
    assert spark["traffic_ratio"] < 1


def test_first_sound_comes_before_the_whole_and_after_the_prefill(lm):
    reply = compare.compare(lm, "hello", listen=False).replies[0]
    trace = reply.trace
    first_speech = next(s.index for s in trace.steps if s.modality is Modality.SPEECH)
    until_it = trace.prefill_ms + sum(s.elapsed_ms for s in trace.steps[: first_speech + 1])
    assert until_it <= reply.first_audio_ms < until_it + 50
    assert reply.real_time_factor() > trace.summary()["decode_ms"] / 1e3 / trace.audio_s()


def test_a_cold_start_is_charged_to_no_policy(monkeypatch):
    """The first step and the first sound ever made are slow; no figure shows it."""
    lm = tiny_lm()
    cold = {"step", "sound"}

    def slowly_once(what, call):
        def wrapped(*given):
            if what in cold:
                cold.remove(what)
                time.sleep(0.5)
            return call(*given)

        return wrapped

    draw = slowly_once("step", worker.draw)
    monkeypatch.setattr(worker, "draw", draw)
    push = slowly_once("sound", BleepStream.push)
    monkeypatch.setattr(BleepStream, "push", push)
    replies = compare.compare(lm, "hello", listen=False).replies
    assert not cold
    assert max(step.elapsed_ms for reply in replies for step in reply.trace.steps) < 500
    assert all(reply.first_audio_ms < 500 for reply in replies)


def test_what_is_not_computed_is_null(lm):
    silent = tiny_lm(vocoder=False)
    comparison = compare.compare(silent, "hello")
    for policy in bundle.summary(comparison)["policies"]:
        for key in ("real_time_factor", "first_audio_ms", "audio_s", "wer_vs_text",
                    "mos_predicted", "first_divergence_s"):  # fmt: skip
            assert policy[key] is None
        assert policy["ms_per_token"] > 0
    assert not any(name.endswith(".wav") for name in bundle.files(comparison))
    unheard = compare.compare(lm, "hello", listen=False)
    assert {reply.wer_vs_text for reply in unheard.replies} == {None}
    assert {reply.timing for reply in unheard.replies} == {None}


def test_same_seed_same_tokens_and_full_depth_does_not_depend_on_other_settings(lm):
    settings = CompareSettings(seed=3)
    other = CompareSettings(seed=3, schedule="k4", exit_layer=1, measure="margin", threshold=0.1)
    runs = [compare.compare(lm, "good day", s, listen=False) for s in (settings, settings, other)]
    ids = [[reply.trace.ids() for reply in run.replies] for run in runs]
    assert ids[0] == ids[1]
    assert ids[0][0] == ids[2][0]
    assert runs[0].settings.exit_layer == lm.default_exit


def test_an_early_exit_can_change_the_reply_and_says_where(lm):
    parted = []
    for seed in range(6):
        settings = CompareSettings(seed=seed, exit_layer=1, threshold=0.0)
        parted += compare.compare(lm, "hello", settings, listen=False).replies[1:]
    assert any(reply.identical_to_full is False for reply in parted)
    for reply in parted:
        if reply.first_divergence_s is not None:
            assert reply.identical_to_full is False


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_first_difference(left, right):
    place = first_difference(left, right)
    if place is None:
        assert left == right
    else:
        assert left[:place] == right[:place]
        assert left[place : place + 1] != right[place : place + 1]


def test_a_stop_keeps_what_is_there(lm):
    asked = itertools.count()
    events = list(
        compare.stream(
            lm, "hello", CompareSettings(), listen=False, replays=4, stop=lambda: next(asked) > 10
        )
    )
    comparison = events[-1].comparison
    assert comparison.stopped
    assert [reply.policy for reply in comparison.replies] == ["full"]
    reply = comparison.replies[0]
    assert reply.trace.finish == "interrupted"
    assert 0 < len(reply.trace.steps) < 120
    assert len(reply.pcm) == len(reply.trace.codes()) * 320
    assert {"full.wav", "full.trace.csv", "summary.json"} <= set(bundle.files(comparison))


def test_a_stopped_reply_is_not_called_different_for_being_short(lm):
    whole = compare.compare(lm, "hello", CompareSettings(threshold=1.0), listen=False)
    full, conf = whole.replies[0], whole.replies[2]
    assert conf.identical_to_full is True
    conf.trace.steps = conf.trace.steps[:9]
    conf.trace.finish = "interrupted"
    conf.identical_to_full = conf.first_divergence_s = None
    compare._place_beside_full(conf, full)
    assert conf.identical_to_full is None
    assert conf.first_divergence_s is None


def test_events_tell_each_policy_twice_and_end_once(lm):
    events = list(compare.stream(lm, "hello", CompareSettings(), replays=3))
    answered = [(e.reply.policy, e.complete) for e in events if isinstance(e, compare.Answered)]
    names = ("full", "spark", "confidence")
    assert answered == [(name, done) for name in names for done in (False, True)]
    assert isinstance(events[-1], compare.Finished)
    assert sum(isinstance(event, compare.Finished) for event in events) == 1
    timings = [reply.timing for reply in events[-1].comparison.replies]
    assert timings[0] is None
    assert all(timing.replays == 3 for timing in timings[1:])
    assert all(reply.replayed_ms > 0 for reply in events[-1].comparison.replies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exit_layer": 9}, "there is no exit at layer 9: choose one of 1, 2, 3"),
        ({"candidates": (2, 4)}, "there is no exit at layer 4"),
        ({"schedule": "sometimes"}, "unknown schedule 'sometimes'"),
        ({"schedule": "k1"}, "K must be at least 2"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"head": "borrowed"}, "unknown exit head"),
    ],
)
def test_impossible_settings_are_named(lm, change, message):
    with pytest.raises(ValueError, match=message):
        compare.compare(lm, "hello", CompareSettings(**change), listen=False)


def test_the_command_says_what_is_wrong_and_writes_nothing(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "load", lambda name, told: lm)
    out = tmp_path / "out"
    assert compare.main(["--prompt", "", "--out", str(out)]) == 2
    assert "prompt is empty" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(PromptError):
        compare.compare(lm, "", listen=False)
    out.write_text("mine")
    assert compare.main(["--prompt", "hello", "--out", str(out / "below")]) == 2
    assert "no folder can be made" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_the_zip_holds_the_same_files(lm):
    comparison = compare.compare(lm, "hello", listen=False)
    with zipfile.ZipFile(io.BytesIO(bundle.zip_bytes(comparison))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == bundle.files(comparison)


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9)), min_size=3, max_size=9))
def test_timing_is_students_interval(times):
    full, other = (list(column) for column in zip(*times, strict=True))
    ratios = np.array(other) / np.array(full) - 1
    timing = timed_change(full, other)
    assert timing.change == pytest.approx(ratios.mean())
    if ratios.std() > 1e-9:
        low, high = stats.ttest_1samp(ratios, 0).confidence_interval(0.95)
        assert timing.change - timing.half_width == pytest.approx(low)
        assert timing.change + timing.half_width == pytest.approx(high)
        assert timing.distinguishable == (low > 0 or high < 0)


def test_too_few_replays_give_no_timing():
    assert timed_change([1.0, 2.0], [1.0, 2.0]) is None
