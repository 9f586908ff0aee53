"""Whether something can be written, asked before the work that it is for."""

from __future__ import annotations

import os
from pathlib import Path


def can_be_made(folder: Path) -> bool:
    """Whether a folder is there or could be made, and files in it."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return above.is_dir() and os.access(above, os.W_OK)
