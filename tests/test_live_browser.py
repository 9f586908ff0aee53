"""In Chromium: replies heard while they are made, the dial, the drift line."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

import app
from listening_test.hosting import Studies
from spark.compare import Sounded, compare
from spark.comparison import CompareSettings
from spark.engine import Generation
from spark.speech.audio import wav_bytes
from spark.trace import Step
from spark.ui.live import LivePieces
from tests.browser import local_page
from tests.test_app_browser import DONE, EXAMPLE, RUN_MS, ask
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser
# Notes what is given to the sound card, and whether the reply's card was still being filled then.
# A test may stop the sound card's clock at `now`, since a busy machine's runs on between two calls.
SPY = """
window.given = [];
window.plays = [];
const clock = Object.getOwnPropertyDescriptor(BaseAudioContext.prototype, "currentTime");
Object.defineProperty(BaseAudioContext.prototype, "currentTime", {
  get() { return window.now ?? clock.get.call(this); },
});
document.addEventListener("play", ({ target }) => plays.push(target.dataset.policy), true);
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at) {
  const samples = Array.from(this.buffer.getChannelData(0), (x) => Math.round(x * 32768));
  given.push({ samples, at, rate: this.context.sampleRate, duration: this.buffer.duration,
               making: document.querySelectorAll(".sk-card progress").length,
               clip: document.querySelector("audio[data-policy=full]") !== null });
  return start.call(this, at);
};
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The app on a model whose every step takes some milliseconds, as a larger one's would."""
    step = Generation.__next__

    def slowly(made: Generation) -> Step:
        time.sleep(0.01)
        return step(made)

    demo = app.build(tiny_lm(), Studies(), compare(tiny_lm(), EXAMPLE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "__next__", slowly)
        _, address = app.launch(demo, Studies(), "127.0.0.1")
        yield address.rstrip("/")
        demo.close(verbose=False)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with local_page(browser, viewport={"width": 1280, "height": 900}) as page:
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.add_init_script(SPY)
        page.goto(address)
        expect(page.locator("audio[data-policy=full]")).to_be_visible()
        expect(page.locator("#hear-live input")).to_be_checked()
        yield page


def clip(page: Page, policy: str) -> np.ndarray:
    source = page.locator(f"audio[data-policy={policy}]").get_attribute("src")
    assert source
    return np.frombuffer(base64.b64decode(source.split(",")[1])[44:], np.int16)


def test_sound_starts_while_tokens_come_and_is_the_clips_own(page: Page) -> None:
    ask(page, EXAMPLE)
    expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)
    given = page.evaluate("given")
    assert given[0]["making"] == 1
    assert not given[0]["clip"], "the first sound comes before the clip"
    heard = np.concatenate([piece["samples"] for piece in given if not piece["clip"]])
    full = clip(page, "full")
    assert 0 < len(heard) <= len(full)
    assert abs(heard - full[: len(heard)]).max() <= 1
    assert {piece["rate"] for piece in given} == {8000}, "no seam is resampled"


def test_the_complete_clip_goes_on_where_the_pieces_are_and_the_next_reply_waits(
    page: Page,
) -> None:
    live, pcm = LivePieces(), np.zeros(3 * 8000, np.int16)
    show = "html => document.querySelector('#live').innerHTML = html"
    clip_of = """([policy, wav]) => {
      const clip = new Audio(`data:audio/wav;base64,${wav}`);
      clip.dataset.policy = policy;
      document.body.append(clip);
    }"""
    at = "p => document.querySelector(`audio[data-policy=${p}]`)?.currentTime"
    page.evaluate("now = 0")
    page.evaluate(show, live.add(Sounded("one", pcm[:16000], 8000)))
    page.evaluate("now = given[0].at + 0.6")
    wav = base64.b64encode(wav_bytes(pcm, 8000)).decode()
    page.evaluate(clip_of, ["one", wav])
    page.wait_for_function(f"({at})('one') > 0")
    assert page.evaluate(at, "one") > 0.59, "the clip does not begin again"
    page.evaluate(show, live.add(Sounded("two", pcm[:8000], 8000)))
    page.evaluate(clip_of, ["two", wav])
    page.wait_for_function(f"({at})('two') > 0")
    assert page.evaluate("document.querySelector('audio[data-policy=one]').ended")
    assert len(page.evaluate("given")) == 1, "the second's clip was there in time"


def test_whoever_does_not_want_it_hears_nothing(page: Page) -> None:
    page.get_by_label("Play each reply while it is made").uncheck()
    ask(page, "hello there")
    expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)
    assert page.evaluate("given") == []
    assert page.evaluate("[...document.querySelectorAll('audio')].every(a => a.paused)")


@pytest.mark.parametrize("press", ["pause", "other", "box", "stop"])
def test_a_press_of_ones_own_ends_it_for_this_run(page: Page, press: str) -> None:
    live, pcm = LivePieces(), np.zeros(4 * 8000, np.int16)
    show = "html => document.querySelector('#live').innerHTML = html"
    page.evaluate("now = 0")
    page.evaluate(show, live.add(Sounded("one", pcm, 8000)))
    page.wait_for_function("given.length === 1")
    match press:
        case "pause":
            page.locator("audio[data-policy=full]").evaluate(
                "a => { a.dataset.policy = 'one'; document.body.append(' '); }"
            )
            page.wait_for_function("plays.includes('one')")
            page.locator("audio[data-policy=one]").evaluate("a => a.pause()")
        case "other":
            page.locator("audio[data-policy=spark]").evaluate("a => a.play()")
            page.wait_for_function("plays.includes('spark')")
        case "box":
            page.get_by_label("Play each reply while it is made").uncheck()
        case "stop":
            page.locator("#stop").evaluate("b => { b.disabled = false; b.click(); }")
    plays = page.evaluate("plays")
    page.evaluate(show, live.add(Sounded("two", pcm, 8000)))
    page.wait_for_timeout(500)
    assert len(page.evaluate("given")) == 1
    assert page.evaluate("plays") == plays
    if press != "box":
        page.evaluate(show, LivePieces().add(Sounded("two", pcm, 8000)))  # another run
        page.wait_for_function("given.length === 2")


@pytest.mark.parametrize(("shown", "heard"), [((0, 5, 7), 8), ((0, 8), 1)])
def test_pieces_play_in_order_and_never_past_a_gap(
    page: Page, shown: tuple[int, ...], heard: int
) -> None:
    """A page that missed too many updates waits for the complete clip."""
    live, samples = LivePieces(), np.arange(8100, dtype=np.int16)
    pieces = np.split(samples, 9)
    updates = [live.add(Sounded("other", piece, 8000)) for piece in pieces]
    for number in shown:
        page.evaluate("html => document.querySelector('#live').innerHTML = html", updates[number])
        page.wait_for_timeout(200)
    given = page.evaluate("given")
    assert len(given) == heard
    played = np.concatenate([piece["samples"] for piece in given])
    assert played.tolist() == samples[: 900 * heard].tolist()
    for one, other in pairwise(given):
        assert other["at"] >= one["at"] + one["duration"] - 1e-9


def test_the_dial_by_keyboard_makes_a_lossless_reply(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^Settings")).click()
    words = page.locator("#dial-words [role=status]")
    expect(words).to_contain_text("Fast: every token drawn at an exit stands")
    dial = page.locator("#dial input[type=range]")
    dial.focus()
    page.keyboard.press("ArrowLeft")
    expect(words).to_contain_text("had it been 4.75 nats likelier")
    page.keyboard.press("Home")
    expect(words).to_contain_text("Lossless: full depth is asked")
    page.get_by_label("SPAR-K: exit layer").click()
    page.get_by_role("option", name="1", exact=True).click()
    ask(page, "hello there", seed=5)
    expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)
    settings = CompareSettings(seed=5, exit_layer=1, acceptance="exact")
    expected = compare(tiny_lm(), "hello there", settings, listen=False)
    trace, card = expected.replies[1].trace, page.locator(".sk-card").nth(1)
    assert trace.rejected
    expect(card).to_contain_text(f"{trace.verified - trace.corrected} of {trace.verified}")
    expect(card).to_contain_text(f"{len(trace.rejected)} steps taken back")
    expect(card).to_contain_text("every token")
    page.get_by_role("button", name=re.compile("^Every token")).click()
    expect(page.locator(".sk-tokens")).to_contain_text("Drafts taken back, by token:")
    expect(page.locator("#depth-plot")).to_contain_text("taken back")
    page.get_by_role("button", name="Copy link").click()
    address = page.locator("#address textarea, #address input")
    expect(address).to_have_value(re.compile("acceptance=exact"))
    page.goto(address.input_value())
    page.get_by_role("button", name=re.compile("^Settings")).click()
    expect(page.locator("#dial input[type=range]")).to_have_value("0")
    expect(words).to_contain_text("Lossless")


def test_the_drift_line_can_be_left_out(page: Page) -> None:
    plot, told = page.locator("#depth-plot"), page.locator("#drift")
    expect(plot).to_contain_text("Drift: distance of exits from full depth")
    expect(told).to_contain_text("the exit head and full depth share")
    page.get_by_label("drift line below").uncheck()
    expect(plot).not_to_contain_text("Drift: distance")
