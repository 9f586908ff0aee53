"""What every browser test needs: a Chromium, and a page that may reach this machine only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str:
    """Where Chromium is; a test without one fails and says what helps."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(
            "No Chromium for the browser tests. Remedy: sudo apt-get install chromium, "
            "or set CHROMIUM=/path/to/it."
        )
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser that may play sound without a gesture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield browser
        browser.close()


@contextmanager
def local_page(browser: Browser, **options) -> Iterator[Page]:
    """A page of its own; at its end no request may have left the machine, no script failed."""
    context = browser.new_context(**options)
    page, outside, errors = context.new_page(), [], []

    def check(request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            outside.append(request.url)

    context.on("request", check)  # of every tab
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not outside, f"requests left the machine: {outside}"
    assert not errors, f"the page's scripts failed: {errors}"


def accessible(page: Page, within: str | None = None, *, step: str = "") -> None:
    """axe finds nothing on the page (or ``within`` a selector).

    What fades in or out has a poor contrast for a moment, so what axe finds counts once it
    is found in three runs, half a second apart.
    """
    for _ in range(3):
        found = Axe().run(page, within).response["violations"]
        if not found:
            return
        page.wait_for_timeout(500)
    told = [(v["id"], [node["html"][:160] for node in v["nodes"]][:3]) for v in found]
    pytest.fail(f"{step}: {json.dumps(told, indent=1)}")
