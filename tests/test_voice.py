"""Sound while tokens come: what is told joins to the complete clip, under every acceptance."""

from __future__ import annotations

import base64
import html
import json
import re

import gradio as gr
import numpy as np
import pytest

from spark import compare
from spark.comparison import CompareSettings, Reply
from spark.models import load
from spark.models.base import Pcm, SpokenLM
from spark.shelf import Shelf
from spark.ui import ComparePage
from spark.ui.live import LivePieces
from spark.voice import Voice
from tests.forms import run
from tests.tiny import BleepVocoder, tiny_lm

NAMES = ("full", "spark", "confidence")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token may be followed by sound, so that pieces are as many as they can be."""
    monkeypatch.setattr(compare, "_REPORT_EVERY_S", 0.0)


def told(
    lm: SpokenLM, settings: CompareSettings, prompt: str = "hello"
) -> tuple[dict[str, list[Pcm]], dict[str, Reply]]:
    """Pieces by policy, and the replies."""
    pieces: dict[str, list[Pcm]] = {name: [] for name in NAMES}
    begun_early = set()
    trace = None
    for event in compare.stream(lm, prompt, settings, listen=False, live=True):
        match event:
            case compare.Progress():
                trace = event.trace
            case compare.Sounded(policy, pcm):
                assert lm.vocoder
                assert event.rate == lm.vocoder.sample_rate
                assert trace is not None
                if trace.finish == "running":
                    begun_early.add(policy)
                pieces[policy].append(pcm)
                spoken = len(trace.codes()) * lm.vocoder.sample_rate / lm.vocoder.frame_rate
                assert sum(map(len, pieces[policy])) <= spoken, "only tokens that stand are voiced"
            case compare.Finished(comparison):
                assert begun_early == set(NAMES), "sound starts while tokens still come"
                return pieces, {reply.policy: reply for reply in comparison.replies}
    raise AssertionError("no end")


@pytest.mark.parametrize("acceptance", ["always", "exact", "0.5"])
def test_pieces_of_the_embedded_codec_are_the_clip(acceptance: str) -> None:
    """To 1 LSB of int16, after chunks as they come, also where drafts are taken back."""
    settings = CompareSettings(acceptance=acceptance, exit_layer=5, max_tokens=60)
    pieces, replies = told(load("embedded"), settings, "What is nineteen minus eight?")
    for name, reply in replies.items():
        joined = np.concatenate(pieces[name])
        assert len(pieces[name]) > 3
        assert reply.pcm is not None
        assert joined.shape == reply.pcm.shape
        assert abs(joined.astype(int) - reply.pcm.astype(int)).max() <= 1
        assert joined.any()
    taken_back = sum(len(reply.trace.rejected) for reply in replies.values())
    assert (taken_back > 0) == (acceptance != "always")


@pytest.mark.parametrize("acceptance", ["always", "exact", "0.3"])
@pytest.mark.parametrize("schedule", ["triple", "k6", "drift"])
def test_pieces_are_the_clip_under_every_schedule(acceptance: str, schedule: str) -> None:
    settings = CompareSettings(
        acceptance=acceptance, schedule=schedule, exit_layer=1, temperature=1.0, threshold=0.02
    )
    pieces, replies = told(tiny_lm(ends=False, max_tokens=60), settings)
    for name, reply in replies.items():
        assert reply.pcm is not None
        assert np.array_equal(np.concatenate(pieces[name]), reply.pcm)


def test_what_stops_early_is_voiced_to_its_end() -> None:
    lm, pieces, seen = tiny_lm(), [], iter(range(99))
    events = compare.stream(lm, "hello", CompareSettings(), listen=False, live=True,
                            stop=lambda: next(seen) > 12)  # fmt: skip
    for event in events:
        if isinstance(event, compare.Sounded):
            pieces.append(event.pcm)
        if isinstance(event, compare.Finished):
            (reply,) = event.comparison.replies
            assert reply.trace.finish == "interrupted"
            assert np.array_equal(np.concatenate(pieces), reply.pcm)


def test_nobody_is_told_who_did_not_ask() -> None:
    events = compare.stream(tiny_lm(), "hello", CompareSettings(), listen=False)
    assert not any(isinstance(event, compare.Sounded) for event in events)
    mute = compare.stream(tiny_lm(vocoder=False), "hello", CompareSettings(), live=True)
    assert not any(isinstance(event, compare.Sounded) for event in mute)


def test_first_sound_counts_the_drafts_that_had_to_be_asked_about() -> None:
    """Under exact a token can be heard only after the refresh that lets it stand."""
    lm = tiny_lm(ends=False)
    replies = {
        name: compare.compare(lm, "hello", CompareSettings(schedule="even", acceptance=name),
                              listen=False).replies[1]
        for name in ("always", "exact")
    }  # fmt: skip
    for name, reply in replies.items():
        steps = reply.trace.steps
        first = next(step.index for step in steps if lm.vocabulary.is_speech(step.token_id))
        asked = next(s.index for s in steps if s.index >= first and s.depth == 4)
        last = first if name == "always" else asked
        drawn = sum(step.elapsed_ms for step in steps[: last + 1])
        assert reply.first_audio_ms is not None
        assert reply.first_audio_ms >= (reply.trace.prefill_ms + drawn) * (1 - 1e-9)
        assert steps[first].depth < 4, "even begins a chunk with an exit"


def test_a_voice_says_when_it_could_first_be_heard_and_stops_if_nobody_listens() -> None:
    class Late(BleepVocoder):
        """Its stream gives nothing before the third code."""

        def stream(self):  # type: ignore[no-untyped-def]
            stream, real = super().stream(), BleepVocoder()
            held: list[int] = []

            def push(codes: list[int]) -> Pcm:
                held.extend(codes)
                return real.decode(held) if len(held) == 3 else real.decode([])

            stream.push = push  # type: ignore[method-assign]
            return stream

    voice = Voice(Late())
    assert [len(voice.say(code, 10.0 * code)) for code in (1, 2)] == [0, 0]
    assert voice.first_ms is None
    assert len(voice.say(3, 30.0)) == 960
    assert voice.first_ms is not None
    assert 30 <= voice.first_ms < 130
    heard = voice.first_ms
    assert len(voice.say(4, 40.0)) == len(voice.end(50.0)) == 0
    assert voice.first_ms == heard
    assert len(Voice(None).say(1, 1.0)) == 0


# On the page


def pieces_in(update: str) -> tuple[str, list[dict[str, str | int]]]:
    """The run's number and the pieces that an update holds."""
    match = re.search(r'data-run="(\d+)" data-pieces="([^"]*)"', update)
    assert match
    return match[1], json.loads(html.unescape(match[2]))


def test_a_page_that_skips_updates_still_has_every_piece() -> None:
    live, samples = LivePieces(), np.arange(40, dtype=np.int16)
    updates = [live.add(compare.Sounded("full", samples[i : i + 2], 8000)) for i in range(0, 40, 2)]
    known: dict[int, bytes] = {}
    for update in updates[::5] + updates[-1:]:
        _, pieces = pieces_in(update)
        known |= {int(piece["n"]): base64.b64decode(str(piece["pcm"])) for piece in pieces}
    assert b"".join(known[n] for n in sorted(known)) == samples.tobytes()
    assert pieces_in(updates[0])[0] != pieces_in(LivePieces().add(
        compare.Sounded("full", samples, 8000)))[0]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> ComparePage:
    with gr.Blocks():
        return ComparePage(Shelf(tiny_lm(), []))


def test_a_run_sends_its_sound_before_its_clips(page: ComparePage) -> None:
    updates, last = run(page)
    heard: dict[str, dict[int, bytes]] = {}
    for update in updates:
        if sound := update.get(page.board.live):
            for piece in pieces_in(sound)[1]:
                pcm = base64.b64decode(str(piece["pcm"]))
                heard.setdefault(str(piece["policy"]), {})[int(piece["n"])] = pcm
        for place, name in enumerate(NAMES):
            if update.get(page.board.players[place]):
                assert name in heard
    for reply in last[page.board.shown].comparison.replies:
        assert b"".join(heard[reply.policy].values()) == reply.pcm.tobytes()


@pytest.mark.parametrize("asked", [{"blind": True}, {"live": False}])
def test_a_blind_run_and_one_that_nobody_wants_to_hear_send_none(
    page: ComparePage, asked: dict[str, bool]
) -> None:
    updates, _ = run(page, **asked)
    assert not any(update.get(page.board.live) for update in updates)
