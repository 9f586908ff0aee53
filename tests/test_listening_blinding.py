"""A study is blind; and each leak that there could be, planted on purpose, is caught.

The checker is `blinding.py`. A leak that nobody can plant so that it is found is a leak that
nobody would see.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from listening_test import calls, enrolment, replies, resend, server, session_plan, trials
from listening_test.hosting import Hosted, Studies
from listening_test.server import attach
from listening_test.stimuli import prepare
from listening_test.study import load_study
from listening_test.targets import FolderTarget
from tests.blinding import folder_leaks, leaks
from tests.listening import RATE, SYSTEMS, Clock, InProcess, tone_bursts, write_study
from tests.test_listening_export import key_of

CHECKS = """
traps: [{id: stop-sign, files: [checks/one.wav], answer: 2}]
gold: [{id: nugget, files: [checks/two.wav], answer: 5}]
repeats: 1
"""


@dataclass
class Target:
    """What a plant may spoil: a copy of a prepared study, the app before it is attached."""

    study_dir: Path
    app: FastAPI
    patch: pytest.MonkeyPatch

    @property
    def systems(self) -> dict[str, str]:
        """System by stimulus id."""
        return key_of(self.study_dir)

    def by_sound(self) -> dict[bytes, str]:
        """System by the bytes of its clips."""
        audio = self.study_dir / "serve" / "audio"
        return {
            (audio / f"{name}.wav").read_bytes(): system for name, system in self.systems.items()
        }

    def each_clip(self, system: str, change: Callable[[Path], None]) -> None:
        """Change the served files of a system."""
        for name, own in self.systems.items():
            if own == system:
                change(self.study_dir / "serve" / "audio" / f"{name}.wav")


Plant = Callable[[Target], None]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared studies to copy: one clip a trial with checks, pairs, and one with equal sounds."""
    made = {}
    for name, extra in (
        ("acr", CHECKS), ("ab", "method: ab"), ("same", ""),
    ):  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        practice = "{id: text-p}" if name == "ab" else None
        path = write_study(folder / "source", extra=extra, practice=practice)
        (folder / "source" / "checks").mkdir()
        for seed, check in enumerate(("one", "two")):
            check_path = folder / "source" / "checks" / f"{check}.wav"
            soundfile.write(check_path, tone_bursts(900 + seed), RATE, subtype="PCM_16")
        if name == "same":
            shutil.copy(
                folder / "source" / SYSTEMS[0] / "text-1.wav",
                folder / "source" / SYSTEMS[1] / "text-1.wav",
            )
        prepare(load_study(path), folder / "study")
        made[name] = folder / "study"
    return made


def found_in(
    prepared: Path,
    folder: Path,
    patch: pytest.MonkeyPatch,
    plants: Sequence[Plant] = (),
    copied: bool = False,
) -> list[str]:
    """Leaks of a copy of a study, with leaks planted or without, its ratings `copied` or not."""
    study_dir, bucket = folder / "study", folder / "bucket"
    shutil.copytree(prepared, study_dir)
    bucket.mkdir()
    opened = Studies(FolderTarget(bucket) if copied else None)
    app, clock = FastAPI(openapi_url=None), Clock()
    for plant in plants:
        plant(Target(study_dir, app, patch))
    hosted: Hosted = opened.open(study_dir)
    attach(app, opened)
    patch.setattr(calls, "time", clock)
    client = InProcess(app)
    found = leaks(client, hosted, clock.wait)
    client.close()
    opened.close()
    return found + folder_leaks(study_dir)


@pytest.mark.parametrize("kind", ["acr", "ab", "same"])
def test_a_study_is_blind(
    studies: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_in(studies[kind], tmp_path, monkeypatch) == []


def test_a_study_whose_ratings_are_copied_is_blind(
    studies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found_in(studies["acr"], tmp_path, monkeypatch, copied=True) == []
    copies = [path.read_text(encoding="utf-8") for path in tmp_path.glob("bucket/**/*.jsonl")]
    assert any('"table": "ratings"' in text for text in copies)


def test_a_ticket_that_tells_the_order_is_caught(
    studies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resend, "_FACTS", (*resend._FACTS, "trials"))
    found = found_in(studies["acr"], tmp_path, monkeypatch, copied=True)
    ids = key_of(tmp_path / "study")
    assert {f"a state holds {name}" for name in ids} & set(found), found


def in_header(target: Target, name: str, value: Callable[[str, bytes], str]) -> None:
    """A header of each clip, from its system and bytes."""
    whole, owners = replies.sound, target.by_sound()

    def sound(data: bytes, range_header: str | None) -> Response:
        reply = whole(data, range_header)
        if name.lower() in reply.headers:
            del reply.headers[name]
        reply.headers[name] = value(owners[data], data)
        return reply

    target.patch.setattr(replies, "sound", sound)


def redirected(target: Target) -> None:
    owners, whole = target.by_sound(), replies.sound
    sounds = {f"/sound/{owner}-{n}.wav": data for n, (data, owner) in enumerate(owners.items())}
    paths = {data: path for path, data in sounds.items()}

    @target.app.get("/sound/{name}")
    def sound(name: str) -> Response:
        return whole(sounds[f"/sound/{name}"], None)

    target.patch.setattr(replies, "sound", lambda data, asked: RedirectResponse(paths[data]))


def slow(target: Target) -> None:
    whole, owners = replies.sound, target.by_sound()

    def sound(data: bytes, range_header: str | None) -> Response:
        time.sleep(0.06 * (owners[data] == SYSTEMS[1]))
        return whole(data, range_header)

    target.patch.setattr(replies, "sound", sound)


def in_token(target: Target, token: Callable[[str, str, Any], str]) -> None:
    """Addresses made from stimulus id and session instead of at random."""
    known = trials._tokens

    def tokens(db: Any, session: str, index: int, clips: tuple[str, ...], now: float) -> list[str]:
        made = known(db, session, index, clips, now)
        new = [token(old, clip, db) for old, clip in zip(made, clips, strict=True)]
        for old, changed in zip(made, new, strict=True):
            if not db.execute("SELECT 1 FROM clips WHERE token = ?", (changed,)).fetchone():
                db.execute("UPDATE clips SET token = ? WHERE token = ?", (changed, old))
        return new

    target.patch.setattr(trials, "_tokens", tokens)


def by_content(target: Target) -> None:
    """An address from the sound and the trial, as a cache folder named by content has it."""
    audio = target.study_dir / "serve" / "audio"
    known = trials._tokens

    def tokens(db: Any, session: str, index: int, clips: tuple[str, ...], now: float) -> list[str]:
        old = known(db, session, index, clips, now)
        digests = [hashlib.md5((audio / f"{clip}.wav").read_bytes()).hexdigest() for clip in clips]
        for was, digest in zip(old, digests, strict=True):
            db.execute("DELETE FROM clips WHERE token = ?", (digest,))
            db.execute("UPDATE clips SET token = ? WHERE token = ?", (digest, was))
        return digests

    target.patch.setattr(trials, "_tokens", tokens)


def in_state(target: Target, field: Callable[[Any, str], dict[str, Any]]) -> None:
    """A field of the trial's JSON, from the trial and its first clip's system."""
    known, systems = trials._standing, target.systems

    def standing(db: Any, study: Any, session: Any, order: list[Any], now: float) -> dict[str, Any]:
        state = known(db, study, session, order, now)
        if "clips" in state:
            trial = order[state["trial_index"] - 1]
            state |= field(trial, systems[trial.clips[0]])
        return state

    target.patch.setattr(trials, "_standing", standing)


def feedback(target: Target) -> None:
    """The answer to a rating says whether a check was passed."""
    known = trials.save_rating

    def save(db: Any, study: Any, key: str, answer: Any, now: float) -> Any:
        order = trials._trials(enrolment.session_of(db, key))
        kind = order[answer.trial_index - 1].trial_type
        return known(db, study, key, answer, now) | {"hint": kind in ("trap", "gold")}

    target.patch.setattr(trials, "save_rating", save)


def in_page(target: Target, name: str, text: str) -> None:
    """Text at the end of one of the page's files."""
    page = target.study_dir.parent / "page"
    if not page.exists():
        shutil.copytree(server.PAGE, page)
    with open(page / name, "a", encoding="utf-8") as file:
        file.write(text)
    target.patch.setattr(server, "PAGE", page)


def in_title(target: Target) -> None:
    path = target.study_dir / "serve" / "design.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["title"] = f"Is {SYSTEMS[1]} as good?"
    path.write_text(json.dumps(data), encoding="utf-8")


def rewritten(target: Target, change: Callable[[np.ndarray], np.ndarray], rate: int = RATE) -> None:
    """Other samples, or another rate, in one system's clips."""

    def write(path: Path) -> None:
        samples, _ = soundfile.read(path)  # mono, before any plant
        soundfile.write(path, change(samples), rate, subtype="PCM_16")

    target.each_clip(SYSTEMS[1], write)


def tagged(target: Target) -> None:
    def tag(path: Path) -> None:
        data = path.read_bytes() + b"LIST" + (12).to_bytes(4, "little") + b"INFOISFTenco"
        path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])

    target.each_clip(SYSTEMS[1], tag)


def key_served(target: Target) -> None:
    shutil.copy(target.study_dir / "key" / "stimuli.csv", target.study_dir / "serve")


def volume_of_a_system(target: Target) -> None:
    clip = next((target.study_dir / "serve" / "audio").iterdir())
    shutil.copy(clip, target.study_dir / "serve" / "volume.wav")


def folder_served(target: Target) -> None:
    target.app.mount("/key", StaticFiles(directory=target.study_dir / "key"))


def results_open(target: Target) -> None:
    @target.app.get("/results")
    def results() -> Response:
        return JSONResponse({SYSTEMS[0]: 3.9, SYSTEMS[1]: 3.2})


def clips_by_id(target: Target) -> None:
    audio = target.study_dir / "serve" / "audio"

    @target.app.get("/listen/small/audio/{name}")
    def clip(name: str) -> Response:
        return Response((audio / name).read_bytes())


def same_order(target: Target) -> None:
    """A, B, C, A, B, C for everybody, with the texts going round."""

    def order(items: int, systems: int, each: int, *rest: int) -> list[tuple[int, int]]:
        return [((k + k // systems) % items, k % systems) for k in range(each * systems)]

    target.patch.setattr(session_plan, "session_order", order)


def side_by_side(target: Target) -> None:
    known = session_plan.session_order
    target.patch.setattr(session_plan, "session_order", lambda *given: sorted(known(*given)))


def never_turned(target: Target) -> None:
    known = session_plan._trial
    target.patch.setattr(
        session_plan, "_trial",
        lambda study, item, arms, turn: known(study, item, arms, 0),
    )  # fmt: skip


def rated_twins(target: Target) -> None:
    target.patch.setattr(session_plan, "_type", lambda study, clips: "rating")


def immortal(target: Target) -> None:
    known, seen = trials.serve_clip, {}

    def serve(db: Any, token: str, now: float) -> str:
        try:
            seen[token] = known(db, token, now)
        except enrolment.Refused:
            if token not in seen:
                raise
        return seen[token]

    target.patch.setattr(trials, "serve_clip", serve)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


GOLD_IN_PAGE = '\nconst gold = { "nugget": 5 };\n'
# By study, then by crawl: what is planted together, and what the checker must say of each.
Group = dict[str, tuple[Plant, str]]
HEADERS: Group = {
    "system": (
        partial(in_header, name="X-Source", value=lambda system, _: system),
        f"a clip holds {SYSTEMS[1]}",
    ),
    "hash of the system": (
        partial(in_header, name="X-Trace", value=lambda system, _: digest(system)),
        f"a clip holds {digest(SYSTEMS[2])[:16]}",
    ),
    "which machine": (
        partial(in_header, name="Server", value=lambda system, _: f"node-{len(system)}"),
        "header server tells the system",
    ),
    "file name": (
        partial(in_header, name="Content-Disposition", value=lambda *_: 'filename="a.wav"'),
        "header content-disposition of a clip",
    ),
    "content hash": (
        partial(in_header, name="ETag", value=lambda _, data: hashlib.md5(data).hexdigest()),
        "header etag of a clip",
    ),
    "date of the file": (
        partial(in_header, name="Last-Modified", value=lambda *_: "Mon, 23 Nov 2026 06:00:00 GMT"),
        "header last-modified of a clip",
    ),
    "cookie": (
        partial(in_header, name="Set-Cookie", value=lambda system, _: f"v={digest(system)[:3]}"),
        "header set-cookie of a clip",
    ),
    "cache": (
        partial(in_header, name="Cache-Control", value=lambda *_: "max-age=3600"),
        "a clip may be cached",
    ),
}
STATE: Group = {
    "system": (
        partial(in_state, field=lambda _, system: {"label": system}),
        f"a rating holds {SYSTEMS[1]}",
    ),
    "number that goes with the system": (
        partial(in_state, field=lambda _, system: {"shade": len(system)}),
        "field .shade tells the system",
    ),
    "arm": (partial(in_state, field=lambda *_: {"arm": 1}), "the state has a field .arm"),
    "gold answer": (
        partial(in_state, field=lambda trial, _: {"expected": trial.answer}),
        "the state has a field .expected",
    ),
    "number that goes with gold": (
        partial(in_state, field=lambda t, _: {"k": 1} if t.trial_type == "gold" else {}),
        "field .k tells a gold trial",
    ),
    "feedback on a check": (feedback, "field .reply.next.hint tells a check"),
}
PAGE: Group = {
    "gold answers": (
        partial(in_page, name="page.js", text=GOLD_IN_PAGE),
        "the page speaks of gold",
    ),
    "system in the source": (
        partial(in_page, name="index.html", text=f"<!-- {SYSTEMS[2]} -->"),
        f"a page holds {SYSTEMS[2]}",
    ),
    "console": (
        partial(in_page, name="clips.js", text="\nconsole.log(1);\n"),
        "the page writes to the console",
    ),
    "player with a clock": (
        partial(in_page, name="clips.js", text="\naudio.controls = true;\n"),
        "the page shows how long a clip is",
    ),
    "system in the title": (in_title, f"a page holds {SYSTEMS[1]}"),
}
LEVEL: Group = {
    "loudness": (partial(rewritten, change=lambda x: 0.9 * x), "clips differ in loudness"),
    "tags": (tagged, "a clip's file holds ['fmt ', 'data', 'LIST']"),
}
FORMAT: Group = {
    "clipping": (partial(rewritten, change=lambda x: np.clip(9 * x, -1, 1)), "a clip is clipped"),
    "silence": (
        partial(rewritten, change=lambda x: np.concatenate([np.zeros(8000), x])),
        "a clip has silence at an edge",
    ),
    "rate": (partial(rewritten, change=lambda x: x, rate=22_050), "clips differ in sample rate"),
    "channels": (
        partial(rewritten, change=lambda x: np.stack([x, x], axis=1), rate=22_050),
        "clips differ in channels",
    ),
}
SERVED: Group = {
    "key in the served folder": (key_served, "serve/stimuli.csv is no file of a served study"),
    "a system sets the volume": (
        volume_of_a_system,
        "serve/volume.wav is not the sound that code makes",
    ),
    "key over HTTP": (folder_served, f"a probe of /key/stimuli.csv holds {SYSTEMS[0]}"),
    "open results": (results_open, f"a probe of /results holds {SYSTEMS[0]}"),
    "clips by their ids": (clips_by_id, "{base}/audio/{stimulus}.wav serves sound without a token"),
}
ADDRESS: Group = {
    "stimulus id": (
        partial(in_token, token=lambda old, clip, _: f"{clip}-{old}"),
        "a state holds ",
    ),
    "outlives its trial": (immortal, "a clip's address outlives its trial"),
}
SHORT: Group = {
    "short": (partial(in_token, token=lambda old, *_: old[:8]), "an address can be guessed"),
    "latency": (slow, "the time until a clip comes tells the system"),
}
GROUPS: dict[str, tuple[str, Group]] = {
    "headers": ("acr", HEADERS),
    "state": ("acr", STATE),
    "page": ("acr", PAGE),
    "level and tags": ("acr", LEVEL),
    "format": ("acr", FORMAT),
    "what is served": ("acr", SERVED),
    "address": ("acr", ADDRESS),
    "address and time": ("acr", SHORT),
    "system in the URL": ("acr", {"": (redirected, f"a clip holds {SYSTEMS[0]}")}),
    "content hash as address": ("acr", {"": (by_content, "a clip has the same address twice")}),
    "one order": ("acr", {"": (same_order, "the system before tells the system")}),
    "one order in pairs": ("ab", {"": (never_turned, "the place in a trial tells the system")}),
    "back to back": ("acr", {"": (side_by_side, "the same text comes twice in a row")}),
    "twins": ("same", {"": (rated_twins, "the same sound of two systems is rated as two")}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_planted_leaks_are_caught(
    studies: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, group = GROUPS[name]
    plants = [plant for plant, _ in group.values()]
    found = found_in(studies[kind], tmp_path, monkeypatch, plants)
    missed = {leak for leak, (_, says) in group.items() if not any(says in f for f in found)}
    assert not missed, found
