"""Handing a file to a visitor: JavaScript that saves a base64 value. Knows nothing of pages."""

from __future__ import annotations

import json


def save_script(kind: str, name: str) -> str:
    """For `js=` of an event whose input is the file's content in base64; empty saves nothing.

    Args:
        kind: media type.
        name: what the visitor's file is called.
    """
    return f"""(data) => {{
  if (!data) return;
  const saved = document.createElement("a");
  saved.href = {json.dumps(f"data:{kind};base64,")} + data;
  saved.download = {json.dumps(name)};
  saved.click();
}}"""
