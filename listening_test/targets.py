"""Places off the machine that hold segments: a private dataset on the Hub, or a mounted folder.

    target_from(os.environ)     by LISTENING_TEST_COPY; None where it is not set

A target keeps named bytes and knows nothing of what they mean. Whatever goes wrong in one raises
an exception of its own making or of its library; `offsite.py` takes every one as "not copied".
"""

from __future__ import annotations

import os
import re
import tempfile
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
    """

    place: str
    pause_s: float

    def names(self, prefix: str) -> set[str]:
        """Names of all segments that begin with `prefix`."""

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """Their bytes."""

    def commit(self, add: Mapping[str, bytes], remove: Collection[str]) -> None:
        """Keep `add`, then drop `remove`. When this returns, `add` is durable."""

    def forget_history(self) -> None:
        """Drop what was removed from the past versions too, where there are any."""


class FolderTarget:
    """A mounted folder (a Space's bucket, a network share) that outlives the machine's own disk.

    Raises:
        BadTarget: the folder is not there.
    """

    pause_s = 1.0

    def __init__(self, folder: Path) -> None:
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


class HubTarget:
    """A private dataset on the Hugging Face Hub; made if it is absent.

    Args:
        repo: owner/name.
        api: a `huggingface_hub.HfApi` with a token that may write there.
    """

    # The Hub takes about 128 commits an hour from one user.
    pause_s = 30.0

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
