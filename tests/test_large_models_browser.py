"""Large models on the page in Chromium: on their way, without a voice, too large, on loan."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, expect

import app
from listening_test.hosting import Studies
from spark import lent, models
from spark.compare import compare
from spark.models import ModelInfo
from spark.models.fits import TooLarge
from spark.models.loading import Progress, Watch
from spark.shelf import Shelf
from tests.browser import accessible, local_page
from tests.test_app_browser import DONE, EXAMPLE, RUN_MS, ask
from tests.tiny import tiny_lm

pytestmark = pytest.mark.browser
SILENCE = (
    "Step-Audio-2-mini's voice is not here (token2wav/flow.pt, token2wav/hift.pt, "
    "token2wav/speech_tokenizer_v2_25hz.onnx, token2wav/campplus.onnx): run `hf download "
    "stepfun-ai/Step-Audio-2-mini token2wav/flow.pt token2wav/hift.pt "
    "token2wav/speech_tokenizer_v2_25hz.onnx token2wav/campplus.onnx` and start again"
)
TOO_LARGE = (
    "GLM-4-Voice-9B needs 13.1 GiB on the GPU and 8.0 GiB are free: free the GPU of other "
    "programs, or use a larger one"
)
QUOTA = "You have 7s left vs. 42s requested. <b>Try</b> again in 2:00:00."
WIDTHS = pytest.mark.parametrize("width", [1280, 360])


@dataclass
class Lab:
    """A served app whose models and loans do what a test wants.

    Attributes:
        address: of the app.
        goes_on: set by the test once it has seen what the page tells.
        asked: seconds of each loan.
        refuse: why the next loan is refused; empty where it is not.
        late: whether loans end before their runs.
    """

    address: str = ""
    goes_on: threading.Event = field(default_factory=threading.Event)
    asked: list[float | None] = field(default_factory=list)
    refuse: str = ""
    late: bool = False

    def wait(self) -> None:
        assert self.goes_on.wait(60)
        self.goes_on.clear()

    def step(self, watch: Watch, doing: str) -> None:
        watch(Progress(doing, 3 * 10**9, 18 * 10**9))
        self.wait()

    def loan(self, asked: lent.Asked) -> Iterator[lent.Event]:
        """As the platform's, in this process."""
        self.asked.append(asked.seconds)
        self.wait()
        if self.refuse:
            raise gr.Error(self.refuse, title="ZeroGPU quota exceeded")
        # No clock decides: a busy machine would outlast what a real GPU needs.
        yield from lent.run(replace(asked, seconds=lent._MARGIN_S if self.late else 3600.0))


def a_model(name: str, title: str, **changes: object) -> object:
    return replace(tiny_lm(vocoder="silence" not in changes), name=name, title=title, **changes)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made, lm = Lab(), tiny_lm()

    def load(name: str, watch: Watch, **_: object) -> object:
        if name == "huge":
            raise TooLarge(TOO_LARGE)
        made.step(watch, "Loading Step-Audio-2-mini")
        return a_model(name, "Step-Audio-2-mini", silence=SILENCE)

    fetched = ModelInfo("big", "Step-Audio-2-mini", False, "not here", to_fetch=18 * 10**9)
    huge = ModelInfo("huge", "GLM-4-Voice-9B", True)
    gone = ModelInfo("gone", "Gone-9B", False, "its weights (19 GB) are not on this machine")
    shelf = Shelf(lm, [fetched, huge, gone], fetches=True)
    shelf.add(a_model("away", "On loan"))
    shelf._lent.add("away")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", load)
        patch.setattr(models, "fetch", lambda name, watch: made.step(watch, f"Fetching {name}"))
        patch.setattr(lent, "_on_loan", made.loan)
        demo = app.build(lm, Studies(), compare(lm, EXAMPLE, listen=False), shelf=shelf)
        _, address = app.launch(demo, Studies(), "127.0.0.1")
        made.address = address.rstrip("/")
        yield made
        demo.close(verbose=False)


def opened(page: Page, address: str) -> None:
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.goto(address)
    expect(page.locator("audio[data-policy=full]")).to_be_visible()
    page.get_by_role("button", name=re.compile("^Settings")).click()


def choose(page: Page, title: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=title).click()


def tells(page: Page, words: str, width: int) -> None:
    """The status line says it, whole and within the page."""
    expect(page.locator("#status")).to_contain_text(words)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    accessible(page, "#status")


def tells_beside_the_menu(page: Page, words: str, width: int) -> None:
    """Also where the choice was made: the status line may be far below."""
    expect(page.locator("#choice")).to_contain_text(words)
    expect(page.locator("#choice p")).to_be_in_viewport()
    tells(page, words, width)


@WIDTHS
def test_what_does_not_fit_and_what_is_not_here_is_said(
    browser: Browser, lab: Lab, width: int
) -> None:
    with local_page(browser, viewport={"width": width, "height": 900}) as page:
        opened(page, lab.address)
        choose(page, "GLM-4-Voice-9B")
        expect(page.locator("#status [role=alert]")).to_have_text(TOO_LARGE)
        tells_beside_the_menu(page, TOO_LARGE, width)
        choose(page, "Gone-9B (cannot run here)")
        gone = "Gone-9B cannot run here: its weights (19 GB) are not on this machine"
        tells_beside_the_menu(page, gone, width)
        ask(page, "hello there")  # the model that cannot run is still the one chosen
        tells(page, "cannot run here", width)
        expect(page.get_by_role("button", name="Generate all three")).to_be_enabled()


@WIDTHS
def test_a_loan_is_told_in_seconds_before_and_while_it_is_asked_for(
    browser: Browser, lab: Lab, width: int
) -> None:
    lab.asked.clear()
    with local_page(browser, viewport={"width": width, "height": 900}) as page:
        opened(page, lab.address)
        choose(page, "On loan")
        expect(page.locator("#model-facts")).to_contain_text("What a visitor has left Hugging Face")
        told = page.locator("#model-facts").inner_text()
        first = re.search(r"says so: (\d+) s for a short question", told)
        assert first
        ask(page, EXAMPLE)
        asking = page.locator("#status", has_text="Asking for a GPU for up to")
        expect(asking).to_be_visible()
        tells(page, "s of your minutes today", width)
        (asked,) = lab.asked
        assert asked is not None
        expect(asking).to_contain_text(f"up to {asked:.0f} s of your minutes")
        assert abs(asked - int(first[1])) < 2  # the words differ by some letters
        lab.goes_on.set()
        expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)


@WIDTHS
def test_a_refused_loan_and_one_that_ends_early_are_said(
    browser: Browser, lab: Lab, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_page(browser, viewport={"width": width, "height": 900}) as page:
        opened(page, lab.address)
        choose(page, "On loan")
        expect(page.locator("#status")).to_contain_text("Model: On loan.")
        monkeypatch.setattr(lab, "refuse", QUOTA)
        lab.goes_on.set()
        ask(page, "hello there")
        expect(page.locator("#status [role=alert]")).to_have_text(
            f"ZeroGPU quota exceeded: {QUOTA}"
        )
        tells(page, "You have 7s left", width)
        expect(page.get_by_role("button", name="Generate all three")).to_be_enabled()
        monkeypatch.undo()
        monkeypatch.setattr(lab, "late", True)
        lab.goes_on.set()
        page.get_by_role("button", name="Generate all three").click()
        tells(page, "The lent GPU's time was over before the run; what was there is kept.", width)
        expect(page.get_by_role("button", name="Generate all three")).to_be_enabled()


def test_a_first_use_is_followed_and_a_missing_voice_explained(browser: Browser, lab: Lab) -> None:
    """Last, since the model is there afterwards."""
    with local_page(browser, viewport={"width": 360, "height": 740}) as page:
        opened(page, lab.address)
        choose(page, "Step-Audio-2-mini (fetches 18 GB first)")
        tells_beside_the_menu(page, "Fetching big: 3.00 of 18.00 GB (16 %) ...", 360)
        lab.goes_on.set()
        tells_beside_the_menu(page, "Loading Step-Audio-2-mini: 3.00 of 18.00 GB (16 %)", 360)
        lab.goes_on.set()
        tells(page, f"Model: Step-Audio-2-mini. {SILENCE}", 360)
        expect(page.locator("#model-facts")).to_contain_text(f"none: {SILENCE}")
        expect(page.locator("#choice p")).to_have_count(0)
        expect(page.locator("#model input")).to_have_value("Step-Audio-2-mini")
        page.set_viewport_size({"width": 1280, "height": 900})
        tells(page, SILENCE, 1280)
        ask(page, EXAMPLE)
        expect(page.locator("#status")).to_contain_text(DONE, timeout=RUN_MS)
        expect(page.locator(".sk-card").first).to_contain_text("the model has no vocoder here")
        expect(page.locator(".sk-card audio")).to_have_count(0)
        expect(page.locator("#depth-plot .js-plotly-plot")).to_be_visible()
