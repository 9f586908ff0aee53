"""Every step of the rater's way: axe in light and dark, by keyboard, and what its words promise.

A session is set to a step beside the server, so that not every screen has to be heard out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, prepared_study, serving
from tests.test_listening_page import heading, hear_all, methods_study, rate, stored

pytestmark = pytest.mark.browser

SCREENED = """
screening: {headphones: both, environment: {}}
questionnaire:
  - {id: age, question: How old are you?, choices: [under 40, 40 or over]}
  - {id: ears, question: Anything about your hearing?}
"""
WOODS, HUGGINS, ROOM, PRACTICE = 0, 6, 12, 16


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_study(
        tmp_path_factory.mktemp("steps"), items=2, systems=SYSTEMS[:2], seconds=0.42, extra=SCREENED
    )


@pytest.fixture(scope="module")
def url(study_dir: Path) -> Iterator[str]:
    with serving(study_dir) as address:
        yield address


def set_sessions(study_dir: Path, change: str) -> None:
    """Change all sessions beside the running server, as if they had come so far."""
    with closing(sqlite3.connect(study_dir / "data" / "ratings.sqlite3", timeout=20)) as database:
        database.execute(f"UPDATE sessions SET {change}")
        database.commit()


def check(page: Page, step: str) -> None:
    accessible(page, step=step)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), step


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_on_the_way_through_the_screens(
    browser: Browser, study_dir: Path, url: str, scheme: Any, width: int
) -> None:
    size = {"width": width, "height": 740}
    with local_page(browser, color_scheme=scheme, viewport=size) as page:
        page.goto(url)
        page.get_by_role("button", name="I agree").click()
        heading(page, "About you")
        check(page, "questionnaire")
        page.get_by_role("button", name="Next").click()
        heading(page, "How it works")
        page.get_by_role("button", name="Play the sound").click()
        expect(page.locator("#volume.playing")).to_be_visible()
        check(page, "loudness setting")
        page.get_by_role("button", name="Begin").click()
        for done, name in (
            (WOODS, "Headphone check 1 of 12"), (HUGGINS, "Headphone check 7 of 12"),
            (ROOM, "Room check 1 of 4"), (PRACTICE, "Practice clip"),
        ):  # fmt: skip
            set_sessions(study_dir, f"n_done = {done} WHERE state = 'started'")
            page.reload()
            heading(page, name)
            check(page, name)
        page.get_by_role("button", name="Withdraw").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        check(page, "asked whether to withdraw")
        page.get_by_role("button", name="No, keep").click()
        for change in ("environment_passed = 0", "environment_passed = NULL"):
            set_sessions(study_dir, f"state = 'screened_out', {change} WHERE state = 'started'")
            page.reload()
            heading(page, "Thank you for your time")
            room = change == "environment_passed = 0"
            needed = "needs a quiet place" if room else "needs headphones"
            expect(page.locator("#screened-text")).to_contain_text(needed)
            check(page, change)
            set_sessions(study_dir, "state = 'started' WHERE state = 'screened_out'")
        set_sessions(study_dir, "state = 'gone' WHERE state = 'started'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_while_the_page_waits(browser: Browser, url: str, scheme: Any) -> None:
    with local_page(browser, color_scheme=scheme) as page:
        told = {"error": "preparing", "message": "Not yet."}
        page.route("**/study", lambda route: route.fulfill(status=503, json=told))
        page.goto(url)
        expect(page.get_by_text("are still being prepared")).to_be_visible()
        check(page, "preparing")
        page.unroute("**/study")
        state = {"state": "copying", "then": "done", "safe": 0, "up": 2, "ticket": "t"}
        page.route("**/session", lambda route: route.fulfill(json=state))
        page.route("**/trial", lambda route: route.fulfill(json=state))
        page.get_by_role("button", name="I agree").click()
        expect(page.get_by_text("appears here as soon as")).to_be_visible()
        check(page, "copying")
        page.unroute_all(behavior="ignoreErrors")


@pytest.mark.parametrize(
    ("method", "players", "more"),
    [
        ("dcr", 1, f"reference: {SYSTEMS[1]}"), ("ccr", 1, ""), ("ab", 2, ""), ("abx", 3, ""),
        ("p835", 1, ""), ("mushra", 4, f"reference: {SYSTEMS[0]}\nanchors: [3500]"),
    ],
)  # fmt: skip
def test_every_method_in_the_dark_and_on_a_phone(
    browser: Browser, tmp_path: Path, method: str, players: int, more: str
) -> None:
    size = {"width": 360, "height": 740}
    with (
        serving(methods_study(tmp_path, method, more)) as url,
        local_page(browser, color_scheme="dark", viewport=size) as page,
    ):
        page.goto(url)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip" if method == "p835" else "Practice page")
        check(page, "shut")
        hear_all(page, players)
        expect(page.locator("fieldset").first).to_be_enabled()
        check(page, "open")


def test_the_screens_by_keyboard_to_the_end(browser: Browser, study_dir: Path, url: str) -> None:
    with local_page(browser) as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(url)
        expect(page.get_by_role("button", name="I agree")).to_be_visible()
        press(page, "I agree")
        heading(page, "About you")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        expect(page.get_by_role("radio", name="under 40")).to_be_checked()
        page.keyboard.press("Tab")
        page.keyboard.type("one ear")
        press(page, "Next")
        heading(page, "How it works")
        press(page, "Begin", tabs=2)
        for done, name in ((WOODS, "Headphone check 1 of 12"), (HUGGINS, "Headphone check 7 of 12"),
                           (ROOM, "Room check 1 of 4")):  # fmt: skip
            set_sessions(study_dir, f"n_done = {done} WHERE state = 'started'")
            page.reload()
            heading(page, name)
            page.keyboard.press("Space")
            expect(page.get_by_role("radio").first).to_be_enabled(timeout=15_000)
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            expect(page.get_by_text("saved ✓")).to_be_visible()
        set_sessions(study_dir, f"n_done = {PRACTICE} WHERE state = 'started'")
        page.reload()
        heading(page, "Practice clip")
        before = len(stored(study_dir))
        rate(page, "3")
        for number in range(1, 5):
            heading(page, f"Clip {number} of 4")
            rate(page, "4")
        heading(page, "Thank you")
        assert [row["score"] for row in stored(study_dir)[before:]] == ["3", "4", "4", "4", "4"]
        kept = page.evaluate("JSON.stringify({...localStorage})")
        assert not [name for name in SYSTEMS if name in kept]
        assert said == []


def press(page: Page, name: str, tabs: int = 1) -> None:
    """To a button by so many Tabs, and Enter."""
    for _ in range(tabs):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Enter")


@pytest.mark.parametrize(
    ("screening", "headphones", "room"),
    [
        ("", False, False),
        ("screening: {environment: {}}", False, True),
        ("screening: {headphones: woods}", True, False),
        ("screening: {headphones: huggins, environment: {}}", True, True),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh", "ar"])
def test_headphones_are_asked_for_only_where_they_are_checked(
    browser: Browser, tmp_path: Path, screening: str, headphones: bool, room: bool, language: str
) -> None:
    words = {"en": ("headphones", "quiet"), "zh": ("耳机", "安静"), "ar": ("السماعات", "هدوء")}
    own = "instructions: Listen.\n"
    study_dir = methods_study(tmp_path, "acr", f"language: {language}\n{own}{screening}")
    with serving(study_dir) as url, local_page(browser) as page:
        page.goto(url)
        page.locator("#agree").click()
        text = page.locator("#instructions").inner_text().replace("سماعات الرأس", "السماعات")
        assert [word in text for word in words[language]] == [headphones, room]
        if room and not headphones:
            page.locator("#begin").click()
            expect(page.locator("#room-note")).to_be_visible()
            shown = page.locator("main").inner_text()
            assert words[language][0] not in shown
