"""The tests' own check of accessibility: a pale word fails, one that fades in does not."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser import accessible, local_page

pytestmark = pytest.mark.browser
PAGE = """<!doctype html><html lang="en"><title>Words</title>
<style>@keyframes come {{ from {{ opacity: 0 }} }} p {{ {style} }}</style>
<main><h1>Words</h1><p>hello there</p></main>"""


@pytest.mark.parametrize(
    ("style", "passes"),
    [("color: #eee", False), ("color: #000", True), ("animation: 0.4s come", True)],
)
def test_what_stays_pale_fails(browser: Browser, style: str, passes: bool) -> None:
    with local_page(browser) as page:
        page.set_content(PAGE.format(style=style))
        if passes:
            accessible(page)
        else:
            with pytest.raises(pytest.fail.Exception, match="color-contrast"):
                accessible(page)
