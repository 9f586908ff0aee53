"""Leaks to plant in a study, each of which `blinding.py` must find.

A plant spoils a copy of a prepared study, or the server that is about to serve it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from listening_test import calls, enrolment, replies, server, session_plan, trials
from tests.listening import RATE, SYSTEMS
from tests.test_listening_export import key_of


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


def in_header(target: Target, name: str, value: Callable[[str, bytes], str]) -> None:
    """A header of each clip, from its system and bytes."""
    whole, owners = replies.sound, target.by_sound()

    def sound(data: bytes, range_header: str | None) -> Response:
        reply = whole(data, range_header)
        if name.lower() in reply.headers:
            del reply.headers[name]
        reply.headers[name] = value(owners.get(data, ""), data)
        return reply

    target.patch.setattr(replies, "sound", sound)


def redirected(target: Target) -> None:
    owners, whole = target.by_sound(), replies.sound
    sounds = {f"/sound/{owner}-{n}.wav": data for n, (data, owner) in enumerate(owners.items())}
    paths = {data: path for path, data in sounds.items()}

    @target.app.get("/sound/{name}")
    def sound(name: str) -> Response:
        return whole(sounds[f"/sound/{name}"], None)

    target.patch.setattr(
        replies,
        "sound",
        lambda data, asked: RedirectResponse(paths[data]) if data in paths else whole(data, asked),
    )


def slow(target: Target) -> None:
    whole, owners = replies.sound, target.by_sound()

    def sound(data: bytes, range_header: str | None) -> Response:
        time.sleep(0.06 * (owners.get(data, "") == SYSTEMS[1]))
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


def rewritten(
    target: Target,
    change: Callable[[np.ndarray], np.ndarray],
    rate: int = RATE,
    coding: str = "PCM_16",
) -> None:
    """Other samples, or another rate, in one system's clips."""

    def write(path: Path) -> None:
        samples, _ = soundfile.read(path)  # mono, before any plant
        soundfile.write(path, change(samples), rate, subtype=coding)

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


def in_config(target: Target) -> None:
    """A component of the page around the study keeps the systems' names as its choices."""

    @target.app.get("/config")
    def config() -> Response:
        return JSONResponse({"components": [{"props": {"choices": list(SYSTEMS)}}]})


def in_history(target: Target) -> None:
    """A list of earlier calls, in which a preparation names the system of a stimulus."""

    @target.app.get("/gradio_api/runs")
    def runs() -> Response:
        return JSONResponse([{"inputs": list(owner)} for owner in target.systems.items()])


def clips_by_id(target: Target) -> None:
    audio = target.study_dir / "serve" / "audio"

    async def clip(call: calls.Call) -> Response:
        return Response((audio / call.request.path_params["name"]).read_bytes())

    routes = (*server._WITHOUT_KEY, ("GET", "/audio/{name}", clip))
    target.patch.setattr(server, "_WITHOUT_KEY", routes)


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


def padded(target: Target) -> None:
    """Bytes behind the sound, so that all files are as long as one another."""
    target.each_clip(SYSTEMS[2], lambda path: path.write_bytes(path.read_bytes() + bytes(6)))


def in_refusal(target: Target) -> None:
    """A refusal says which clip was not heard."""
    known, systems = trials._check_heard, target.systems

    def check(db: Any, study: Any, session: str, shown: tuple[str, ...], *more: Any) -> None:
        try:
            known(db, study, session, shown, *more)
        except enrolment.Refused as error:
            message = f"{error} It was {systems.get(shown[0])}."
            raise enrolment.Refused(error.status, error.code, message) from None

    target.patch.setattr(trials, "_check_heard", check)


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
