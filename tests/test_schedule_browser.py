"""A schedule's file given to the Compare page in Chromium: taken, run, shown; another's refused."""

import re

import pytest
from playwright.sync_api import expect

import app
from listening_test.hosting import Studies
from spark.compare import compare
from spark.positions import PositionSchedule
from spark.schedule_file import ScheduleFile
from tests.browser import accessible, chromium, local_page
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser


def test_a_schedule_is_taken_from_a_file(tmp_path):
    lm, studies, schedule = tiny_lm(), Studies(), PositionSchedule((None, 3, 2, 1))
    ScheduleFile.of(lm, schedule).write(tmp_path / "ours.json")
    ScheduleFile.of(tiny_lm(1), schedule).write(tmp_path / "others.json")
    demo = app.build(lm, studies, compare(lm, "hello there", listen=False))
    _, address = app.launch(demo, studies, "127.0.0.1")
    try:
        with chromium() as browser, local_page(browser) as page:
            page.set_default_timeout(30_000)
            expect.set_options(timeout=30_000)
            page.goto(address)
            expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()
            page.get_by_role("button", name=re.compile("^Settings")).click()
            expect(page.get_by_role("button", name="Schedule from a file")).to_be_visible()
            chosen = page.locator("input[type=file][accept*=json]")
            chosen.set_input_files(tmp_path / "others.json")
            expect(page.locator("#status")).to_contain_text("other weights of tiny")
            expect(page.get_by_label("SPAR-K: schedule")).to_have_value("triple")
            chosen.set_input_files(tmp_path / "ours.json")
            expect(page.get_by_label("SPAR-K: schedule")).to_have_value("f-3-2-1")
            accessible(page)
            page.get_by_label("Ask, or give it a sentence").fill("hello there")
            page.get_by_role("button", name="Generate all three").click()
            expect(page.locator("#status")).to_contain_text(re.compile("Done"), timeout=120_000)
            page.get_by_role("button", name="Copy link").click()
            expect(page.get_by_label("Link to this prompt")).to_have_value(
                re.compile("schedule=f-3-2-1")
            )
    finally:
        demo.close(verbose=False)
        studies.close()
