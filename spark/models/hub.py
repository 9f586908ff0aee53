"""Where a model's files are: a local folder, or the hub's cache, filled when a command asks.

Knows names of repositories and files; reads no weights. Tens of gigabytes are an operator's
decision: taken on a command line, or on the page of an app that nobody else can reach.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from spark.models.checkpoint import INDEX, SINGLE, CheckpointError
from spark.models.loading import Progress, Watch

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_GB = 1e9
_LOOK_S = 0.5  # between two looks at a download


def is_repo(source: str) -> bool:
    """Whether this reads as OWNER/NAME of the hub."""
    if _REPO.fullmatch(source) is None or ".." in source:
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def cached(repo: str, files: Sequence[str] = ()) -> bool:
    """Whether the cache holds a repository's weights whole, and these files."""
    folder = cached_folder(repo)
    if folder is None or not all((folder / name).is_file() for name in files):
        return False
    if (folder / SINGLE).is_file():
        return True
    try:
        placed = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        return all((folder / name).is_file() for name in set(placed.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False  # no index that says so


def cached_folder(repo: str) -> Path | None:
    """The cache's folder of a repository's main version, None where there is none."""
    found = try_to_load_from_cache(repo, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def fetch(
    source: str | Path,
    files: Sequence[str],
    size: int = 0,
    also: Sequence[str] = (),
    watch: Watch | None = None,
) -> Path:
    """The folder of a model: `source` itself, or the cache's after a download with progress.

    What the cache already holds is not fetched again; a download that broke off goes on.

    Args:
        source: a folder, or OWNER/NAME.
        files: patterns of the files needed.
        also: of files that come with a download, and are not missed where they are not there.
        size: bytes of the whole, where known, to look for room before.
        watch: told how far a download is, beside the progress on the terminal.

    Raises:
        CheckpointError: there is no such folder or repository, no network, no room.
    """
    if Path(source).is_dir():
        return Path(source).absolute()  # messages name it, which "." is not
    repo = str(source)
    if not is_repo(repo):
        raise CheckpointError(f"there is no folder {repo}: give a folder, or OWNER/NAME of the hub")
    plain = [name for name in files if "*" not in name]
    if cached(repo, plain):
        folder = cached_folder(repo)
        assert folder is not None
        return folder
    return download(repo, (*files, *also), size, watch=watch)


def download(
    repo: str,
    files: Sequence[str],
    size: int = 0,
    kind: Literal["model", "dataset"] = "model",
    watch: Watch | None = None,
) -> Path:
    """The cache's folder of a repository, with these files in it; errors as of `fetch`."""
    _look_for_room(repo, size)
    try:
        with _watched(repo, size, watch):
            return Path(snapshot_download(repo, repo_type=kind, allow_patterns=list(files)))
    # The hub's own errors, the system's, and those of what carries the bytes (httpx, xet), which a
    # connection that breaks within a file lets through: they share no narrower base.
    except Exception as error:
        raise CheckpointError(
            f"{repo} could not be fetched from the hub ({type(error).__name__}): check the name "
            f"and the network, then run the same command again, which goes on where it stopped; "
            "or give a folder with the files"
        ) from error


@contextmanager
def _watched(repo: str, size: int, watch: Watch | None) -> Iterator[None]:
    """Tell how many bytes the cache holds while they come.

    Counted on the disk: what an earlier download left counts too, and the hub's own bars, which
    learn their total file by file, need not be known.
    """
    if watch is None:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        watch(Progress(f"Fetching {repo}", _there(repo), size))

    def look() -> None:
        while not over.wait(_LOOK_S):
            tell()

    tell()
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
    tell()


def _there(repo: str) -> int:
    """Bytes of a repository in the cache, of files that are still coming too."""
    found, blobs = 0, Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    for path in blobs.glob("blobs/*"):
        with suppress(OSError):  # a file that has just come is renamed
            found += path.stat().st_size
    return found


def _look_for_room(repo: str, size: int) -> None:
    """Refuse a download that could not end; what is already there counts."""
    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    missing, free = size - _there(repo), shutil.disk_usage(place).free
    if missing > free:
        raise CheckpointError(
            f"{repo} needs {missing / _GB:.1f} GB more on the disk of {cache.name}, where "
            f"{free / _GB:.1f} GB are free: make room, or set HF_HOME to a larger disk"
        )
