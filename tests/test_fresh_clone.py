"""`make run` in a fresh clone: packages are installed, the app serves, nobody is asked anything."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.long
def test_make_run_serves_from_a_fresh_clone(tmp_path):
    clone, port = tmp_path / "clone", free_port()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    command = ["make", "run", f"PORT={port}"]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL,
                               stdout=log, stderr=subprocess.STDOUT,
                               start_new_session=True)  # fmt: skip
    try:
        page = wait_for(f"http://127.0.0.1:{port}/", process, log)
        assert "SPAR-K Lab" in page
        for name in ("listen", "results", "about"):
            assert "SPAR-K Lab" in wait_for(f"http://127.0.0.1:{port}/{name}", process, log)
        second = subprocess.run(["make", "-q", ".venv/.stamp-run"], cwd=clone, check=False)
        assert second.returncode == 0, "a second `make run` would install again"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        log.close()


def wait_for(url: str, process: subprocess.Popen, log) -> str:
    """The page, as soon as it is served."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            pytest.fail(f"make run ended with {process.returncode}:\n{log.read()[-3000:]}")
        try:
            return urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            time.sleep(1)
    pytest.fail(f"nothing was served at {url} within {LIMIT_S} s")
