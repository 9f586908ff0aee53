"""The room check, both headphone screens in one study, and the sound to set the volume by."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
from fastapi.testclient import TestClient

from listening_test.prepared import load_prepared
from listening_test.screening import JND_DB, RATE, room_clips
from listening_test.study import StudyError, load_study
from tests.listening import SYSTEMS, Rater, prepared_study, write_study
from tests.test_listening_screening import served, sessions

LUFS = -26.0


def test_the_pairs_differ_in_their_noise_alone_and_by_six_decibels() -> None:
    clips = room_clips(7, LUFS)
    assert sorted(clip.answer for clip in clips) == [1, 1, 2, 2]
    gap = round(0.5 * RATE)
    for clip in clips:
        assert (clip.samples[:, 0] == clip.samples[:, 1]).all()
        assert np.abs(clip.samples).max() < 1
        n = (len(clip.samples) - gap) // 2
        parts = {1: clip.samples[:n, 0], 2: clip.samples[n + gap :, 0]}
        quiet, loud = parts[clip.answer], parts[3 - clip.answer]
        hiss = (loud - quiet) / (10 ** (JND_DB / 20) - 1)  # the voice is the same in both
        voice = quiet - hiss
        assert pyloudnorm.Meter(RATE).integrated_loudness(voice) == pytest.approx(LUFS, abs=0.2)
        ratio = 10 * np.log10(np.mean(voice**2) / np.mean(hiss[4410:-4410] ** 2))  # its ramps apart
        assert ratio == pytest.approx(46, abs=0.1)
        # Where the voice pauses, the noise alone is heard, and one is twice as strong.
        pause = np.abs(voice) < 1e-4
        spread = loud[pause].std() / quiet[pause].std()
        assert 20 * np.log10(spread) == pytest.approx(JND_DB, abs=0.3)
    again = room_clips(7, LUFS)
    assert all((a.samples == b.samples).all() for a, b in zip(clips, again, strict=True))


def study_of(folder: Path, more: str) -> Path:
    return prepared_study(
        folder, systems=SYSTEMS[:2], items=2, seconds=0.42, extra=f"screening: {{{more}}}"
    )


def take(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, study_dir: Path, wrong: set[str]
) -> dict[str, Any]:
    """Take all screens, with every answer wrong in the kinds named; the state after them."""
    rater = Rater(client)
    state = rater.start()
    for screen in load_prepared(study_dir).screens:
        for _, answer in screen.trials:
            assert state["state"] == ("environment" if screen.kind == "jnd" else "screen")
            rater.fetch(state)
            given = answer % 3 + 1 if screen.kind in wrong else answer
            body = rater.body(state, given, listened_ms=4600)
            with monkeypatch.context() as patched:
                later = time.time() + 6
                patched.setattr("time.time", lambda later=later: later)
                reply = rater.post("rating", body)
            assert reply.status_code == 200, reply.text
            state = reply.json()["next"]
            if state["state"] == "screened_out":
                return state
    return state


def test_three_screens_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "headphones: both, environment: {passes: 3, on_fail: screen_out}"
    study_dir = study_of(tmp_path, more)
    with served(study_dir) as client:
        assert take(client, monkeypatch, study_dir, set())["state"] == "practice"
        assert take(client, monkeypatch, study_dir, {"woods"})["state"] == "practice"
        end = take(client, monkeypatch, study_dir, {"jnd"})
        assert end == {"state": "screened_out", "check": "environment"}
    rows = sessions(study_dir, tmp_path / "out")
    assert [row["headphones"] for row in rows] == ["woods+huggins"] * 3
    assert [row["headphones_right"] for row in rows] == ["12", "6", "12"]
    assert [row["headphones_passed"] for row in rows] == ["1", "0", "1"]
    assert [row["environment_right"] for row in rows] == ["4", "4", "0"]
    assert [row["environment_passed"] for row in rows] == ["1", "1", "0"]
    assert [row["state"] for row in rows] == ["started", "started", "screened_out"]


def test_the_volume_is_set_by_a_sound_as_loud_as_the_clips(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path, systems=SYSTEMS[:2], items=2)
    with served(study_dir) as client:
        reply = client.get("/listen/small/volume")
        sound, rate = soundfile.read(io.BytesIO(reply.content))
        loudness = pyloudnorm.Meter(rate).integrated_loudness(sound)
        assert loudness == pytest.approx(LUFS, abs=0.2)
        assert reply.headers["cache-control"] == "no-store"
        rater = Rater(client)
        assert rater.post("volume", {}).json()["error"] == "no_session"
        state = rater.start()
        assert rater.post("volume", {}).json() == state
        Rater(client).start()
    first, second = sessions(study_dir, tmp_path / "out")
    assert first["volume_utc"].startswith("20")
    assert second["volume_utc"] == ""


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("environment: {passes: 5}", "environment.passes"),
        ("environment: {}, passes: 3", "belong to `headphones:`"),
        ("{}", "give `headphones:`"),
    ],
)
def test_a_check_that_cannot_be_is_told(tmp_path: Path, bad: str, says: str) -> None:
    extra = "screening: {}" if bad == "{}" else f"screening: {{{bad}}}"
    with pytest.raises(StudyError, match=r"study\.yaml line \d+") as caught:
        load_study(write_study(tmp_path, extra=extra))
    assert says in str(caught.value)
