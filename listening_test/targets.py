"""Places off the machine that hold segments: a private dataset on the Hub, or a mounted folder.

    target_from(os.environ)     by LISTENING_TEST_COPY; None where it is not set

A target keeps named bytes and knows nothing of what they mean. Whatever goes wrong in one raises
an exception of its own making or of its library; `offsite.py` takes every one as "not copied".
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from listening_test import key

# hf://datasets/OWNER/NAME, or the absolute path of a mounted folder.
COPY_VARIABLE = "LISTENING_TEST_COPY"
TOKEN_VARIABLE = "HF_TOKEN"
_DATASET = re.compile(r"hf://datasets/([A-Za-z0-9_-][\w.-]*/[A-Za-z0-9_-][\w.-]*)/?")


class BadTarget(ValueError):
    """The environment names no place that copies can go to; the text says what to change."""


class Target(Protocol):
    """Where segments lie.

    Attributes:
        place: what people call it.
        pause_s: the least time between two commits, in seconds.
        settle_s: how long after a `swap` another server may overwrite it unseen, in seconds.
    """

    place: str
    pause_s: float
    settle_s: float

    def names(self, prefix: str) -> set[str]:
        """Names of all segments that begin with `prefix`."""

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """Their bytes."""

    def commit(self, add: Mapping[str, bytes], remove: Collection[str]) -> None:
        """Keep `add`, then drop `remove`. When this returns, `add` is durable."""

    def forget_history(self) -> None:
        """Drop what was removed from the past versions too, where there are any."""

    def shared(self, name: str) -> tuple[bytes | None, str]:
        """A file of lines that several servers write, None if it is not there; its version."""

    def swap(self, name: str, data: bytes, version: str) -> bool:
        """Write that file if it is of that version still; False if another was quicker."""


# File systems of one machine: a file that was made exclusively is seen by all at once.
_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
# A mounted bucket has no exclusive creation: the last writer wins. hf-mount shows the others a
# change after 30 s at the latest, so a writer that did not see it has written within those, and
# is seen itself within 30 s more.
_MOUNT_SETTLE_S = 75.0
# Longer than the writing of a small file can take.
_WRITING_S = 60.0
# A reader waits so long for one that is being written, before it says so.
_PATIENCE_S = 5.0
# Versions of a shared file that are kept.
_VERSIONS = 20


class FolderTarget:
    """A mounted folder (a Space's bucket, a network share) that outlives the machine's own disk.

    Raises:
        BadTarget: the folder is not there.
    """

    pause_s = 1.0

    def __init__(self, folder: Path) -> None:
        self.settle_s = 0.0 if _file_system(folder) in _LOCAL else _MOUNT_SETTLE_S
        if not folder.is_dir():
            raise BadTarget(
                f"{COPY_VARIABLE}: there is no folder {folder}. Mount it, or make it, first."
            )
        self._folder = folder
        self.place = str(folder)

    def names(self, prefix: str) -> set[str]:
        """See `Target`."""
        # A mount that went away must not look like an empty one.
        if not self._folder.is_dir():
            raise OSError(f"the folder {self._folder} is gone")
        found = (self._folder / prefix).glob("*.jsonl")
        return {f"{prefix}{path.name}" for path in found}

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """See `Target`."""
        return {name: (self._folder / name).read_bytes() for name in names}

    def commit(self, add: Mapping[str, bytes], remove: Collection[str]) -> None:
        """See `Target`. Each file is written apart, renamed, and read back."""
        if not self._folder.is_dir():
            raise OSError(f"the folder {self._folder} is gone")
        for name, data in add.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            if path.read_bytes() != data:
                raise OSError(f"{path} does not read back as it was written")
        for name in remove:
            (self._folder / name).unlink(missing_ok=True)

    def forget_history(self) -> None:
        """A folder has no past versions."""

    def shared(self, name: str) -> tuple[bytes | None, str]:
        """See `Target`. Each version is a file of its own, `<name>-<number>`."""
        patience = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._newest(name)
            except BlockingIOError:  # whoever writes needs milliseconds, as a rule
                if time.monotonic() > patience:
                    raise
                time.sleep(0.02)

    def _newest(self, name: str) -> tuple[bytes | None, str]:
        """The newest whole version and the newest number; BlockingIOError while it is written."""
        if not self._folder.is_dir():
            raise OSError(f"the folder {self._folder} is gone")
        versions = self._versions(name)
        for number in reversed(versions):
            path = self._version(name, number)
            if (data := path.read_bytes()).endswith(b"\n"):
                return data, str(versions[-1])
            if time.time() - path.stat().st_mtime < _WRITING_S:
                raise BlockingIOError(f"{name} is being written just now")
            # Whoever wrote it died over it: the version before it holds.
        return None, str(versions[-1] if versions else 0)

    def swap(self, name: str, data: bytes, version: str) -> bool:
        """See `Target`. The next version is created, which only one can do."""
        number = int(version) + 1
        path = self._version(name, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        versions = self._versions(name)
        if number <= versions[-1] - _VERSIONS:
            # A latecomer, at a number that was cleared away already.
            path.unlink(missing_ok=True)
            return False
        for old in versions[:-1]:
            if old <= versions[-1] - _VERSIONS:
                self._version(name, old).unlink(missing_ok=True)
        return True

    def _version(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:08d}"

    def _versions(self, name: str) -> list[int]:
        path = self._folder / name
        return sorted(
            int(found.name.rpartition("-")[2])
            for found in path.parent.glob(f"{path.name}-" + "[0-9]" * 8)
        )


def _file_system(folder: Path) -> str:
    """What kind of file system a folder is on, empty if this machine does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    kinds = {}
    for line in lines:  # ... mount point as the fifth field, and the kind after a lone dash
        fields = line.split()
        kinds[Path(fields[4].replace("\\040", " "))] = fields[fields.index("-") + 1]
    where = folder.resolve()
    return next((kinds[path] for path in (where, *where.parents) if path in kinds), "")


class HubTarget:
    """A private dataset on the Hugging Face Hub; made if it is absent.

    Args:
        repo: owner/name.
        api: a `huggingface_hub.HfApi` with a token that may write there.
    """

    # The Hub takes about 128 commits an hour from one user.
    pause_s = 30.0
    settle_s = 0.0

    def __init__(self, repo: str, api: Any) -> None:
        self._repo = {"repo_id": repo, "repo_type": "dataset"}
        self._api = api
        self._checked = False
        self.place = f"hf://datasets/{repo}"

    def _check(self) -> None:
        if self._checked:
            return
        self._api.create_repo(**self._repo, private=True, exist_ok=True)
        if not self._api.repo_info(**self._repo).private:
            raise BadTarget(f"{self.place} is public: ratings may lie in a private dataset only.")
        self._checked = True

    def names(self, prefix: str) -> set[str]:
        """See `Target`."""
        self._check()
        found = self._api.list_repo_files(**self._repo)
        return {name for name in found if name.startswith(prefix) and name.endswith(".jsonl")}

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """See `Target`."""
        if not names:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self._api.snapshot_download(
                **self._repo, allow_patterns=sorted(names), local_dir=folder
            )
            return {name: (Path(folder) / name).read_bytes() for name in names}

    def commit(self, add: Mapping[str, bytes], remove: Collection[str]) -> None:
        """See `Target`. All in one commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        self._check()
        self._api.create_commit(
            **self._repo,
            operations=[
                *(CommitOperationAdd(name, data) for name, data in add.items()),
                *(CommitOperationDelete(name) for name in remove),
            ],
            commit_message="Ratings",
        )

    def forget_history(self) -> None:
        """See `Target`: the branch becomes one commit."""
        self._api.super_squash_history(**self._repo)

    def shared(self, name: str) -> tuple[bytes | None, str]:
        """See `Target`. Its version is the head of the branch."""
        self._check()
        head = str(self._api.repo_info(**self._repo).sha)
        with tempfile.TemporaryDirectory() as folder:
            self._api.snapshot_download(
                **self._repo, revision=head, allow_patterns=[name], local_dir=folder
            )
            path = Path(folder) / name
            return (path.read_bytes() if path.exists() else None), head

    def swap(self, name: str, data: bytes, version: str) -> bool:
        """See `Target`. The Hub refuses the commit if the branch has moved on."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_commit(
                **self._repo,
                operations=[CommitOperationAdd(name, data)],
                commit_message="Leases",
                parent_commit=version,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                return False
            raise
        return True


def target_from(environment: Mapping[str, str]) -> Target | None:
    """The place that LISTENING_TEST_COPY names; None if it is not set.

    Raises:
        BadTarget: it cannot be used as it stands.
    """
    given = environment.get(COPY_VARIABLE, "").strip()
    if not given:
        return None
    if not environment.get(key.VARIABLE):
        raise BadTarget(
            f"{COPY_VARIABLE} needs {key.VARIABLE} too, as a secret: the stimulus ids are keyed "
            "by it, and without it nobody could tell after a restart what was rated."
        )
    if match := _DATASET.fullmatch(given):
        token = environment.get(TOKEN_VARIABLE)
        if not token:
            raise BadTarget(
                f"{COPY_VARIABLE} names a dataset, and {TOKEN_VARIABLE} is not set: give a token "
                "that may write to it, as a secret."
            )
        from huggingface_hub import HfApi

        return HubTarget(match[1], HfApi(token=token))
    if not Path(given).is_absolute():
        raise BadTarget(
            f"{COPY_VARIABLE} must be hf://datasets/OWNER/NAME or the absolute path of a mounted "
            f"folder; it is {given!r}."
        )
    return FolderTarget(Path(given))
