"""What was typed and not sent yet outlives a reload, a crash of the page and a new server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Error, Playwright, expect, sync_playwright

from tests.browser import chromium_path
from tests.listening import SYSTEMS, free_port, prepared_study, start_server
from tests.test_listening_page import heading, hear_all, methods_study, stored

pytestmark = pytest.mark.browser

INTERRUPTIONS = ["reload", "crash", "browser", "server"]
ASKED = """
questionnaire:
  - {id: age, question: How old are you?, choices: [under 40, 40 or over]}
  - {id: ears, question: Anything about your hearing?}
"""


class Visit:
    """A rater's browser, which keeps its data on disk, and a server that can be started anew."""

    def __init__(self, playwright: Playwright, study_dir: Path, folder: Path) -> None:
        self._playwright, self._study_dir, self._folder = playwright, study_dir, folder
        self._port = free_port()
        self._server = start_server(study_dir, self._port)
        self.url = f"http://127.0.0.1:{self._port}/listen/small"
        self._open()

    def _open(self) -> None:
        self._context = self._playwright.chromium.launch_persistent_context(
            self._folder,
            executable_path=chromium_path(),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        self.page = self._context.pages[0]
        self.page.goto(self.url)

    def interrupt(self, how: str) -> None:
        """Reload, let the page crash, close the browser, or kill the server and start it anew."""
        if how == "crash":
            with self.page.expect_event("crash"), pytest.raises(Error, match="crash"):
                self.page.goto("chrome://crash")
            self.page = self._context.new_page()
            self.page.goto(self.url)
        elif how == "browser":
            self._context.close()
            self._open()
        else:
            if how == "server":
                self._server.kill()
                self._server.wait(20)
                self._server = start_server(self._study_dir, self._port)
            self.page.reload()

    def end(self) -> None:
        """Close both."""
        self._context.close()
        self._server.terminate()
        self._server.wait(20)


@contextmanager
def visiting(study_dir: Path, folder: Path) -> Iterator[Visit]:
    with sync_playwright() as playwright:
        visit = Visit(playwright, study_dir, folder / "profile")
        try:
            yield visit
        finally:
            visit.end()


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_half_filled_sliders_and_half_a_comment_are_still_there(tmp_path: Path, how: str) -> None:
    study_dir = methods_study(tmp_path, "mushra", f"reference: {SYSTEMS[0]}\nanchors: [3500]")
    with visiting(study_dir, tmp_path) as visit:
        visit.page.get_by_role("button", name="I agree").click()
        visit.page.get_by_role("button", name="Begin").click()
        heading(visit.page, "Practice page")
        hear_all(visit.page, 4)
        slider = visit.page.get_by_role("slider")
        slider.nth(0).focus()
        visit.page.keyboard.press("ArrowRight")
        slider.nth(2).focus()
        visit.page.keyboard.press("ArrowLeft")
        visit.page.get_by_text("Comment (optional)").click()
        visit.page.locator("#comment").press_sequentially("the third one cra")
        visit.interrupt(how)
        page = visit.page
        heading(page, "Practice page")
        slider = page.get_by_role("slider")
        expect(slider.first).to_be_disabled()  # first it is heard again
        expect(page.get_by_label("What did you notice?")).to_have_value("the third one cra")
        expect(page.get_by_text("not rated")).to_have_count(1)
        hear_all(page, 4)
        expect(page.get_by_role("button", name="Next")).to_be_disabled()
        slider.nth(1).focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Next").click()
        heading(page, "Page 1 of 2")
        expect(page.get_by_text("not rated")).to_have_count(3)  # the next trial begins empty
        rows = stored(study_dir)
        assert [row["score"] for row in rows] == ["51", "50", "49"]
        assert {row["comment"] for row in rows} == {"the third one cra"}
        assert {row["changed_n"] for row in rows} == {"0"}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_a_half_filled_questionnaire_and_a_chosen_answer_are_still_there(
    tmp_path: Path, how: str
) -> None:
    study_dir = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42, extra=ASKED)
    with visiting(study_dir, tmp_path) as visit:
        visit.page.get_by_role("button", name="I agree").click()
        visit.page.get_by_text("40 or over").click()
        visit.page.get_by_label("Anything about your hearing?").press_sequentially("left ear is")
        visit.interrupt(how)
        page = visit.page
        heading(page, "About you")
        expect(page.get_by_label("40 or over")).to_be_checked()
        expect(page.get_by_label("Anything about your hearing?")).to_have_value("left ear is")
        page.get_by_role("button", name="Next").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        hear_all(page, 1)
        page.keyboard.press("2")
        visit.interrupt(how)
        page = visit.page
        heading(page, "Practice clip")
        expect(page.get_by_role("radio", name="2 Poor")).to_be_checked()
        expect(page.get_by_role("button", name="Next")).to_be_disabled()
        hear_all(page, 1)
        page.keyboard.press("Enter")
        heading(page, "Clip 1 of 4")
        expect(page.locator("input:checked[type=radio]")).to_have_count(0)
        assert [row["score"] for row in stored(study_dir)] == ["2"]
