"""Sound files as people have them: every form gives the same stimuli, or an error that helps."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from scipy import signal

from listening_test import prepare as command
from listening_test.levelling import StimulusError, level
from listening_test.prepared import load_prepared
from listening_test.stimuli import prepare
from listening_test.study import load_study
from tests.listening import RATE, SYSTEMS, tone_bursts, write_study

# BS.1770-4, tables 1 and 2: its two filters at 48 kHz.
SHELF = ([1.53512485958697, -2.69169618940638, 1.19839281085285],
         [1.0, -1.69065929318241, 0.73248077421585])  # fmt: skip
HIGH_PASS = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])


def loudness(samples: np.ndarray) -> float:
    """BS.1770-4 of one channel at 48 kHz, word by word: LKFS."""
    weighted = signal.lfilter(*HIGH_PASS, signal.lfilter(*SHELF, samples))
    size, step = 19_200, 4_800
    power = np.array([
        np.mean(weighted[at : at + size] ** 2) for at in range(0, len(weighted) - size + 1, step)
    ])  # fmt: skip

    def lkfs(blocks: np.ndarray) -> float:
        return float(-0.691 + 10 * np.log10(np.mean(blocks)))

    loud = power[-0.691 + 10 * np.log10(power + 1e-30) > -70]
    return lkfs(loud[-0.691 + 10 * np.log10(loud) > lkfs(loud) - 10])


def test_the_reference_itself_measures_what_the_standard_says() -> None:
    """A full-scale sine of 997 Hz in one channel has -3.01 LKFS."""
    sine = np.sin(2 * np.pi * 997 * np.arange(5 * 48_000) / 48_000)
    assert loudness(sine) == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize("lufs", [-26.0, -30.0])
@pytest.mark.parametrize("seed", range(3))
def test_clips_come_to_the_loudness_of_the_standard(lufs: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sound = tone_bursts(seed, 3.0)
    sound[RATE : RATE + RATE // 2] *= 10 ** rng.uniform(-3, 0)  # a pause, loud or gated out
    sound = signal.lfilter([1.0], [1.0, -rng.uniform(0, 0.95)], sound)
    clip = level(0.02 * sound, RATE, 48_000, lufs, "x")
    assert loudness(clip.pcm / 32768) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("text-1.wav", {"subtype": "PCM_U8"}), ("text-1.wav", {"subtype": "PCM_24"}),
        ("text-1.wav", {"subtype": "FLOAT"}), ("text-1.wav", {"subtype": "ULAW"}),
        ("text-1.wav", {"format": "WAVEX", "subtype": "PCM_16"}), ("text-1.WAV", {}),
        ("text-1.flac", {}), ("text-1.ogg", {}), ("text-1.mp3", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_every_form_of_sound_file_comes_to_one(
    tmp_path: Path, name: str, form: dict[str, str], channels: int
) -> None:
    path = write_study(tmp_path, seconds=1.0)
    (tmp_path / SYSTEMS[0] / "text-1.wav").unlink()
    sound = soxr.resample(tone_bursts(1, 1.0), RATE, 32_000)
    soundfile.write(
        tmp_path / SYSTEMS[0] / name, np.stack([sound] * channels, axis=1), 32_000, **form
    )
    told = prepare(load_study(path), tmp_path / "out")
    assert "32000 Hz mono 16-bit" in told  # the highest rate found
    with open(tmp_path / "out" / "key" / "stimuli.csv", encoding="utf-8", newline="") as file:
        (row,) = [
            row for row in csv.DictReader(file)
            if (row["system"], row["item_id"]) == (SYSTEMS[0], "text-1")
        ]  # fmt: skip
    clip = tmp_path / "out" / "serve" / "audio" / f"{row['stimulus_id']}.wav"
    info = soundfile.info(clip)
    assert (info.samplerate, info.channels, info.subtype) == (32_000, 1, "PCM_16")
    assert float(row["lufs_out"]) == pytest.approx(-26, abs=0.05)
    heard, _ = soundfile.read(clip)
    assert len(heard) / 32_000 == pytest.approx(1.0, abs=0.08)  # a coder adds some silence
    spread = np.abs(signal.correlate(heard, sound)).max()
    assert spread > 0.9 * np.linalg.norm(heard) * np.linalg.norm(sound)


def a_wav(samples: np.ndarray, subtype: str = "FLOAT") -> bytes:
    """The bytes of a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no sound file that can be read"),
        (b"this is text", "is no sound file that can be read"),
        (a_wav(tone_bursts(1))[:30], "is no sound file that can be read"),
        (a_wav(np.zeros(0)), "is silent or empty"),
        (a_wav(np.zeros(RATE)), "is silent or empty"),
        (a_wav(tone_bursts(1, 0.3)), "too short to measure"),
        (a_wav(np.full(RATE, np.nan)), "not numbers"),
        (a_wav(np.full(RATE, np.inf)), "not numbers"),
        (a_wav(np.eye(1, RATE, 99)[0]), "too short to measure"),
        (a_wav(1e-9 * tone_bursts(1, 1.0)), "its loudness cannot be measured"),
    ],
    ids=("nothing", "text", "torn", "no-samples", "silence", "short", "nan", "inf", "a-click",
         "faint"),  # a float file holds the time it was written
)  # fmt: skip
def test_a_file_that_is_no_clip_is_told_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, says: str
) -> None:
    path = write_study(tmp_path)
    (tmp_path / SYSTEMS[1] / "text-1.wav").write_bytes(data)
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert SYSTEMS[1] in told
    assert "text-1" in told
    assert not (tmp_path / "out" / "serve").exists()


def test_files_that_are_missing_or_there_twice_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path)
    for system in SYSTEMS[1:]:
        for number in range(3):
            (tmp_path / system / f"text-{number}.wav").unlink()
    (tmp_path / SYSTEMS[1] / "text-0.wav").mkdir()  # a folder is no file
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("text-") == 2 * 5
    assert "and 1 more: missing" in told
    soundfile.write(tmp_path / SYSTEMS[0] / "text-1.flac", tone_bursts(1), RATE)
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "holds both text-1.wav and text-1.flac" in capsys.readouterr().err


def test_the_report_of_preparing_counts_all_trials_of_a_rater(tmp_path: Path) -> None:
    extra = "method: ab\nnull_pairs: 2\nrepeats: 1"
    told = prepare(
        load_study(write_study(tmp_path, extra=extra, practice="{id: text-p}")), tmp_path / "out"
    )
    assert "12 trials a rater" in told  # 9 pairs of texts, 2 null pairs, a repeat
    assert load_prepared(tmp_path / "out").trials_per_session == 12


def test_what_would_clip_is_an_error_with_a_remedy() -> None:
    spiky = np.where(np.arange(RATE) % 4000 == 0, 0.9, 0.003 * tone_bursts(1, 1.0))
    with pytest.raises(StimulusError, match=r"would clip at -14 LUFS.*Set `loudness_lufs: -"):
        level(spiky, RATE, RATE, -14, "x")
