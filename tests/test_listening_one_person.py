"""One person, one session: shared browsers, parallel tabs, second assignments, a lab's computer."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from listening_test.export import exported_frame, sessions_frame
from tests.browser import accessible, chromium, local_page
from tests.listening import serving
from tests.test_listening_crowd import MTURK, PROLIFIC, study_of, through
from tests.test_listening_page import heading, rate

pytestmark = pytest.mark.browser


def raters_of(study_dir: Path) -> list[tuple[str, int, str]]:
    frame = sessions_frame(study_dir)
    return list(zip(frame["rater_id"], frame["n_done"], frame["state"], strict=True))


def test_somebody_else_at_the_same_browser_gets_a_session_of_their_own(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path, PROLIFIC)
    with serving(study_dir) as url, chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(15_000)
        alice, bob = (f"{url}?PROLIFIC_PID={who}&STUDY_ID=s&SESSION_ID=x" for who in "ab")
        through(page, alice)
        page.goto(alice)  # the code once more, for whom it belongs to
        heading(page, "Thank you")
        page.goto(bob)
        expect(page.get_by_role("button", name="I agree")).to_be_visible()
        expect(page.get_by_text("CDONE123")).to_have_count(0)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        page.goto(alice)
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        expect(page.get_by_text("You have taken part in this study already")).to_be_visible()
        page.goto(bob)  # and goes on where he was
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin").click()
        heading(page, "Clip 1 of 4")
        (first, *done), (second, *begun) = raters_of(study_dir)
    assert first != second
    assert (done, begun) == ([5, "complete"], [1, "started"])


def test_parallel_tabs_of_a_person_are_one_session(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path, PROLIFIC)
    with serving(study_dir) as url, chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(15_000)
        link = f"{url}?PROLIFIC_PID=a&STUDY_ID=s&SESSION_ID=x"
        second = page.context.new_page()
        for tab in (page, second):  # both stand at the consent
            tab.goto(link)
            tab.get_by_role("button", name="I agree").click()
        for tab in (page, second):
            tab.get_by_role("button", name="Begin").click()
            heading(tab, "Practice clip")
        rate(page, "3")
        heading(page, "Clip 1 of 4")
        rate(second, "5")
        heading(second, "Clip 1 of 4")
        assert [row[1:] for row in raters_of(study_dir)] == [(1, "started")]
    frame, _ = exported_frame(study_dir)
    assert list(frame["score"]) == [3]


def test_a_second_assignment_is_not_submitted_for_the_same_session(tmp_path: Path) -> None:
    host = "https://workersandbox.mturk.com"
    with (
        serving(study_of(tmp_path, MTURK)) as url,
        chromium() as browser,
        local_page(browser) as page,
    ):
        page.set_default_timeout(15_000)
        first, other = (
            f"{url}?workerId=w&assignmentId={a}&hitId=h&turkSubmitTo={host}" for a in ("a1", "a2")
        )
        through(page, first)
        submit = page.get_by_role("button", name="Submit to MTurk")
        expect(submit).to_be_visible()
        page.goto(other)
        expect(page.get_by_text("for an earlier assignment")).to_be_visible()
        expect(submit).to_have_count(0)
        page.goto(first)  # the right one, that was not submitted yet
        expect(submit).to_be_visible()


def test_a_labs_computer_goes_on_with_the_next_participant(tmp_path: Path) -> None:
    study_dir = study_of(tmp_path, "platform: {name: lab}")
    with serving(study_dir) as url, chromium() as browser, local_page(browser) as page:
        page.set_default_timeout(15_000)
        through(page, url)
        accessible(page)
        page.get_by_role("button", name="Begin with the next participant").click()
        page.get_by_role("button", name="I agree").click()
        page.get_by_role("button", name="Begin", exact=True).click()
        heading(page, "Practice clip")
        (first, *done), (second, *begun) = raters_of(study_dir)
    assert first != second
    assert (done, begun) == ([5, "complete"], [0, "started"])
