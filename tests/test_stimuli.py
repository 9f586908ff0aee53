"""Stimuli: one format, one loudness, no tags, opaque stable ids; and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile

from listening_test import key
from listening_test import prepare as command
from listening_test.levelling import StimulusError, level
from listening_test.prepared import NotPrepared, load_prepared
from listening_test.session_plan import session_trials
from listening_test.stimuli import prepare, stimulus_id
from listening_test.study import load_study
from tests.listening import RATE, SYSTEMS, prepared_study, tone_bursts, write_study


def key_rows(study_dir: Path) -> list[dict[str, str]]:
    with open(study_dir / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_clips_are_one_format_one_loudness_and_carry_no_tags(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path)
    clips = sorted((study_dir / "serve" / "audio").glob("*.wav"))
    assert len(clips) == 3 * 3 + 1
    for clip in clips:
        data = clip.read_bytes()
        samples, rate = soundfile.read(clip)
        # A canonical header of 44 bytes, then samples: no room for any other chunk.
        assert data[:4] == b"RIFF"
        assert data[36:40] == b"data"
        assert len(data) == 44 + 2 * len(samples)
        assert rate == RATE
        assert samples.ndim == 1
        loudness = pyloudnorm.Meter(rate).integrated_loudness(samples)
        assert loudness == pytest.approx(-26, abs=0.05)
        assert np.abs(samples).max() < 1


def test_tags_of_a_source_do_not_survive(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    victim = tmp_path / SYSTEMS[0] / "text-0.wav"
    with soundfile.SoundFile(victim, "w", RATE, 1, "PCM_16") as file:
        file.title = "made by zebrafish"
        file.software = "zebrafish"
        file.write(tone_bursts(7))
    assert b"zebrafish" in victim.read_bytes()
    prepare(load_study(study), tmp_path / "out")
    for path in (tmp_path / "out" / "serve").rglob("*"):
        if path.is_file():
            assert b"zebrafish" not in path.read_bytes()


def test_the_served_half_holds_no_system_and_the_key_holds_all(tmp_path: Path) -> None:
    study_dir = prepared_study(tmp_path)
    served = "".join(
        str(path) + path.read_bytes().decode("latin-1")
        for path in (study_dir / "serve").rglob("*")
        if path.is_file()
    ).lower()
    assert not [name for name in SYSTEMS if name in served]
    rows = key_rows(study_dir)
    assert {row["system"] for row in rows} == set(SYSTEMS)
    assert {row["stimulus_id"] for row in rows} == {
        path.stem for path in (study_dir / "serve" / "audio").iterdir()
    }
    assert all(float(row["lufs_out"]) == pytest.approx(-26, abs=0.05) for row in rows)
    record = json.loads((study_dir / "key" / "study.json").read_text(encoding="utf-8"))
    assert record["config_sha256"] == load_prepared(study_dir).config_sha256


def test_nothing_served_hangs_on_the_order_of_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTENING_TEST_KEY", "one key for both")
    path = write_study(tmp_path / "source")
    designs = []
    for name in ("one", "other"):
        prepare(load_study(path), tmp_path / name)
        designs.append(load_prepared(tmp_path / name).stimuli)
        lines = path.read_text("utf-8").splitlines()
        systems = slice(lines.index("systems:") + 1, lines.index("systems:") + 1 + len(SYSTEMS))
        lines[systems] = lines[systems][::-1]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    assert designs[0] == designs[1]


def test_every_number_of_the_key_can_be_read_as_one(tmp_path: Path) -> None:
    for row in key_rows(prepared_study(tmp_path)):
        for name, text in row.items():
            if name.endswith(("_s", "_ms", "_in", "_out", "_dbtp", "_db", "_rate")):
                assert math.isfinite(float(text)), name


def test_ids_are_stable_and_keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write_study(tmp_path))

    def ids(name: str) -> list[str]:
        prepare(study, tmp_path / name)
        return [row["stimulus_id"] for row in key_rows(tmp_path / name)]

    first, again = ids("one"), ids("one")
    assert first == again
    assert len(set(first)) == len(first)
    secret = tmp_path / "one" / "key" / "secret"
    assert len(secret.read_bytes()) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    # What the study file says is no key: another folder has other ids.
    assert not set(ids("two")) & set(first)
    guessed = stimulus_id(b"small/1", "small", SYSTEMS[0], "text-0")
    assert guessed not in first
    monkeypatch.setenv(key.VARIABLE, "a secret")
    third = ids("three")
    assert not set(third) & set(first)
    assert ids("four") == third
    assert not (tmp_path / "four" / "key" / "secret").exists()


def test_identical_sound_of_two_systems_becomes_a_null_pair(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    # The same sound at another level: equal after levelling, which is what a rater hears.
    samples, _ = soundfile.read(tmp_path / SYSTEMS[0] / "text-1.wav")
    soundfile.write(tmp_path / SYSTEMS[1] / "text-1.wav", samples, RATE, subtype="PCM_16")
    told = prepare(load_study(study), tmp_path / "out")
    assert f"{SYSTEMS[0]} and {SYSTEMS[1]} sound the same on 1 of 3 texts" in told
    assert told.count("sound the same") == 1
    rows = {(row["item_id"], row["system"]): row for row in key_rows(tmp_path / "out")}
    first, twin = rows["text-1", SYSTEMS[0]], rows["text-1", SYSTEMS[1]]
    assert twin["identical_to"] == first["stimulus_id"] != twin["stimulus_id"]
    others = [row for place, row in rows.items() if place[0] != "text-1"]
    assert not [row for row in others if row["identical_to"]]
    kinds = {
        trial.clips[0]: trial.trial_type
        for trial in session_trials(load_prepared(tmp_path / "out"), 0)
    }
    null = {clip for clip, kind in kinds.items() if kind == "null_pair"}
    assert null == {first["stimulus_id"], twin["stimulus_id"]}


def test_levelling_resamples_mixes_down_and_trims() -> None:
    sound = tone_bursts(3, 1.0)
    padded = np.concatenate([np.zeros(RATE), sound, np.zeros(RATE // 2)])
    stereo = np.stack([padded, padded], axis=1)
    clip = level(stereo, RATE, 24_000, -30, "x")
    assert clip.sample_rate == 24_000
    assert len(clip.pcm) / 24_000 == pytest.approx(1.4, abs=0.02)
    assert clip.leading_silence_ms == pytest.approx(1000, abs=10)
    assert clip.trailing_silence_ms == pytest.approx(500, abs=10)
    assert clip.lufs_out == pytest.approx(-30, abs=0.05)


@pytest.mark.parametrize(
    ("samples", "lufs", "says"),
    [
        (np.zeros(RATE), -26, "is silent"),
        (np.zeros(0), -26, "is silent or empty"),
        (tone_bursts(1, 0.2), -26, "too short"),
        (np.full(RATE, np.nan), -26, "not numbers"),
    ],
)
def test_what_cannot_be_levelled_is_an_error(samples: np.ndarray, lufs: float, says: str) -> None:
    with pytest.raises(StimulusError, match=says):
        level(samples, RATE, RATE, lufs, "x")


def test_the_remedy_against_clipping_works() -> None:
    spiky = 0.01 * tone_bursts(1, 1.0)
    spiky[::2000] = 0.9
    with pytest.raises(StimulusError) as caught:
        level(spiky, RATE, RATE, -14, "x")
    advised = float(str(caught.value).split("loudness_lufs: ")[1].split("`")[0])
    assert level(spiky, RATE, RATE, advised, "x").true_peak_dbtp <= 0


def test_missing_clips_and_other_versions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path)
    (tmp_path / SYSTEMS[2] / "text-2.wav").unlink()
    assert command.main([str(study), "--out", str(tmp_path / "out")]) == 2
    assert f"text-2.wav (system {SYSTEMS[2]}, item text-2): missing" in capsys.readouterr().err
    with pytest.raises(NotPrepared, match="no prepared study"):
        load_prepared(tmp_path / "out")
    shutil.copy(tmp_path / SYSTEMS[2] / "text-1.wav", tmp_path / SYSTEMS[2] / "text-2.wav")
    assert command.main([str(study), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "ratings.sqlite3").touch()
    study.write_text(study.read_text().replace("A small test", "Another test"))
    assert command.main([str(study), "--out", str(tmp_path / "out")]) == 2
    assert "ratings of another version" in capsys.readouterr().err


def rated_study(folder: Path) -> tuple[Path, Path]:
    """A study file and its prepared folder, which holds ratings."""
    study = write_study(folder)
    prepare(load_study(study), folder / "out")
    (folder / "out" / "data").mkdir()
    (folder / "out" / "data" / "ratings.sqlite3").touch()
    return study, folder / "out"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_other_sound_never_goes_under_ids_that_were_rated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = rated_study(tmp_path)
    before = contents(out / "serve")
    assert command.main([str(study), "--out", str(out)]) == 0
    assert contents(out / "serve") == before  # the same sound: nothing to refuse
    soundfile.write(tmp_path / SYSTEMS[1] / "text-1.wav", tone_bursts(5), RATE, subtype="PCM_16")
    capsys.readouterr()
    assert command.main([str(study), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "1 of 10 clips sound different now (first: quokka/text-1)" in told
    assert "new folder" in told
    assert contents(out / "serve") == before
    assert command.main([str(study), "--out", str(tmp_path / "new")]) == 0


def test_ratings_under_another_secret_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = rated_study(tmp_path)
    before = contents(out)
    monkeypatch.setenv(key.VARIABLE, "another secret")
    with pytest.raises(key.KeyMismatch, match="other stimulus ids"):
        prepare(load_study(study), out)
    left = contents(out)
    assert {path: left[path] for path in before} == before
    monkeypatch.delenv(key.VARIABLE)
    (out / "key" / "secret").write_bytes(b"")
    with pytest.raises(key.KeyMismatch, match="damaged"):
        prepare(load_study(study), out)


def test_a_kill_in_the_last_step_leaves_no_sound_without_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = load_study(write_study(tmp_path)), tmp_path / "out"
    real, left = os.replace, 0

    class Killed(BaseException):
        pass

    def replace(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for moves in range(5):  # the secret, two files of the key, the folder served
        left = moves
        try:
            prepare(study, out)
        except Killed:
            assert not (out / "serve").exists()
        else:
            assert {path.stem for path in (out / "serve" / "audio").iterdir()} == {
                row["stimulus_id"] for row in key_rows(out)
            }
            return
    pytest.fail("the study was never prepared")
