"""Fetches a large model's files into the hub's cache, with progress; what is there stays.

python -m spark.models step-audio-2-mini
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from spark.models import glm4_voice, hub, step_audio_2
from spark.models.checkpoint import Checkpoint

_FAMILIES = {module.FAMILY.name: module.FAMILY for module in (step_audio_2, glm4_voice)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch and check one model; 0, or 2 after a message about what went wrong."""
    parser = argparse.ArgumentParser("python -m spark.models", description=(__doc__ or "")[:81])
    parser.add_argument("model", choices=_FAMILIES)
    family = _FAMILIES[parser.parse_args(arguments).model]
    try:
        folder = hub.fetch(family.repo, family.files, family.nbytes)
        Checkpoint.open(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
