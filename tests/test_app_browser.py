"""The app in Chromium: the Compare page pressed, listened to, judged blind, restored from a link;
offline and accessible throughout."""

import base64
import json
import re
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from playwright.sync_api import expect

import app
from listening_test.hosting import Studies
from spark.compare import compare
from spark.comparison import CompareSettings
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, prepared_study
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser
EXAMPLE = "what is the capital of peru?"  # the tiny model speaks for three seconds
DONE = re.compile("Done")
RUN_MS = 150_000  # three replies, heard and timed, on a machine that does other things too


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    return prepared_study(tmp_path_factory.mktemp("app"), items=2, systems=SYSTEMS[:2])


@pytest.fixture(scope="module")
def served(study_dir):
    """The composed app, as `app.main` makes it: its Blocks and its address."""
    lm, studies = tiny_lm(), Studies()
    studies.open(study_dir)
    demo = app.build(lm, studies, compare(lm, EXAMPLE))
    _, address = app.launch(demo, studies, "127.0.0.1")
    yield demo, address.rstrip("/")
    demo.close(verbose=False)
    studies.close()


@pytest.fixture(scope="module")
def address(served):
    return served[1]


@pytest.fixture
def page(browser, address):
    with local_page(browser, viewport={"width": 1280, "height": 900}) as page:
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(address)
        expect(page.locator("audio[data-policy=full]")).to_be_visible()
        yield page


def type_seed(page, wanted):
    """Type a seed once its control is complete.

    Gradio makes a closed accordion's controls when it opens and sets their values a moment after
    they are drawn: too early for any hand, but a script's typing is lost then on a busy machine.
    So it is typed again where it did not stay.
    """
    seed = page.locator("#seed input")
    expect(seed).to_have_value(re.compile(r"\d"))
    for _ in range(5):
        seed.fill(wanted)
        seed.press("Tab")
        page.wait_for_timeout(300)
        if seed.input_value() == wanted:
            return
    expect(seed).to_have_value(wanted)


def ask(page, prompt, **settings):
    """Type a prompt, set what the settings name, press the button."""
    page.get_by_label("Ask, or give it a sentence").fill(prompt)
    if settings:
        if not page.locator("#seed input").is_visible():
            page.get_by_role("button", name=re.compile("^Settings")).click()
        if "seed" in settings:
            type_seed(page, str(settings["seed"]))
        if settings.get("blind"):
            page.get_by_label("Blind mode").check()
    page.get_by_role("button", name="Generate all three").click()


def test_an_example_stands_there_before_the_first_press(page):
    expect(page.locator("#status")).to_contain_text(EXAMPLE)
    expect(page.locator(".sk-card audio")).to_have_count(3)
    expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()
    expect(page.locator(".sk-finding").first).to_contain_text("speech tokens shallow")


def test_one_press_gives_three_sounds_with_their_figures(page):
    ask(page, "hello there", seed=5)
    expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)
    heads = page.locator(".sk-card h2")
    assert heads.all_text_contents() == ["Full depth", "SPAR-K", "Confidence exit"]
    lm = tiny_lm()
    expected = compare(lm, "hello there", CompareSettings(seed=5), listen=False)
    for place, reply in enumerate(expected.replies):
        card = page.locator(".sk-card").nth(place)
        expect(card.locator(".sk-said")).to_have_text(f"“{reply.text}”")
        depth = reply.trace.summary()["mean_depth_speech"]
        expect(card).to_contain_text(f"{depth:.1f} of 4")
        source = card.locator("audio").get_attribute("src")
        wav = base64.b64decode(source.removeprefix("data:audio/wav;base64,"))
        assert wav[44:] == reply.pcm.tobytes()  # int16, as decoded: nobody scaled it
    expect(page.locator(".sk-card").first).to_contain_text("heard:")


def test_a_sound_plays_and_a_token_plays_from_its_place(page):
    audio = page.locator(".sk-card audio").nth(1)
    audio.evaluate("a => a.play()")
    page.wait_for_function("document.querySelectorAll('.sk-card audio')[1].currentTime > 0.05")
    page.get_by_role("button", name=re.compile("^Every token")).click()
    button = page.locator("[data-play=spark]").nth(20)
    at = float(button.get_attribute("data-time"))
    assert at > 0.4
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "at => { const a = document.querySelectorAll('.sk-card audio')[1];"
        " return a.currentTime >= at && a.currentTime < at + 1; }",
        arg=at,
    )
    page.locator(".sk-card audio").first.evaluate("a => a.play()")
    page.wait_for_function("document.querySelectorAll('.sk-card audio')[1].paused")


def test_a_click_on_a_mark_plays_from_there(page):
    plot = page.locator("#depth-plot .js-plotly-plot")
    plot.locator("[data-listening]").or_(page.locator("[data-listening=yes]")).first.wait_for()
    plot.evaluate("p => p.emit('plotly_click', {points: [{customdata: ['full', 9, 0.6]}]})")
    page.wait_for_function("document.querySelectorAll('.sk-card audio')[0].currentTime >= 0.6")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ("where? " * 60, "too long"),
        ("Где столица Перу?", "cannot read"),
    ],
)
def test_bad_input_is_answered_and_nothing_typed_is_lost(page, prompt, message):
    ask(page, prompt)
    expect(page.get_by_role("alert")).to_contain_text(message)
    assert page.get_by_label("Ask, or give it a sentence").input_value() == prompt
    expect(page.get_by_role("button", name="Generate all three")).to_be_enabled()


def test_an_impossible_seed_is_answered(page):
    ask(page, "hello", seed=-3)
    expect(page.get_by_role("alert")).to_contain_text("seed must be a whole number")
    assert page.locator("#seed input").input_value() == "-3"


def test_stop_ends_a_run_and_enter_takes_nothing_from_it(page):
    prompt = page.get_by_label("Ask, or give it a sentence")
    page.get_by_role("button", name=re.compile("^Settings")).click()
    page.get_by_label("Replays that time").first.fill("20")  # it would run for a long time
    ask(page, EXAMPLE)
    stop, generate = (page.get_by_role("button", name=n) for n in ("Stop", "Generate all three"))
    expect(stop).to_be_enabled()
    expect(generate).to_be_disabled()
    prompt.press("Shift+Enter")
    stop.click()
    expect(page.locator("#status")).to_contain_text("Stopped", timeout=RUN_MS)
    expect(generate).to_be_enabled()
    expect(stop).to_be_disabled()


def test_a_full_queue_is_told_and_the_button_comes_back(page, served):
    queue = served[0]._queue
    room, queue.max_size = queue.max_size, 0
    try:
        ask(page, "hello there")
        expect(page.locator("#status [role=alert]")).to_contain_text("try again in a moment")
        expect(page.get_by_role("button", name="Generate all three")).to_be_enabled()
    finally:
        queue.max_size = room
    assert page.get_by_label("Ask, or give it a sentence").input_value() == "hello there"


def test_a_clip_is_rated_inside_the_app(page, address, study_dir):
    page.goto(f"{address}/listen")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Take the test").click()
    rater = opened.value
    assert rater.url == f"{address}/listen/small"
    rater.get_by_role("button", name="I agree").click()
    rater.get_by_role("button", name="Begin").click()
    expect(rater.get_by_role("heading", name="Practice clip")).to_be_visible()
    rater.get_by_role("button", name="Play").click()
    rater.get_by_role("radio", name="4 Good").check()  # waits until the clip is heard
    rater.get_by_role("button", name="Next").click()
    expect(rater.get_by_text("saved ✓")).to_be_visible()
    expect(rater.get_by_role("heading", name="Clip 1 of 4")).to_be_visible()
    rows = (study_dir / "data" / "ratings.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2
    expect(page.locator("#listen-studies")).to_contain_text("0 of 8 planned sessions complete")


def test_words_of_a_prompt_are_shown_as_words(page):
    ask(page, "hello <img src=x onerror=alert(1)>")
    expect(page.get_by_role("alert")).to_contain_text("cannot read")
    assert page.locator("img[src=x]").count() == 0


def test_blind_mode_tells_nothing_until_the_answer(page):
    ask(page, "hello there", blind=True, seed=4)
    ready = "Ready: listen to A, B and C"
    expect(page.locator("#status")).to_contain_text(ready, timeout=RUN_MS)
    seen = page.locator("main").inner_html().lower()
    for secret in ("data-policy", "heard:", "weights read", "js-plotly-plot", "full depth</h2>"):
        assert secret not in seen
    assert page.locator(".sk-card h2").all_text_contents() == ["A", "B", "C"]
    assert page.locator(".sk-card audio[controls]").count() == 0  # controls would show the length
    page.get_by_role("button", name="Play B").click()
    page.wait_for_function("document.getElementById('blind-B').currentTime > 0.05")
    page.get_by_role("button", name="No difference").click()
    expect(page.locator("#status")).to_contain_text("You heard no difference")
    heads = [text.split()[0] for text in page.locator(".sk-card h2").all_text_contents()]
    assert heads == ["A", "B", "C"]
    expect(page.locator(".sk-card audio[data-policy]")).to_have_count(3)
    expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()


def test_a_link_restores_prompt_settings_and_seed(page, address):
    page.get_by_label("Ask, or give it a sentence").fill("say hello & goodbye")
    page.get_by_role("button", name=re.compile("^Settings")).click()
    type_seed(page, "42")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#address textarea, #address input")).to_have_value(re.compile("seed=42"))
    link = page.locator("#address textarea, #address input").input_value()
    page.goto(link.replace("schedule=triple", "schedule=odd"))
    prompt = page.get_by_label("Ask, or give it a sentence")
    expect(prompt).to_have_value("say hello & goodbye")
    page.get_by_role("button", name=re.compile("^Settings")).click()
    expect(page.locator("#seed input")).to_have_value("42")
    expect(page.get_by_label("SPAR-K: schedule")).to_have_value("odd")
    page.goto(f"{address}/?exit_layer=99")
    expect(page.get_by_role("alert")).to_contain_text("SPAR-K: exit layer: 99 is none of 1, 2, 3")


def test_everything_can_be_downloaded(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download everything").click()
    assert download.value.suggested_filename == "spar-k-comparison.zip"
    with zipfile.ZipFile(BytesIO(Path(download.value.path()).read_bytes())) as archive:
        summary = json.loads(archive.read("summary.json"))
        assert summary["prompt"] == EXAMPLE
        assert {f"{p['name']}.wav" for p in summary["policies"]} <= set(archive.namelist())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("path", ["/", "/evidence", "/about"])
def test_axe_finds_nothing(browser, address, path, width, scheme):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with local_page(browser, **options) as page:
        page.goto(address + path)
        page.get_by_role("heading", level=1).wait_for()
        if path == "/":
            expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()
            for accordion in ("Settings", "All figures", "Every token"):
                page.get_by_role("button", name=re.compile(f"^{accordion}")).click()
            page.locator("[data-play=spark]").first.wait_for()
        if path == "/evidence":
            expect(page.locator("#pareto-plot .js-plotly-plot")).to_be_visible()
            page.get_by_role("button", name=re.compile("^All figures")).click()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_works_on_a_phone(browser, address):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with local_page(browser, **phone) as page:
        page.goto(address)
        page.locator("audio[data-policy=full]").wait_for()
        page.mouse.wheel(0, 1200)
        button = page.get_by_role("button", name="Generate all three")
        expect(button).to_be_in_viewport()
        # At the end, which moves as plots come, nothing lies under the bar: nobody could press it.
        page.wait_for_function(
            """button => {
                window.scrollTo(0, document.documentElement.scrollHeight);
                const last = document.querySelector("#copy-link").getBoundingClientRect();
                return last.height > 0 && last.bottom < button.getBoundingClientRect().top;
            }""",
            arg=button.element_handle(),
        )
