"""Stimuli: the same PCM format, loudness and edges for all, under ids that tell nothing.

Takes each system's sound (a folder of WAVs, or spark through `decode.py`), brings every clip to
one sample rate, mono 16-bit PCM, at most `EDGE_S` of silence at either end and one BS.1770
loudness, and writes it under an opaque id. What cannot be measured or would clip is an error,
never passed through: a louder clip is preferred, and that would be mistaken for the system.
Identical audio of two systems is found by hash and becomes a null pair.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyloudnorm
import soundfile
import soxr

from listening_test import key
from listening_test.decode import decode_policies
from listening_test.prepared import PreparedStudy, Stimulus, TrialType
from listening_test.study import Item, Practice, Study, System

Samples = npt.NDArray[np.float64]

EDGE_S = 0.2
# Silence: 60 dB below the clip's peak, in 5 ms steps.
_SILENCE_DB = -60.0
# BS.1770 measures blocks of 400 ms.
_SHORTEST_S = 0.4


class StimulusError(ValueError):
    """A clip is missing or cannot be levelled; the message names it and the remedy."""


@dataclass(frozen=True)
class Levelled:
    """A finished clip: int16 samples and what was measured on the way."""

    pcm: npt.NDArray[np.int16]
    sample_rate: int
    lufs_in: float
    lufs_out: float
    true_peak_dbtp: float
    gain_db: float
    leading_silence_ms: float
    trailing_silence_ms: float

    @property
    def wav(self) -> bytes:
        """The clip as a WAV file: a 44-byte header and samples, no other chunk."""
        file = io.BytesIO()
        soundfile.write(file, self.pcm, self.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def level(samples: Samples, rate: int, target_rate: int, lufs: float, name: str) -> Levelled:
    """Bring a clip to the common form.

    Args:
        samples: (n,) or (n, channels), full scale 1.
        rate, target_rate: Hz.
        lufs: BS.1770 integrated loudness to reach.
        name: of the clip, for messages.

    Raises:
        StimulusError: not measurable (too short, silent, not finite) or would clip.
    """
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not np.isfinite(mono).all():
        raise StimulusError(f"{name}: holds samples that are not numbers; make the file again.")
    if rate != target_rate:
        mono = soxr.resample(mono, rate, target_rate, quality="VHQ")
    mono, leading, trailing = _trim(mono, target_rate, name)
    if len(mono) < _SHORTEST_S * target_rate:
        raise StimulusError(
            f"{name}: {len(mono) / target_rate:.2f} s of sound is too short to measure its "
            f"loudness ({_SHORTEST_S} s at least). Take a longer clip, or leave the item out."
        )
    meter = pyloudnorm.Meter(target_rate)
    before = float(meter.integrated_loudness(mono))
    if not np.isfinite(before):
        raise StimulusError(f"{name}: is silent, its loudness cannot be measured. Replace it.")
    gain = lufs - before
    scaled = mono * 10 ** (gain / 20)
    peak = _true_peak_db(scaled)
    if peak > 0:
        raise StimulusError(
            f"{name}: would clip at {lufs:g} LUFS (true peak {peak:+.1f} dBTP). "
            f"Set `loudness_lufs: {np.floor(lufs - peak):g}` or lower in the study file."
        )
    pcm = np.clip(np.rint(scaled * 32768), -32768, 32767).astype(np.int16)
    after = float(meter.integrated_loudness(pcm / 32768))
    return Levelled(pcm, target_rate, before, after, peak, gain, leading, trailing)


def _trim(mono: Samples, rate: int, name: str) -> tuple[Samples, float, float]:
    """Cut silence beyond EDGE_S at either end; also the silence found there, in ms."""
    step = max(1, rate // 200)
    peak = float(np.abs(mono).max(initial=0.0))
    if peak == 0:
        raise StimulusError(f"{name}: is silent or empty. Replace it.")
    loud = np.flatnonzero(np.abs(mono) > peak * 10 ** (_SILENCE_DB / 20))
    first, last = loud[0] // step * step, min(-(-(loud[-1] + 1) // step) * step, len(mono))
    edge = round(EDGE_S * rate)
    kept = mono[max(first - edge, 0) : last + edge]
    return kept, 1000 * first / rate, 1000 * (len(mono) - last) / rate


def _true_peak_db(samples: Samples) -> float:
    """True peak in dBTP, by four-fold oversampling (BS.1770-4 Annex 2)."""
    peak = max(np.abs(samples).max(), np.abs(soxr.resample(samples, 1, 4)).max())
    return float(20 * np.log10(peak))


def stimulus_id(secret: bytes, study_id: str, system: str, item_id: str) -> str:
    """Opaque id: HMAC-SHA256 of what the clip is, the same at every preparation."""
    message = json.dumps([study_id, system, item_id]).encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:16]


def prepare(study: Study, out: Path, progress: Callable[[str], None] | None = None) -> str:
    """Write STUDY_DIR/serve and STUDY_DIR/key for a study.

    Preparing the same study again replaces the clips and keeps ids and ratings. Where ratings
    exist, a changed study is refused, and so are clips that sound different.

    Returns:
        A short report for people.

    Raises:
        StimulusError: a clip is missing or cannot be levelled.
        KeyMismatch: `out` holds ratings that these clips do not belong to.
    """
    key.check_version(out, study)
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    (part / "serve" / "audio").mkdir(parents=True)
    (part / "key").mkdir()
    clips: list[tuple[System, Item | Practice, TrialType, Levelled]] = []
    sources = list(_sources(study, progress))
    rate = study.sample_rate or max(rate for *_, rate in sources)
    for system, item, trial_type, samples, found_rate in sources:
        name = f"{system.name}/{item.id}"
        levelled = level(samples, found_rate, rate, study.loudness_lufs, name)
        clips.append((system, item, trial_type, levelled))
    rows, prepared = _describe(study, clips, key.secret(out))
    key.check_same_sound(out, rows)
    wavs = {str(row["stimulus_id"]): clip[3].wav for row, clip in zip(rows, clips, strict=True)}
    for name in sorted(wavs):  # so that the files' times say nothing either
        (part / "serve" / "audio" / f"{name}.wav").write_bytes(wavs[name])
    prepared.save(part / "serve")
    key.write(part / "key", study, rows)
    # The key first, file over file: whatever kills this, there is no sound without its key, and
    # the secret is never gone.
    (out / "key").mkdir(exist_ok=True)
    for path in (part / "key").iterdir():
        os.replace(path, out / "key" / path.name)
    shutil.rmtree(out / "serve", ignore_errors=True)
    os.replace(part / "serve", out / "serve")
    shutil.rmtree(part)
    return _report(study, rows, rate)


def _sources(
    study: Study, progress: Callable[[str], None] | None
) -> Iterator[tuple[System, Item | Practice, TrialType, Samples, int]]:
    """Every clip of the study as (system, item, type, samples at full scale 1, Hz)."""
    parts: list[tuple[Item | Practice, TrialType, list[System]]] = []
    for clip in study.practice:
        systems = [system for system in study.systems if system.name == clip.system]
        parts.append((clip, "practice", systems))
    parts += [(item, "rating", list(study.systems)) for item in study.items]
    for number, (item, trial_type, systems) in enumerate(parts, 1):
        if progress:
            progress(f"text {number} of {len(parts)}")
        decoded = [system.policy for system in systems if system.policy]
        sounds = {}
        if decoded:
            assert item.prompt is not None
            try:
                sounds = decode_policies(study.model, item.prompt, decoded, study.seed)
            except ValueError as error:
                raise StimulusError(f"item {item.id}: {error}") from error
        for system in systems:
            if system.policy:
                pcm, rate = sounds[system.policy]
                yield system, item, trial_type, pcm / 32768, rate
            else:
                path = study.folder(system) / f"{item.id}.wav"
                samples, rate = _read(path, system.name, item.id)
                yield system, item, trial_type, samples, rate


def _read(path: Path, system: str, item: str) -> tuple[Samples, int]:
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=False)
    except (OSError, soundfile.SoundFileError):
        raise StimulusError(
            f"system {system}, item {item}: {path} is missing or no WAV file. "
            "Every system needs <item id>.wav for every item."
        ) from None
    return samples, int(rate)


def _describe(
    study: Study, clips: list[tuple[System, Item | Practice, TrialType, Levelled]], secret: bytes
) -> tuple[list[dict[str, Any]], PreparedStudy]:
    """Rows of the key, and the design that the server may know.

    Nothing of the design, not even its order, hangs on the order of systems in the study file.
    """
    names = [system.name for system in study.systems]
    # The order of arms must not be the order of the study file.
    arms = sorted(names, key=lambda name: stimulus_id(secret, study.id, name, "arm"))
    rows: list[dict[str, Any]] = []
    stimuli: list[Stimulus] = []
    hashes = [hashlib.sha256(levelled.pcm.tobytes()).hexdigest() for *_, levelled in clips]
    sounds = [(clip[1].id, audio) for clip, audio in zip(clips, hashes, strict=True)]
    first: dict[tuple[str, str], str] = {}
    for (system, item, trial_type, levelled), audio in zip(clips, hashes, strict=True):
        own = stimulus_id(secret, study.id, system.name, item.id)
        identical = first.setdefault((item.id, audio), own)
        twin = trial_type == "rating" and sounds.count((item.id, audio)) > 1
        kind: TrialType = "null_pair" if twin else trial_type
        duration = len(levelled.pcm) / levelled.sample_rate
        arm = 0 if trial_type == "practice" else arms.index(system.name)
        stimuli.append(Stimulus(own, item.id, arm, duration, kind))
        rows.append(
            {
                "stimulus_id": own,
                "system": system.name,
                "item_id": item.id,
                "trial_type": kind,
                "audio_sha256": audio,
                "duration_s": round(duration, 4),
                "sample_rate": levelled.sample_rate,
                "lufs_in": round(levelled.lufs_in, 3),
                "lufs_out": round(levelled.lufs_out, 3),
                "true_peak_dbtp": round(levelled.true_peak_dbtp, 2),
                "gain_db": round(levelled.gain_db, 3),
                "leading_silence_ms": round(levelled.leading_silence_ms, 1),
                "trailing_silence_ms": round(levelled.trailing_silence_ms, 1),
                "identical_to": identical if identical != own else None,
            }
        )
    order = [*(clip.id for clip in study.practice), *(item.id for item in study.items)]
    stimuli.sort(key=lambda stimulus: (order.index(stimulus.item_id), stimulus.arm))
    return rows, PreparedStudy(
        study_id=study.id, config_sha256=study.sha256, title=study.title, method=study.method,
        dimension=study.dimension, question=study.shown_question, labels=study.labels,
        consent=study.consent, instructions=study.instructions, language=study.language,
        seed=study.seed, arms=len(arms), items_per_rater=study.items_per_rater,
        planned_sessions=study.planned_sessions, stimuli=tuple(stimuli),
    )  # fmt: skip


def _report(study: Study, rows: list[dict[str, Any]], rate: int) -> str:
    rated = [row for row in rows if row["trial_type"] != "practice"]
    lines = [
        f"{study.id}: {len(rows)} clips, {rate} Hz mono 16-bit, {study.loudness_lufs:g} LUFS; "
        f"{study.items_per_rater * len(study.systems)} trials a rater, "
        f"{study.planned_sessions} sessions planned"
    ]
    for system in study.systems:
        seconds = [row["duration_s"] for row in rated if row["system"] == system.name]
        # Length cannot be hidden from a rater, so it is reported.
        lines.append(f"  {system.name}: mean length {np.mean(seconds):.2f} s")
    heard = {(row["system"], row["item_id"]): row["audio_sha256"] for row in rated}
    for one, other in combinations((system.name for system in study.systems), 2):
        same = sum(heard[one, item.id] == heard[other, item.id] for item in study.items)
        if same:
            lines.append(
                f"  {one} and {other} sound the same on {same} of {len(study.items)} texts: null "
                "pairs, which tell nothing of the two"
            )
    return "\n".join(lines)
