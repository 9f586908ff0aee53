"""The step and the sampler in C, built with the machine's compiler and loaded.

None where that cannot be. What is built is kept for later runs under a name that says from what:
sources, compiler, flags and processor, since it uses whatever instructions this processor has.
Knows files and a compiler; what is computed is `step.c`'s and `draw.c`'s.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_FILES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
_SOURCES = tuple(file for file in _FILES if file.suffix == ".c")
# Fast mathematics for the vector version of exp. It is left out when linking, where it would also
# have the whole process flush small numbers to zero.
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC")
_PATIENCE_S = 120


def library() -> ctypes.CDLL | None:
    """The loaded library, built first where it is not kept; None where there can be none."""
    return _outcome()[0]


def missing() -> str:
    """Why there is no library; empty where there is one."""
    return _outcome()[1]


@cache
def _outcome() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _loaded(_built()), ""
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return None, f"the compiler failed ({said[0] if said else error.returncode})"
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)


def kept() -> bool:
    """Whether `library` only has to load what an earlier run built."""
    compiler = _compiler()
    try:
        return compiler is not None and _path(compiler).is_file()
    except (OSError, subprocess.SubprocessError):
        return False


def version() -> str | None:
    """What tells one build from another; None without a compiler."""
    compiler = _compiler()
    return None if compiler is None or library() is None else _path(compiler).stem


def _compiler() -> str | None:
    """A C compiler whose programs can share torch's threads: on Linux only."""
    if sys.platform != "linux":
        return None
    return shutil.which("gcc") or shutil.which("cc")


@cache
def _path(compiler: str) -> Path:
    """Where a build of this source by this compiler for this processor is kept."""
    told = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=_PATIENCE_S
    ).stdout
    sources = b"\0".join(file.read_bytes() for file in _FILES)
    parts = (sources, told, " ".join(_FLAGS).encode(), _processor().encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from error
    return base / "spark-k-lab" / f"step-{name}.so"


def _processor() -> str:
    """Which instructions there are: a kept build may be found by another machine."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    flags = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return platform.machine() + "".join(sorted(flags))


def _built() -> Path:
    """The library's file; OSError or SubprocessError where it cannot be made."""
    compiler = _compiler()
    if compiler is None:
        raise OSError("no C compiler on Linux")
    path = _path(compiler)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder_of = path.parent.stat()
    if folder_of.st_uid != os.getuid() or folder_of.st_mode & 0o022:
        raise OSError(f"others can write to {path.parent}, and what lies there would be run")
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for command in (
            [compiler, *_FLAGS, "-c", *map(str, _SOURCES)],
            [compiler, "-shared", *(f"{source.stem}.o" for source in _SOURCES),
             "-o", path.name, "-lm"],
        ):  # fmt: skip
            subprocess.run(
                command, capture_output=True, check=True, timeout=_PATIENCE_S, cwd=folder
            )
        (Path(folder) / path.name).replace(path)  # at once: another process may look for it
    return path


def _loaded(path: Path) -> ctypes.CDLL:
    """The library, on the threads that torch has: two sets of them would get in each other's way.

    It is linked without OpenMP and finds torch's, wherever and under whichever name that lies.
    """
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    threads = sorted({line.split()[-1] for line in maps if "gomp" in line.rsplit("/", 1)[-1]})
    if not threads:
        raise OSError("torch uses no GNU OpenMP here")
    ctypes.CDLL(threads[0], ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))
