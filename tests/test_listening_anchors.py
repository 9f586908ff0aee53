"""Anchors: made from clips or from a folder, heard like systems, and kept apart in the analysis."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from listening_test import prepare as command
from listening_test.admin import main as admin
from listening_test.admin import overview
from listening_test.analysis import Plan, analyse
from listening_test.anchors import low_passed, modulated_noise
from listening_test.export import exported_frame
from listening_test.levelling import StimulusError
from listening_test.plots import systems_figure
from listening_test.prepared import load_prepared
from listening_test.profiles import rater_values
from listening_test.report import write_report
from listening_test.session_plan import session_trials
from listening_test.study import Study, StudyError, load_study
from listening_test.tables import system_rows
from tests.listening import RATE, SYSTEMS, prepared_study, tone_bursts, write_study
from tests.test_listening_methods import served, take

OF = f"of: {SYSTEMS[0]}"
THREE = f"anchors: [{{low_pass: 3500, {OF}}}, {{mnru: 10, {OF}}}, {{name: dull, folder: dull}}]"
NAMES = ("anchor-3500", "anchor-mnru-10", "dull")


def folder_of_clips(folder: Path) -> None:
    (folder / "dull").mkdir(parents=True)
    for text in ("0", "1", "2", "p"):
        clip = tone_bursts(7 + len(text) + ord(text), 0.45)
        soundfile.write(folder / "dull" / f"text-{text}.wav", clip, RATE, subtype="PCM_16")


def anchored(folder: Path, extra: str = "", **options: Any) -> Path:
    folder_of_clips(folder / "source")
    return prepared_study(folder, seconds=0.45, extra=f"{THREE}\n{extra}", **options)


# ---- how they are made
@settings(deadline=None, max_examples=25)
@given(q=st.floats(0, 40), seed=st.integers(0, 999))
def test_noise_follows_the_clip_at_q_decibels(q: float, seed: int) -> None:
    sound = tone_bursts(1000, 1.5)  # of none of the seeds: the noise would be the clip's own
    clean = np.concatenate([sound, np.zeros(RATE), -sound])  # without an offset
    silence = slice(len(sound), len(sound) + RATE)
    noise = modulated_noise(clean, q, [seed]) - clean
    assert 10 * np.log10(np.sum(clean**2) / np.sum(noise**2)) == pytest.approx(q, abs=0.4)
    assert np.abs(noise[silence]).max() < 1e-12  # silence stays silent
    # White: as a Gaussian factor makes it, its spectrum is flat to a decibel or two.
    _, power = signal.welch(noise, RATE, nperseg=512)
    assert np.ptp(10 * np.log10([part.mean() for part in np.array_split(power[4:-4], 10)])) < 2
    assert np.array_equal(modulated_noise(clean, q, [seed]) - clean, noise)


def test_noise_has_nothing_of_an_offset_and_takes_stereo() -> None:
    clean = tone_bursts(3, 0.5)
    shifted = np.stack([clean + 0.2, clean + 0.2], axis=1)
    assert modulated_noise(shifted, 10, [1]) == pytest.approx(
        modulated_noise(clean, 10, [1]), abs=1e-9
    )


def test_a_low_pass_has_nothing_above_its_cutoff() -> None:
    """BS.1534's 3.5 kHz anchor: flat to 3.5 kHz, 25 dB down at 4 kHz and 50 dB at 4.5 kHz."""
    impulse = np.zeros(RATE)
    impulse[RATE // 2] = 1
    frequencies, gains = signal.freqz(low_passed(impulse, RATE, 3500, "x"), worN=RATE, fs=RATE)
    level = 20 * np.log10(np.abs(gains) + 1e-12)
    assert np.abs(level[frequencies <= 3500]).max() < 0.1
    assert level[frequencies >= 4000].max() < -25
    assert level[frequencies >= 4500].max() < -50
    with pytest.raises(StimulusError, match="another anchor"):
        low_passed(impulse, 8000, 3500, "x")


# ---- in the study file
@pytest.mark.parametrize(
    ("extra", "line", "says"),
    [
        ("anchors: [3500]", 12, "anchor-3500 is made from which clips? Add `of:`, one of"),
        (f"anchors:\n  - {{mnru: 10, {OF}}}\n  - {{mnru: 10, {OF}}}", 12, "listed twice"),
        ("anchors:\n  - {mnru: 10, of: nobody}", 13, "'nobody' is not one of"),
        (f"anchors:\n  - {{mnru: 10, low_pass: 3500, {OF}}}", 13, "exactly one of"),
        ("anchors:\n  - {name: x}", 13, "exactly one of"),
        (f"anchors:\n  - {{mnru: 99, {OF}}}", 13, "less than or equal to 50 (found 99)"),
        ("anchors: [loud]", 12, "found 'loud'"),
        ("anchors:\n  - {folder: zebrafish}", 13, "needs a `name:`"),
        (f"anchors:\n  - {{name: x, folder: zebrafish, {OF}}}", 13, "leave `of:` out"),
        ("anchors:\n  - {name: x, folder: nowhere}", 13, "x: there is no folder"),
        (f"anchors:\n  - {{name: quokka, mnru: 10, {OF}}}", 13, "has the name of an anchor"),
        (f"anchors:\n  - {{mnru: 10, fro: {SYSTEMS[0]}}}", 13, "known keys: name, of, low_pass"),
        (f"method: ab\nanchors: [{{mnru: 10, {OF}}}]", 13, "method ab has no anchors"),
        (f"anchors: [{{mnru: 10, {OF}}}]\ntrials_per_rater: 6", 13, "4 systems and anchors"),
    ],
)
def test_what_an_anchor_cannot_be_is_told_with_its_line(
    tmp_path: Path, extra: str, line: int, says: str
) -> None:
    practice = "{id: text-p}" if "method: ab" in extra else None
    with pytest.raises(StudyError) as caught:
        load_study(write_study(tmp_path, extra=extra, practice=practice))
    assert f"study.yaml line {line}: " in str(caught.value)
    assert says in str(caught.value)


def test_a_study_of_before_keeps_its_hash(tmp_path: Path) -> None:
    """Computed by the version that knew low-pass anchors of MUSHRA tests only."""
    for name in "ab":
        (tmp_path / name).mkdir()
    path = tmp_path / "old.yaml"
    path.write_text(
        "id: old\ntitle: An older study\nmethod: mushra\nreference: a\nanchors: [3500, 7000]\n"
        "systems: [{name: a, folder: a}, {name: b, folder: b}]\nitems: [{id: x}, {id: y}]\n"
        "non_inferiority_margin: 0.2\n"  # the default of that version
        "consent: You may stop at any time.\n"  # whose standard ones were others
        "instructions: Use headphones if you can, in a quiet place. Play each clip to its end, as "
        "often as you like, then choose the answer that fits best. There are no right answers.\n"
    )
    study = load_study(path)
    assert study.sha256 == "d046a4924d5d6054d9993ca5fb8efaefbd05e6bdca3b3ab50c38187fd99275e3"
    recorded = Study.model_validate(study.model_dump(mode="json"))
    assert recorded.sha256 == study.sha256
    assert recorded.names == ["a", "b", "anchor-3500", "anchor-7000"]


# ---- prepared
def test_anchors_are_levelled_named_opaquely_and_in_the_key(tmp_path: Path) -> None:
    study_dir = anchored(tmp_path)
    with open(study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["trial_type"] == "rating"]
    assert {row["system"] for row in rows} == {*SYSTEMS, *NAMES}
    assert all(float(row["lufs_out"]) == pytest.approx(-26, abs=0.05) for row in rows)
    served_files = "".join(
        path.name + path.read_bytes().decode("latin-1")
        for path in (study_dir / "serve").rglob("*") if path.is_file()
    )  # fmt: skip
    assert not [name for name in (*NAMES, "mnru", "anchor") if name in served_files]
    clips = {
        (row["system"], row["item_id"]): soundfile.read(
            study_dir / "serve" / "audio" / f"{row['stimulus_id']}.wav"
        )[0]
        for row in rows
    }
    above = {}
    for (system, _), clip in clips.items():
        frequencies, power = signal.welch(clip, RATE)
        above[system] = power[frequencies > 4200].sum() / power.sum()
    assert above["anchor-3500"] < 1e-4 < 0.1 < above[SYSTEMS[0]]
    assert above["anchor-mnru-10"] > 0.1


def test_an_anchor_can_be_made_from_an_anchor_of_clips_and_be_practised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_clips(tmp_path)
    extra = "anchors: [{name: dull, folder: dull}, {name: noisy, mnru: 5, of: dull}]"
    path = write_study(
        tmp_path, seconds=0.45, extra=extra, practice="{id: text-p, system: noisy}"
    )  # fmt: skip
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert "noisy (anchor): mean length" in capsys.readouterr().out
    practice, *order = session_trials(load_prepared(tmp_path / "out"), 0)
    assert practice.trial_type == "practice"
    assert len(order) == 3 * 5
    (tmp_path / "dull" / "text-1.wav").unlink()
    assert command.main([str(path), "--out", str(tmp_path / "new")]) == 2
    assert "text-1.wav (system dull, item text-1): missing" in capsys.readouterr().err


# ---- analysed
@pytest.mark.parametrize("method", ["acr", "p835", "dcr"])
def test_anchors_have_a_mean_and_take_part_in_no_comparison(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = f"method: {method}" + (f"\nreference: {SYSTEMS[1]}" if method == "dcr" else "")
    study_dir = anchored(tmp_path, extra)
    with served(study_dir) as client:
        for number in range(4):
            take(client, monkeypatch, number, step=number + 1)
    frame, study = exported_frame(study_dir)
    result = analyse(frame, Plan.of(study))
    tested = [name for name in SYSTEMS if method != "dcr" or name != SYSTEMS[1]]
    each = result.get("dimensions", {"": result})
    without = analyse(frame[~frame["system"].isin(NAMES)], Plan.of(study))
    for dimension, found in each.items():
        assert list(found["systems"]) == tested
        assert set(found["anchors"]) == set(NAMES)
        pairs = {(pair["b"], pair["a"]) for pair in found["pairs"]}
        assert pairs == set(combinations(tested, 2))
        alone = without.get("dimensions", {"": without})[dimension]
        for part in ("systems", "pairs", "agreement", "mixed_model"):
            assert found[part] == alone[part]
        for name, values in found["anchors"].items():
            rows = frame[(frame["system"] == name) & (frame["trial_type"] == "rating")]
            scores = rows[rows["dimension"] == dimension]["score"] if dimension else rows["score"]
            assert values["mos"] == pytest.approx(scores.mean())
            assert values["n"] == len(scores) == 4 * 3
    assert [row["system"] for row in system_rows(result)] == [
        *tested, *(f"{name} (anchor)" for name in NAMES),
    ]  # fmt: skip
    shown = [row["system"] for row in system_rows(result)]
    assert list(systems_figure(result).data[0].y) == shown
    found = rater_values(frame, result)
    assert found is not None
    assert set(found.values) == set(shown)
    cells = overview(study_dir, 0.0).cells
    assert set(cells[0]) == {"text", *tested, *NAMES}
    assert all(row[name] == 4 for row in cells for name in NAMES)


def test_the_report_tells_anchors_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_dir = anchored(tmp_path, "report: {systems: Three machines.}")
    with served(study_dir) as client:
        for number in range(3):
            take(client, monkeypatch, number)
    assert admin([str(study_dir), "--close"]) == 0
    write_report(study_dir, tmp_path / "report")
    told = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "anchor-mnru-10 (anchor)" in told
    assert f"(modulated noise of ITU-T P.810, Q = 10 dB, made from {SYSTEMS[0]})" in told
    assert "dull (clips of its own)" in told
    assert "take part in no comparison and no correction" in told
    assert "Holm's correction over 3 pairs" in told
