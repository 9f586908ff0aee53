"""Make the README's picture of the Compare page: `python -m tests.picture`.

Starts the app on the embedded model, presses the button once, and writes assets/compare.png.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

import app
from listening_test.hosting import Studies
from spark.compiled import prepare
from spark.models import load
from tests.browser import chromium, local_page

PROMPT = "What is nineteen minus eight?"
PICTURE = Path(__file__).resolve().parents[1] / "assets" / "compare.png"
COLOURS = 96  # a palette keeps the file small; the page uses few colours


def main() -> None:
    """Serve, press, photograph."""
    studies, lm = Studies(), load("embedded")
    prepare(lm.transformer, wait=True)  # as `make run` has it
    demo = app.build(lm, studies)
    _, address = app.launch(demo, studies, "127.0.0.1")
    with (
        chromium() as browser,
        local_page(browser, viewport={"width": 1120, "height": 1080}) as page,
    ):
        page.goto(address)
        page.get_by_label("Ask, or give it a sentence").fill(PROMPT)
        page.get_by_role("button", name="Generate all three").click()
        expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
        page.wait_for_timeout(1_000)  # the last figure's drawing
        page.screenshot(path=PICTURE)
    demo.close(verbose=False)
    Image.open(PICTURE).quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE} ({PICTURE.stat().st_size // 1024} kB)")


if __name__ == "__main__":
    main()
