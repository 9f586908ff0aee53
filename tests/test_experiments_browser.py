"""The Experiments page in Chromium: filtered, plotted, heard, looked through; accessible."""

import re

import pytest
from playwright.sync_api import expect

import app
from listening_test.hosting import Studies
from tests.browser import accessible, local_page
from tests.evaluated import evaluate
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    lm, studies = tiny_lm(), Studies()
    evaluate(lm, root / "first")
    (root / "half").mkdir()
    (root / "half" / "items.jsonl").write_text("")
    demo = app.build(lm, studies, experiments=root)
    _, address = app.launch(demo, studies, "127.0.0.1")
    yield address.rstrip("/")
    demo.close(verbose=False)
    studies.close()


def choose(page, label, option):
    page.get_by_label(label).click()
    page.get_by_role("option", name=option).click()


def test_an_evaluation_is_filtered_plotted_and_heard(browser, address):
    with local_page(browser, viewport={"width": 1280, "height": 900}) as page:
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(address + "/experiments")
        rows = page.locator("#experiment-items tbody")
        expect(rows).to_have_count(5)
        expect(page.locator("#experiment-front .js-plotly-plot")).to_be_visible()
        choose(page, "Family or set", "reasoning")
        expect(rows).to_have_count(2)
        choose(page, "Policy", "SPAR-K")
        expect(page.locator("#experiment-items tbody tr")).to_have_count(2)
        page.get_by_role("button", name="Hear it").click()
        players = page.locator("#experiment-players audio")
        expect(players).to_have_count(3, timeout=120_000)
        players.first.evaluate("audio => audio.play()")
        expect(page.locator("#experiment-map .js-plotly-plot")).to_be_visible()
        expect(page.locator("#experiment-map-note")).to_contain_text("speech slots")
        choose(page, "Evaluation", "half")
        expect(page.locator("#experiment-note [role=alert]")).to_contain_text("not finished")
        expect(rows).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing(browser, address, width, scheme, request):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with local_page(browser, **options) as page:
        page.goto(address + "/experiments")
        page.get_by_role("button", name="Hear it").click(timeout=60_000)
        expect(page.locator("#experiment-players audio")).to_have_count(3, timeout=120_000)
        expect(page.locator("#experiment-map .js-plotly-plot")).to_be_visible()
        expect(page.locator("#experiment-told")).to_contain_text(re.compile("Done"))
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
