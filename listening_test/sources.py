"""Where clips come from: folders of sound files, spark, and anchors made from either.

Before anything is decoded or made, all files of the study are looked for, and all that are missing
are told at once. Nothing here is levelled, named or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soundfile

from listening_test.anchors import low_passed, modulated_noise
from listening_test.decode import decode_policies
from listening_test.levelling import Samples, StimulusError
from listening_test.study import Study
from listening_test.study_parts import Anchor, Item, Practice

Kind = Literal["practice", "rating", "check"]
Sound = tuple[Samples, int]
# What a clip's file may end in; whatever it is, raters get PCM of one form.
SUFFIXES = (".wav", ".WAV", ".flac", ".ogg", ".mp3")
# Names of missing files that a message lists.
_LISTED = 5


@dataclass(frozen=True)
class Source:
    """One clip before levelling; `system` is empty for a check's, `samples` have full scale 1."""

    system: str
    item: str
    kind: Kind
    samples: Samples
    rate: int


def sources(study: Study, progress: Callable[[str], None] | None) -> Iterator[Source]:
    """Every clip of the study, practice first, checks last.

    Raises:
        StimulusError: a clip is missing or cannot be read, decoded or made.
    """
    _check_files(study)
    parts: list[tuple[Item | Practice, Kind]] = [(clip, "practice") for clip in study.practice]
    parts += [(item, "rating") for item in study.items]
    for number, (item, kind) in enumerate(parts, 1):
        if progress:
            progress(f"text {number} of {len(parts)}")
        sounds = _sounds(study, item)
        for name in _heard(study, item):
            yield Source(name, item.id, kind, *sounds[name])
    for check in (*study.traps, *study.gold):
        for number, path in enumerate(check.files):
            yield Source("", f"{check.id}/{number}", "check", *_read(study.file(path), check.id))


def _heard(study: Study, item: Item | Practice) -> list[str]:
    """The systems and anchors that a text is heard under."""
    if isinstance(item, Practice) and item.system is not None:
        return [name for name in study.names if name in (item.system, study.reference)]
    return study.names


def _needed(study: Study, item: Item | Practice) -> set[str]:
    """`_heard`, and what anchors among them are made from."""
    heard = set(_heard(study, item))
    made_from = {study.origin(anchor) for anchor in study.anchors if anchor.label in heard}
    return heard | {name for name in made_from if name is not None}


def _files(study: Study, item: Item | Practice) -> dict[str, Path]:
    """The file of each system and anchor that has its own, whether it is there or not.

    Raises:
        StimulusError: a folder has two for the text.
    """
    needed = _needed(study, item)
    return {
        part.label: _file_in(study.file(part.folder), item.id)
        for part in study.heard
        if part.folder is not None and part.label in needed
    }


def _file_in(folder: Path, item: str) -> Path:
    found = [path for suffix in SUFFIXES if (path := folder / f"{item}{suffix}").is_file()]
    if len(found) > 1:
        raise StimulusError(
            f"{folder} holds both {found[0].name} and {found[1].name}; leave the one that is meant."
        )
    return found[0] if found else folder / f"{item}{SUFFIXES[0]}"


def _check_files(study: Study) -> None:
    texts: list[Item | Practice] = [*study.practice, *study.items]
    missing = [
        f"{path} (system {name}, item {item.id})"
        for item in texts
        for name, path in _files(study, item).items()
        if not path.is_file()
    ]
    missing += [
        f"{path} (check {check.id})"
        for check in (*study.traps, *study.gold)
        for path in map(study.file, check.files)
        if not path.is_file()
    ]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise StimulusError(
            f"{', '.join(missing[:_LISTED])}{more}: missing. Every system needs <item id>.wav (or "
            f"{', '.join(SUFFIXES[1:])}) for every item."
        )


def _sounds(study: Study, item: Item | Practice) -> dict[str, Sound]:
    needed = _needed(study, item)
    sounds = {
        name: _read(path, f"system {name}, item {item.id}")
        for name, path in _files(study, item).items()
    }
    policies = {s.name: s.policy for s in study.systems if s.policy and s.name in needed}
    if policies:
        assert item.prompt is not None
        try:
            decoded = decode_policies(study.model, item.prompt, list(policies.values()), study.seed)
        except ValueError as error:
            raise StimulusError(f"item {item.id}: {error}") from error
        for name, policy in policies.items():
            pcm, rate = decoded[policy]
            sounds[name] = pcm / 32768, rate
    for anchor in study.anchors:
        origin = study.origin(anchor)
        if anchor.label in needed and origin is not None:
            sounds[anchor.label] = _made(anchor, sounds[origin], f"{anchor.label}/{item.id}", study)
    return sounds


def _made(anchor: Anchor, clip: Sound, name: str, study: Study) -> Sound:
    samples, rate = clip
    if anchor.low_pass is not None:
        return low_passed(samples, rate, anchor.low_pass, name), rate
    assert anchor.mnru is not None
    return modulated_noise(samples, anchor.mnru, [study.seed, *name.encode()]), rate


def _read(path: Path, whose: str) -> Sound:
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=False)
    except (OSError, soundfile.SoundFileError):
        raise StimulusError(
            f"{whose}: {path} is no sound file that can be read. Save it as WAV."
        ) from None
    return samples, int(rate)
