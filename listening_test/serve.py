"""Serve one prepared study to raters: `python -m listening_test.serve STUDY_DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from listening_test import addresses
from listening_test.changes import ForeignCopy
from listening_test.crowd import invitation
from listening_test.hosting import Studies
from listening_test.limit import BadLimit, limit_from
from listening_test.offsite import NotCopied
from listening_test.prepared import NotPrepared
from listening_test.server import attach
from listening_test.store import NotSaved, StoreMismatch
from listening_test.targets import BadTarget, target_from


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m listening_test.serve", description=__doc__)
    parser.add_argument("study_dir", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7861)
    options = parser.parse_args(arguments)
    addresses.trust_platform(os.environ)
    try:
        studies = Studies(target_from(os.environ), limit_from(os.environ))
        hosted = studies.open(options.study_dir)
    except (
        NotPrepared, NotSaved, StoreMismatch, NotCopied, ForeignCopy, BadTarget, BadLimit
    ) as error:  # fmt: skip
        print(error, file=sys.stderr)
        return 2
    app = FastAPI(openapi_url=None)
    attach(app, studies)
    studies.watch()
    root = addresses.root_of(os.environ, f"http://{options.host}:{options.port}")
    address = f"{root}/listen/{hosted.study.study_id}"
    print(f"raters: {address}")
    if hosted.study.platform:
        invited = invitation(hosted.study.platform, address)
        print(f"{invited.what}:\n{invited.text}")
    print(f"ratings: {hosted.store.csv_path}")
    print(f"progress, alarms, closing: python -m listening_test.admin {options.study_dir}")
    if hosted.copy:
        print(f"copies: {hosted.copy.status().place}")
    # A rater listens for longer than uvicorn's 5 s: keep the connection for the next request.
    uvicorn.run(
        app, host=options.host, port=options.port, log_level="warning", timeout_keep_alive=75
    )
    studies.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
