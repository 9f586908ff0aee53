"""Helpers of the listening tests' tests: small real studies, a server process, a scripted rater."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from listening_test.methods import questions
from listening_test.prepared import PreparedStudy, Stimulus
from listening_test.stimuli import prepare
from listening_test.study import load_study

RATE = 16_000
# Names that no file of the page, no word of English and no header holds by chance.
SYSTEMS = ("zebrafish", "quokka", "marmoset")


def tone_bursts(seed: int, seconds: float = 0.5) -> np.ndarray:
    """Noise under a slow swell, (n,) at full scale 1: measurable and different for each seed."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * np.arange(n) / RATE)
    return 0.1 * swell * rng.standard_normal(n).clip(-3, 3)


def write_study(
    folder: Path,
    items: int = 3,
    systems: tuple[str, ...] = SYSTEMS,
    seconds: float = 0.5,
    extra: str = "",
    practice: str | None = None,
) -> Path:
    """WAV folders and a study file for them; returns the file.

    `practice` is the practice text's YAML, by default one clip of the first system; `extra` goes
    to the end of the file.
    """
    for s, system in enumerate(systems):
        (folder / system).mkdir(parents=True)
        for i in [*range(items), "p"]:
            number = 99 if i == "p" else i
            clip = tone_bursts(100 * s + number, seconds) * (1 + s)
            soundfile.write(folder / system / f"text-{i}.wav", clip, RATE, subtype="PCM_16")
    lines = ["id: small", "title: A small test", "systems:"]
    lines += [f"  - {{name: {system}, folder: {system}}}" for system in systems]
    practice = practice or f"{{id: text-p, system: {systems[0]}}}"
    lines += [f"practice: [{practice}]", "items:"]
    lines += [f"  - id: text-{i}" for i in range(items)]
    path = folder / "study.yaml"
    path.write_text("\n".join([*lines, extra, ""]), encoding="utf-8")
    return path


def prepared_study(folder: Path, **options: Any) -> Path:
    """A prepared study folder made from `write_study`."""
    study = load_study(write_study(folder / "source", **options))
    prepare(study, folder / "study")
    return folder / "study"


def made(
    method: str, items: int, arms: int, per_rater: int, seed: int, **more: Any
) -> PreparedStudy:
    """A study without sound, every clip of its own sound."""
    stimuli = [
        Stimulus(f"s{i}-{a}", f"i{i}", a, 1.0, "rating", a)
        for i in range(items)
        for a in range(arms)
    ]
    stimuli += [Stimulus(f"c{n}", f"check{n}", 0, 1.0, "check", 0) for n in range(2)]
    values: dict[str, Any] = {
        "reference_arm": 0 if method in ("dcr", "mushra") else None,
        "repeats": 0, "null_pairs": 0, "checks": (), **more,
    }  # fmt: skip
    return PreparedStudy(
        study_id="x", config_sha256="0", title="", method=method,
        questions=questions(method, "quality"), consent="", instructions="", language="en",
        seed=seed, arms=arms, items_per_rater=per_rater, planned_sessions=1,
        stimuli=tuple(stimuli), **values,
    )  # fmt: skip


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(study_dir: Path, port: int, **options: Any) -> subprocess.Popen[bytes]:
    """`python -m listening_test.serve` as a process of its own; answers when this returns.

    `options` are Popen's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "listening_test.serve", str(study_dir), "--port", str(port)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        **options,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/listen/small/study")
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return process
    process.kill()
    raise RuntimeError(f"the server did not start (exit status {process.wait()})")


class Clock:
    """Stands in for a module's `time`: waiting takes no time."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@contextmanager
def serving(study_dir: Path) -> Iterator[str]:
    """The address of a running server's study page."""
    port = free_port()
    process = start_server(study_dir, port)
    try:
        yield f"http://127.0.0.1:{port}/listen/small"
    finally:
        process.terminate()
        process.wait(20)


class InProcess:
    """HTTP to an app in this very thread: far fewer changes of thread than a TestClient has."""

    def __init__(self, app: Any) -> None:
        self._loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(app=app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://testserver")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any method."""
        return self._loop.run_until_complete(self._client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)

    def close(self) -> None:
        """End it."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


class Rater:
    """A rater as a script: does over HTTP what the page does."""

    def __init__(self, client: Any, base: str = "/listen/small") -> None:
        self.client = client
        self.base = base
        self.headers = {"X-Session": uuid.uuid4().hex}

    def post(self, path: str, body: Any) -> Any:
        """POST JSON with this rater's session key."""
        return self.client.post(f"{self.base}/{path}", json=body, headers=self.headers)

    def start(self) -> dict[str, Any]:
        """Consent; the first trial."""
        reply = self.post("session", {"consent": True})
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def trial(self) -> dict[str, Any]:
        """Where the session stands."""
        reply = self.client.get(f"{self.base}/trial", headers=self.headers)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def fetch(self, state: dict[str, Any]) -> bytes:
        """The bytes of the trial's clips, one after the other."""
        data = b""
        for token in state["clips"]:
            reply = self.client.get(f"{self.base}/clip/{token}")
            assert reply.status_code == 200, reply.text
            data += bytes(reply.content)
        return data

    @staticmethod
    def body(
        state: dict[str, Any], *answers: int | str, listened_ms: int = 500, **more: Any
    ) -> Any:
        """One trial's answers as the page would send them."""
        heard = {"plays": 1, "listened_ms": listened_ms}
        return {
            "rating_id": str(uuid.uuid4()), "trial_index": state["trial_index"],
            "clips": [{"clip": token, **heard} for token in state["clips"]],
            "answers": list(answers), "ui_lang": "en", **more,
        }  # fmt: skip
