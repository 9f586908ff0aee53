"""Raters at once against one server: `python -m benchmarks.listening_load --raters 20`.

A study of noise bursts is prepared, served by a process of its own, and taken by scripted raters
who all begin together. Timed is the submit: from sending a rating to its acknowledgement, which
the server gives only after the commit is on disk. Server and raters share this machine, the
raters one core of it: their client has to cost little (httpx's pool looks through all connections
at every request and took three times the server's own time at 100 raters). The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import soundfile

from listening_test.stimuli import prepare
from listening_test.study import load_study

RATE = 16_000
CLIP_S = 0.45
BASE = "/listen/load"


def prepared(folder: Path, trials: int) -> Path:
    """A study of two systems with `trials` trials a rater, practice left out."""
    texts = max(2, trials // 2)
    rng = np.random.default_rng(1)
    for system in "ab":
        (folder / system).mkdir()
        for text in range(texts):
            clip = 0.1 * rng.standard_normal(round(CLIP_S * RATE)).clip(-3, 3)
            soundfile.write(folder / system / f"t{text}.wav", clip, RATE)
    items = "\n".join(f"  - id: t{text}" for text in range(texts))
    (folder / "study.yaml").write_text(
        f"id: load\ntitle: Load\nsystems:\n  - {{name: a, folder: a}}\n  - {{name: b, folder: b}}\n"
        f"items:\n{items}\n"
    )
    prepare(load_study(folder / "study.yaml"), folder / "study")
    return folder / "study"


async def insist(client: aiohttp.ClientSession, method: str, path: str, **more: Any) -> bytes:
    """A request as the page makes it: the same again when the connection broke."""
    while True:
        try:
            async with client.request(method, BASE + path, **more) as reply:
                reply.raise_for_status()
                return await reply.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            await asyncio.sleep(0.2)


async def session(client: aiohttp.ClientSession, times: list[float], saved: list[str]) -> None:
    """One rater from consent to thanks; appends each submit's milliseconds."""
    headers = {"X-Session": uuid.uuid4().hex}
    reply = await insist(client, "POST", "/session", json={"consent": True}, headers=headers)
    state = json.loads(reply)
    while state["state"] != "done":
        (clip,) = state["clips"]
        await insist(client, "GET", f"/clip/{clip}")
        await asyncio.sleep(CLIP_S + 0.02)
        rating = {
            "rating_id": str(uuid.uuid4()), "trial_index": state["trial_index"], "answers": [3],
            "clips": [{"clip": clip, "plays": 1, "listened_ms": round(1000 * CLIP_S)}],
        }  # fmt: skip
        start = time.perf_counter()
        reply = await insist(client, "POST", "/rating", json=rating, headers=headers)
        times.append(1000 * (time.perf_counter() - start))
        answer = json.loads(reply)
        saved.append(answer["saved"])
        state = answer["next"]


async def run(url: str, raters: int) -> tuple[list[float], list[str]]:
    """All sessions at once; submit times in ms, and the ratings acknowledged."""
    times: list[float] = []
    saved: list[str] = []
    limit, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(url, connector=limit, timeout=patience) as client:
        await asyncio.gather(*(session(client, times, saved) for _ in range(raters)))
    return times, saved


def measure(raters: int, trials: int) -> dict[str, float]:
    """Serve, rate, count: the benchmark's JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        study_dir = prepared(Path(folder), trials)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "listening_test.serve", str(study_dir), "--port", str(port)],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait(f"http://127.0.0.1:{port}{BASE}/study")
            times, saved = asyncio.run(run(f"http://127.0.0.1:{port}", raters))
        finally:
            server.kill()
            server.wait()
        database = sqlite3.connect(study_dir / "data" / "ratings.sqlite3")
        stored = [row[0] for row in database.execute("SELECT rating_id FROM ratings")]
        database.close()
    return {
        "raters": raters,
        "ratings": len(saved),
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p95_ms": round(float(np.percentile(times, 95)), 1),
        "lost": len(set(saved) - set(stored)),
        "doubled": len(stored) - len(set(stored)),
    }


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server did not start within a minute")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.listening_load", description=__doc__)
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--trials", type=int, default=12, help="of each rater")
    options = parser.parse_args(arguments)
    if options.raters < 1 or options.trials < 2:
        parser.error("--raters must be 1 or more, --trials 2 or more")
    result = measure(options.raters, options.trials)
    print(f"{result['ratings']} ratings by {options.raters} raters at once")
    print(f"submit: median {result['p50_ms']} ms, 95 % below {result['p95_ms']} ms")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
