"""Stimuli: the same PCM format, loudness and edges for all, under ids that tell nothing.

Takes each system's sound (`sources.py`), brings every clip to
one sample rate, mono 16-bit PCM, at most `EDGE_S` of silence at either end and one BS.1770
loudness (`levelling.py`), and writes it under an opaque id. Identical audio of two systems is
found by hash, so that it can become a null pair.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from listening_test import key, study_parts
from listening_test.levelling import Levelled, level
from listening_test.prepared import VOLUME_FILE, Check, PreparedStudy, Screen, Stimulus
from listening_test.screening import RATE as SCREEN_RATE
from listening_test.screening import ScreenClip, room_clips, screen_clips
from listening_test.sources import Source, sources
from listening_test.study import Study
from listening_test.texts import end_of_day, texts
from listening_test.voice import voice

_VOLUME_S = 6.0


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
    found = list(sources(study, progress))
    rate = study.sample_rate or max(source.rate for source in found)
    clips = [
        (s, level(s.samples, s.rate, rate, study.loudness_lufs, f"{s.system or 'check'}/{s.item}"))
        for s in found
    ]
    secret = key.secret(out)
    rows, prepared = _describe(study, clips, secret)
    key.check_same_sound(out, rows)
    wavs = {str(row["stimulus_id"]): clip[1].wav for row, clip in zip(rows, clips, strict=True)}
    prepared, screens = _with_screens(study, prepared, secret)
    wavs |= screens
    for name in sorted(wavs):  # so that the files' times say nothing either
        (part / "serve" / "audio" / f"{name}.wav").write_bytes(wavs[name])
    prepared.save(part / "serve")
    (part / "serve" / VOLUME_FILE).write_bytes(volume_sound(study, rate))
    key.write(part / "key", study, rows)
    # The key first, file over file: whatever kills this, there is no sound without its key, and
    # the secret is never gone.
    (out / "key").mkdir(exist_ok=True)
    for path in (part / "key").iterdir():
        os.replace(path, out / "key" / path.name)
    shutil.rmtree(out / "serve", ignore_errors=True)
    os.replace(part / "serve", out / "serve")
    shutil.rmtree(part)
    return _report(study, prepared, rows, rate)


def _describe(
    study: Study, clips: list[tuple[Source, Levelled]], secret: bytes
) -> tuple[list[dict[str, Any]], PreparedStudy]:
    """Rows of the key, and the design that the server may know.

    Nothing of the design, not even its order, hangs on the order of systems in the study file.
    """
    # The order of arms must not be the order of the study file.
    arms = sorted(study.names, key=lambda name: stimulus_id(secret, study.id, name, "arm"))
    rows: list[dict[str, Any]] = []
    stimuli: list[Stimulus] = []
    sounds: dict[tuple[str, str], list[str]] = {}
    talkers = {item.id: item.talker for item in study.items}
    for source, levelled in clips:
        own = stimulus_id(secret, study.id, source.system, source.item)
        audio = hashlib.sha256(levelled.pcm.tobytes()).hexdigest()
        same = sounds.setdefault((source.item, audio), [])
        same.append(own)
        row = _row(source, levelled, own, audio, same[0])
        rows.append(row | {"talker": talkers.get(source.item) if source.kind == "rating" else None})
        stimuli.append(
            Stimulus(
                own, source.item.partition("/")[0] if source.kind == "check" else source.item,
                arms.index(source.system) if source.system else 0,
                len(levelled.pcm) / levelled.sample_rate, source.kind, 0,
            )
        )  # fmt: skip
    order = list(dict.fromkeys(source.item.partition("/")[0] for source, _ in clips))
    stimuli.sort(key=lambda stimulus: (order.index(stimulus.item_id), stimulus.arm))
    return rows, _prepared(study, secret, arms, _numbered(stimuli, rows))


def _numbered(stimuli: list[Stimulus], rows: list[dict[str, Any]]) -> tuple[Stimulus, ...]:
    """The stimuli with `sound`: of each item's distinct sounds the number, in the arms' order."""
    audio = {row["stimulus_id"]: row["audio_sha256"] for row in rows}
    known: dict[str, list[str]] = {}
    numbered = []
    for stimulus in stimuli:
        heard = known.setdefault(stimulus.item_id, [])
        if audio[stimulus.stimulus_id] not in heard:
            heard.append(audio[stimulus.stimulus_id])
        number = heard.index(audio[stimulus.stimulus_id])
        numbered.append(replace(stimulus, sound=number))
    return tuple(numbered)


def _row(source: Source, levelled: Levelled, own: str, audio: str, first: str) -> dict[str, Any]:
    return {
        "stimulus_id": own,
        "system": source.system,
        "item_id": source.item,
        "trial_type": source.kind,
        "audio_sha256": audio,
        "duration_s": round(len(levelled.pcm) / levelled.sample_rate, 4),
        "sample_rate": levelled.sample_rate,
        "lufs_in": round(levelled.lufs_in, 3),
        "lufs_out": round(levelled.lufs_out, 3),
        "true_peak_dbtp": round(levelled.true_peak_dbtp, 2),
        "gain_db": round(levelled.gain_db, 3),
        "leading_silence_ms": round(levelled.leading_silence_ms, 1),
        "trailing_silence_ms": round(levelled.trailing_silence_ms, 1),
        "identical_to": first if first != own else None,
    }


def _prepared(
    study: Study, secret: bytes, arms: list[str], stimuli: tuple[Stimulus, ...]
) -> PreparedStudy:
    checks = [_check(study, secret, check, "trap") for check in study.traps]
    checks += [_check(study, secret, check, "gold") for check in study.gold]
    first, *further = texts(study)
    stop = study.stop_rule
    return PreparedStudy(
        study_id=study.id, config_sha256=study.sha256, title=first.title, method=study.method,
        questions=first.questions, consent=first.consent, instructions=first.instructions,
        language=study.language, seed=study.seed, arms=len(arms),
        reference_arm=None if study.reference is None else arms.index(study.reference),
        items_per_rater=study.items_per_rater, planned_sessions=study.planned_sessions,
        repeats=study.repeats, null_pairs=study.null_pairs, stimuli=stimuli, checks=tuple(checks),
        platform=study.platform, questionnaire=first.questionnaire, payment=first.payment,
        further=tuple(further), stops_when_planned=bool(stop and stop.planned),
        stops_at=end_of_day(stop.until) if stop and stop.until else None,
        traps_forgiven=study.exclusion.trap_errors or 0,
        same_text=study.same_text,
    )  # fmt: skip


def _with_screens(
    study: Study, prepared: PreparedStudy, secret: bytes
) -> tuple[PreparedStudy, dict[str, bytes]]:
    """The design with its screens, if any, and the screens' WAVs by stimulus id.

    They are the only clips in stereo, and not in the key: no system made them.
    """
    given = study.screening
    if given is None:
        return prepared, {}
    wavs: dict[str, bytes] = {}
    stimuli: list[Stimulus] = []
    screens: list[Screen] = []

    def add(clips: list[ScreenClip], passes: int, on_fail: str) -> None:
        trials = []
        for clip in clips:
            # No name begins so.
            own = stimulus_id(secret, study.id, "", f"/screen/{len(stimuli)}")
            wavs[own] = _wav(clip.samples, SCREEN_RATE)
            seconds = len(clip.samples) / SCREEN_RATE
            stimuli.append(Stimulus(own, "screen", 0, seconds, "screen", 0))
            trials.append((own, clip.answer))
        screens.append(Screen(clips[0].kind, tuple(trials), passes, on_fail == "screen_out"))

    for kind in given.screens:
        add(screen_clips(kind, study.seed), given.passes, given.on_fail)
    if room := given.environment:
        add(room_clips(study.seed, study.loudness_lufs), room.passes, room.on_fail)
    all_stimuli = (*prepared.stimuli, *stimuli)
    return replace(prepared, stimuli=all_stimuli, screens=tuple(screens)), wavs


def volume_sound(study: Study, rate: int) -> bytes:
    """What raters set their volume by: as loud as the clips, and none of them."""
    sound = level(voice(_VOLUME_S, rate, study.seed), rate, rate, study.loudness_lufs, "volume")
    return _wav(sound.pcm, rate)


def _wav(samples: npt.NDArray[Any], rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _check(
    study: Study, secret: bytes, check: study_parts.Check, kind: Literal["trap", "gold"]
) -> Check:
    names = [f"{check.id}/{number}" for number in range(len(check.files))]
    clips = tuple(stimulus_id(secret, study.id, "", name) for name in names)
    return Check(kind, clips, check.answer, check.tolerance)


def _report(study: Study, prepared: PreparedStudy, rows: list[dict[str, Any]], rate: int) -> str:
    rated = [row for row in rows if row["trial_type"] == "rating"]
    lines = [
        f"{study.id}: {len(rows)} clips, {rate} Hz mono 16-bit, {study.loudness_lufs:g} LUFS; "
        f"{prepared.trials_per_session} trials a rater, "
        f"{study.planned_sessions} sessions planned"
    ]
    anchors = {anchor.label for anchor in study.anchors}
    for name in study.names:
        seconds = [row["duration_s"] for row in rated if row["system"] == name]
        what = f"{name} (anchor)" if name in anchors else name
        # Length cannot be hidden from a rater, so it is reported.
        lines.append(f"  {what}: mean length {np.mean(seconds):.2f} s")
    heard = {(row["system"], row["item_id"]): row["audio_sha256"] for row in rated}
    for one, other in combinations(study.names, 2):
        same = sum(heard[one, item.id] == heard[other, item.id] for item in study.items)
        if same:
            lines.append(
                f"  {one} and {other} sound the same on {same} of {len(study.items)} texts: null "
                "pairs, which tell nothing of the two"
            )
    return "\n".join(lines)
