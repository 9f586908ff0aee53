"""What a rater takes part with, in classes too coarse to tell anybody by.

A browser describes itself in each request (User-Agent); that text is read once and kept nowhere.
Classes come from the tokens that browsers have written there for a decade or more; one that hides
behind another's words is taken for that one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Of what a browser may say of itself this much is looked at.
_LONGEST = 400
# Most browsers also call themselves Chrome and Safari: the first that fits counts.
_BROWSERS = (
    ("edge", r"\bEdg(A|iOS)?/"),
    ("opera", r"\bOPR/"),
    ("samsung", r"\bSamsungBrowser/"),
    ("firefox", r"\b(Firefox|FxiOS)/"),
    ("chrome", r"\b(Chrome|Chromium|CriOS|HeadlessChrome)/"),
    ("safari", r"\bVersion/\S+ .*\bSafari/"),
)
_DEVICES = (
    ("tablet", r"\biPad\b|\bAndroid\b(?!.*\bMobile\b)"),
    ("phone", r"\b(iPhone|iPod)\b|\bMobile\b"),
    ("computer", r"\b(Windows NT|Macintosh|X11|CrOS)\b"),
)


@dataclass(frozen=True)
class Client:
    """A rater's device class, browser family and language of the page; None where not known."""

    device: str | None = None
    browser: str | None = None
    language: str = ""


def client_of(user_agent: str, touch: bool, language: str) -> Client:
    """The classes that a browser's words fall into, `other` where they fit none.

    Args:
        touch: whether the screen can be touched: a tablet of Apple's calls itself a Mac.
        language: of the page, as the rater chose it.
    """
    words = user_agent[:_LONGEST]
    device = _first(_DEVICES, words)
    if device == "computer" and touch and "Macintosh" in words:
        device = "tablet"
    return Client(device, _first(_BROWSERS, words), language)


def _first(classes: tuple[tuple[str, str], ...], words: str) -> str:
    return next((name for name, pattern in classes if re.search(pattern, words)), "other")
