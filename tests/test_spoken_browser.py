"""A spoken prompt in Chromium: a file chosen, heard, answered; accessible throughout."""

import re

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

import app
from listening_test.hosting import Studies
from spark.compare import compare
from tests.browser import accessible, chromium, local_page
from tests.forms import Ears
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser


def test_a_file_is_asked_aloud(tmp_path):
    lm, studies = tiny_lm(), Studies()
    lm.listener = lm.dialogue = ears = Ears(lm)
    lm.system_prompt = "Be tiny."
    soundfile.write(tmp_path / "question.wav", np.sin(np.arange(12_000) / 20) / 2, 16_000)
    demo = app.build(lm, studies, compare(lm, "hello there", listen=False))
    _, address = app.launch(demo, studies, "127.0.0.1")
    try:
        with chromium() as browser, local_page(browser) as page:
            page.set_default_timeout(30_000)
            expect.set_options(timeout=30_000)
            page.goto(address)
            expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()
            page.get_by_text("Ask aloud").click()
            expect(page.get_by_text("Up to two minutes")).to_be_visible()
            accessible(page)
            page.locator("#spoken button[aria-label*=pload]").first.click()
            page.locator("#spoken input[type=file]").set_input_files(tmp_path / "question.wav")
            expect(page.locator("#spoken time").first).to_be_visible()
            accessible(page)
            page.get_by_role("button", name="Generate all three").click()
            expect(page.locator("#status")).to_contain_text(re.compile("Done"), timeout=120_000)
            page.get_by_label("Go on:").check()
            page.get_by_label("Ask, or give it a sentence").fill("and then?")
            page.get_by_role("button", name="Generate all three").click()
            expect(page.locator("#conversation")).to_contain_text("(a recording of 0.8 s)")
            expect(page.locator("#status")).to_contain_text(re.compile("Done"), timeout=120_000)
            page.get_by_role("button", name=re.compile("^Settings")).click()
            expect(page.get_by_label("System prompt")).to_have_value("Be tiny.")
            expect(page.locator("#model-facts")).to_contain_text("4 layers")
            accessible(page)
    finally:
        demo.close(verbose=False)
        studies.close()
    assert ears.lengths == [0.75] * 3  # with the second question it is heard again, and asked anew
