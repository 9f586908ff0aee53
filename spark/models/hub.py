"""Where a model's files are: a local folder, or the hub's cache, filled when a command asks.

Knows names of repositories and files; reads no weights. A page never downloads: tens of gigabytes
are an operator's decision, taken on a command line where the progress is seen.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from spark.models.checkpoint import INDEX, SINGLE, CheckpointError

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_GB = 1e9


def is_repo(source: str) -> bool:
    """Whether this reads as OWNER/NAME of the hub."""
    return _REPO.fullmatch(source) is not None and ".." not in source


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
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def cached_folder(repo: str) -> Path | None:
    """The cache's folder of a repository's main version, None where there is none."""
    found = try_to_load_from_cache(repo, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def fetch(
    source: str | Path, files: Sequence[str], size: int = 0, also: Sequence[str] = ()
) -> Path:
    """The folder of a model: `source` itself, or the cache's after a download with progress.

    What the cache already holds is not fetched again; a download that broke off goes on.

    Args:
        source: a folder, or OWNER/NAME.
        files: patterns of the files needed.
        also: of files that come with a download, and are not missed where they are not there.
        size: bytes of the whole, where known, to look for room before.

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
    return download(repo, (*files, *also), size)


def download(repo: str, files: Sequence[str], size: int = 0) -> Path:
    """The cache's folder of a repository, with these files in it; errors as of `fetch`."""
    _look_for_room(repo, size)
    try:
        return Path(snapshot_download(repo, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repo} could not be fetched from the hub ({type(error).__name__}): check the name "
            f"and the network, then run the same command again, which goes on where it stopped; "
            "or give a folder with the files"
        ) from error


def _look_for_room(repo: str, size: int) -> None:
    """Refuse a download that could not end; what is already there counts."""
    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    owner = cache / ("models--" + repo.replace("/", "--"))
    there = sum(path.stat().st_size for path in owner.glob("blobs/*")) if owner.exists() else 0
    missing, free = size - there, shutil.disk_usage(place).free
    if missing > free:
        raise CheckpointError(
            f"{repo} needs {missing / _GB:.1f} GB more on the disk of {cache.name}, where "
            f"{free / _GB:.1f} GB are free: make room, or set HF_HOME to a larger disk"
        )
