"""Processes that work for a command: gone when it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import os, sys, time
from pathlib import Path
from spark import pool

def start(folder):
    Path(folder, str(os.getpid())).touch()

def work(seconds):
    time.sleep(seconds)
    return seconds

if __name__ == "__main__":
    for _ in pool.results(start, (sys.argv[1],), work, [0.0, 600.0, 600.0], 2):
        print("one", flush=True)
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_go_when_the_command_is_killed(tmp_path: Path) -> None:
    script, folder = tmp_path / "command.py", tmp_path / "workers"
    script.write_text(COMMAND)
    folder.mkdir()
    root = str(Path(__file__).resolve().parents[1])
    command = subprocess.Popen(
        [sys.executable, script, folder],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"one\n"
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(path.name) for path in folder.iterdir()]
    assert len(workers) == 2
    assert all(map(alive, workers))
    command.kill()
    command.wait()
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
