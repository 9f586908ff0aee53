"""The headphone screen: what its sounds hold, who passes, and what is written down."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from playwright.sync_api import expect

from listening_test.export import export
from listening_test.prepared import load_prepared
from listening_test.screening import QUESTIONS, RATE, screen_clips
from listening_test.study import StudyError, load_study
from tests.browser import accessible, chromium, local_page
from tests.listening import SYSTEMS, Rater, prepared_study, serving, write_study
from tests.test_listening_methods import served

SECONDS = 3 * 1.0 + 2 * 0.5


def intervals(samples: np.ndarray) -> list[np.ndarray]:
    """The three sounds of a trial, (n, 2) each."""
    step = round(1.5 * RATE)
    return [samples[k * step : k * step + RATE] for k in range(3)]


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


@pytest.mark.parametrize("kind", ["woods", "huggins"])
def test_each_answer_is_right_twice_and_the_order_is_the_seeds(kind: Any) -> None:
    clips = screen_clips(kind, 1)
    assert sorted(clip.answer for clip in clips) == [1, 1, 2, 2, 3, 3]
    orders = {tuple(clip.answer for clip in screen_clips(kind, seed)) for seed in range(9)}
    assert len(orders) > 3
    for clip, again in zip(clips, screen_clips(kind, 1), strict=True):
        assert (clip.samples == again.samples).all()
        assert clip.samples.shape == (round(SECONDS * RATE), 2)
        assert np.abs(clip.samples).max() < 1
        assert np.abs(clip.samples[[0, -1]]).max() < 1e-3  # no click at either end


def test_woods_over_headphones_and_over_loudspeakers() -> None:
    """The softest in each ear is the answer; once both ears are mixed it is the antiphase tone."""
    for clip in screen_clips("woods", 3):
        sounds = intervals(clip.samples)
        for ear in (0, 1):
            levels = [20 * np.log10(rms(sound[:, ear])) for sound in sounds]
            assert int(np.argmin(levels)) + 1 == clip.answer
            loud = [level for n, level in enumerate(levels, 1) if n != clip.answer]
            assert loud[0] == pytest.approx(loud[1])
            assert min(levels) == pytest.approx(loud[0] - 6)
        mixed = [rms(sound.sum(axis=1)) for sound in sounds]
        assert int(np.argmin(mixed)) + 1 != clip.answer
        assert min(mixed) < 1e-9
        spectrum = np.abs(np.fft.rfft(sounds[0][:, 0]))
        assert np.argmax(spectrum) == 200  # one second: bins of 1 Hz


def test_huggins_is_in_neither_ear_alone_and_in_both_together() -> None:
    for clip in screen_clips("huggins", 3):
        for number, sound in enumerate(intervals(clip.samples), 1):
            middle = sound[RATE // 4 : 3 * RATE // 4]  # away from the ramps
            left, right = (np.fft.rfft(middle[:, ear]) for ear in (0, 1))
            hertz = np.fft.rfftfreq(len(middle), 1 / RATE)
            band = np.abs(hertz - 600) < 25
            level = [float(np.mean(np.abs(ear[band]) ** 2)) for ear in (left, right)]
            assert level[0] == pytest.approx(level[1], rel=0.3)
            phase = np.real(np.mean(left[band] * np.conj(right[band])))
            assert (phase < 0) == (number == clip.answer)
            outside = (hertz > 1000) & (hertz < 5000)
            assert np.corrcoef(left[outside].real, right[outside].real)[0, 1] > 0.95


def study_of(folder: Path, more: str) -> Path:
    return prepared_study(
        folder, systems=SYSTEMS[:2], items=2, seconds=0.42, extra=f"screening: {{{more}}}"
    )


def answer_screen(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, study_dir: Path, wrong: int
) -> tuple[Rater, dict[str, Any], list[Any]]:
    """Take the screen with so many wrong answers; the state after it, and what was sent."""
    (screen,) = load_prepared(study_dir).screens
    rater = Rater(client)
    state = rater.start()
    sent = []
    for number, (_, answer) in enumerate(screen.trials):
        assert state["state"] == "screen"
        assert (state["number"], state["total"]) == (number + 1, 6)
        rater.fetch(state)
        given = answer % 3 + 1 if number < wrong else answer
        body = rater.body(state, given, listened_ms=round(1000 * SECONDS))
        assert rater.post("rating", body).json()["error"] == "not_heard"
        with monkeypatch.context() as patched:
            later = time.time() + 5
            patched.setattr("time.time", lambda later=later: later)
            reply = rater.post("rating", body)
            assert rater.post("rating", body).json() == reply.json()  # a retry changes nothing
        assert reply.status_code == 200, reply.text
        sent.append(body)
        state = reply.json()["next"]
    return rater, state, sent


def sessions(study_dir: Path, out: Path) -> list[dict[str, str]]:
    export(study_dir, out)
    with open(out / "sessions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_who_passes_goes_on_and_who_fails_is_let_go_kindly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = study_of(tmp_path, "headphones: huggins, passes: 5, on_fail: screen_out")
    with served(study_dir) as client:
        rater, state, sent = answer_screen(client, monkeypatch, study_dir, wrong=1)
        assert state["state"] == "practice"
        late = {**sent[0], "rating_id": sent[1]["rating_id"]}
        assert rater.post("rating", late).json()["error"] == "key_reused"
        rater, state, sent = answer_screen(client, monkeypatch, study_dir, wrong=2)
        assert state == {"state": "screened_out"}
        assert rater.trial() == {"state": "screened_out"}
        assert rater.start() == {"state": "screened_out"}  # a reload is no second chance
        again = {**sent[0], "rating_id": "5" * 8 + "-5555-4555-8555-" + "5" * 12}
        assert rater.post("rating", again).json()["error"] == "out_of_order"
        third = Rater(client)
        third.start()
    rows = sessions(study_dir, tmp_path / "out")
    assert [row["state"] for row in rows] == ["started", "screened_out", "started"]
    assert [row["headphones_right"] for row in rows] == ["5", "4", ""]
    assert [row["headphones_passed"] for row in rows] == ["1", "0", ""]
    # The place of who was screened out is the next rater's.
    assert [row["design_row"] for row in rows] == ["0", "1", "1"]


def test_who_fails_may_go_on_where_the_study_only_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = study_of(tmp_path, "headphones: woods")
    with served(study_dir) as client:
        _, state, _ = answer_screen(client, monkeypatch, study_dir, wrong=6)
        assert state["state"] == "practice"
        assert state["trial_index"] == 7
    (row,) = sessions(study_dir, tmp_path / "out")
    assert (row["headphones"], row["headphones_passed"]) == ("woods", "0")
    with open(study_dir / "data" / "ratings.csv", encoding="utf-8") as file:
        assert len(file.readlines()) == 1  # a screen's answers are no ratings


def test_the_browser_learns_the_question_and_not_the_answer(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path, "headphones: woods")
    with served(study_dir) as client:
        rater = Rater(client)
        state = rater.start()
        assert state["question"]["text"] == QUESTIONS["woods"].text
        assert set(state["question"]) == {"text", "options"}
        assert set(state) == {"state", "trial_index", "number", "total", "clips", "question"}
        sound, rate = soundfile.read(io.BytesIO(rater.fetch(state)))
        assert rate == RATE
        assert sound.shape[1] == 2
    served_files = {path.stem for path in (study_dir / "serve" / "audio").iterdir()}
    key = (study_dir / "key" / "stimuli.csv").read_text(encoding="utf-8")
    assert len(served_files) == 4 + 1 + 6
    assert sum(name in key for name in served_files) == 5


@pytest.mark.parametrize(
    "bad", ["headphones: bose", "headphones: woods, passes: 7", "passes: 5", "on_fail: shout"]
)
def test_a_screen_that_cannot_be_is_told(tmp_path: Path, bad: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml line \d+: screening"):
        load_study(write_study(tmp_path, extra=f"screening: {{{bad}}}"))


@pytest.mark.browser
def test_the_screen_in_a_browser(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path, "headphones: huggins, passes: 6, on_fail: screen_out")
    with serving(study_dir) as url, chromium() as browser, local_page(browser) as page:
        page.goto(url)
        page.get_by_role("button", name="I agree").click()
        expect(page.get_by_text("check your headphones")).to_be_visible()
        page.get_by_role("button", name="Begin").click()
        for number in (1, 2):
            heading = page.get_by_role("heading", name=f"Headphone check {number} of 6")
            expect(heading).to_be_visible()
            expect(page.get_by_text("only works over headphones")).to_be_visible()
            expect(page.get_by_role("radio")).to_have_count(3)
            if number == 2:
                break
            accessible(page)
            page.keyboard.press("Space")
            expect(page.get_by_role("radio").first).to_be_enabled(timeout=15_000)
            page.keyboard.press("2")
            page.keyboard.press("Enter")
        end = {"saved": "x", "next": {"state": "screened_out"}}
        page.route("**/rating", lambda route: route.fulfill(status=200, json=end))
        page.keyboard.press("Space")
        expect(page.get_by_role("radio").first).to_be_enabled(timeout=15_000)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Thank you for your time")).to_be_visible()
        accessible(page)
