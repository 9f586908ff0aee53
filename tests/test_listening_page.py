"""The rater's page in a real browser: by keyboard, on a phone, through reloads and outages."""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from listening_test.server import PAGE
from tests.browser import accessible, local_page
from tests.listening import SYSTEMS, prepared_study, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_study(tmp_path_factory.mktemp("page"), items=2, systems=SYSTEMS[:2])


@pytest.fixture(scope="module")
def url(study_dir: Path) -> Iterator[str]:
    with serving(study_dir) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with local_page(browser, viewport={"width": 1280, "height": 800}) as fresh:
        fresh.set_default_timeout(15_000)
        yield fresh


def begin(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="I agree").click()
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("heading", name=re.compile("^Practice (clip|page)$"))).to_be_visible()


def rate(page: Page, digit: str) -> None:
    page.keyboard.press("Space")
    expect(page.get_by_role("radio").first).to_be_enabled()
    page.keyboard.press(digit)
    page.keyboard.press("Enter")


def heading(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def stored(study_dir: Path) -> list[dict[str, str]]:
    with open(study_dir / "data" / "ratings.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_whole_session_by_keyboard_only(page: Page, url: str, study_dir: Path) -> None:
    before = len(stored(study_dir))
    page.goto(url)
    expect(page.get_by_role("button", name="I agree")).to_be_visible()
    # Consent, then the sound to set the volume by, then on: one Tab to each button, Enter.
    for name in ("I agree", "Play the sound", "Begin"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
        page.keyboard.press("Enter")
        if name == "Play the sound":
            expect(page.locator("#volume.playing")).to_be_visible()
    heading(page, "Practice clip")
    radios = page.get_by_role("radio")
    expect(radios).to_have_count(5)
    expect(radios.first).to_be_disabled()
    page.keyboard.press("5")  # too early: nothing is chosen
    expect(page.locator("input:checked[type=radio]")).to_have_count(0)
    rate(page, "3")
    for number, digit in enumerate("5142", 1):
        heading(page, f"Clip {number} of 4")
        expect(page.locator("input:checked[type=radio]")).to_have_count(0)
        expect(page.get_by_text("saved ✓")).to_be_visible()
        rate(page, digit)
    heading(page, "Thank you")
    code = page.locator("#code").inner_text()
    rows = stored(study_dir)[before:]
    assert [row["score"] for row in rows] == ["3", "5", "1", "4", "2"]
    assert [row["trial_type"] for row in rows] == ["practice"] + ["rating"] * 4
    assert [row["trial_index"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(float(row["listened_fraction"]) > 0.9 for row in rows)
    assert all(int(row["first_play_to_submit_ms"]) >= 450 for row in rows)
    assert len({row["session_id"] for row in rows}) == 1
    database = sqlite3.connect(study_dir / "data" / "ratings.sqlite3")
    known = database.execute(
        "SELECT completion_code FROM sessions WHERE session_id = ?", (rows[0]["session_id"],)
    ).fetchone()
    database.close()
    assert known == (code,)
    page.reload()
    heading(page, "Thank you")
    assert page.locator("#code").inner_text() == code


def test_arrow_keys_move_in_the_scale_and_shortcuts_can_be_turned_off(page: Page, url: str) -> None:
    begin(page, url)
    page.get_by_role("button", name="Play").click()
    scale = page.get_by_role("group", name="How natural does the speech sound?")
    expect(scale.get_by_role("radio").first).to_be_enabled()
    scale.get_by_role("radio", name="5 Excellent").focus()
    page.keyboard.press("ArrowDown")
    expect(scale.get_by_role("radio", name="4 Good")).to_be_checked()
    page.get_by_role("checkbox").uncheck()
    page.keyboard.press("1")
    expect(scale.get_by_role("radio", name="4 Good")).to_be_checked()


def test_digits_typed_in_a_comment_are_text(page: Page, url: str, study_dir: Path) -> None:
    begin(page, url)
    page.keyboard.press("Space")
    expect(page.get_by_role("radio").first).to_be_enabled()
    page.keyboard.press("2")
    page.get_by_text("Comment (optional)").click()
    page.get_by_label("What did you notice?").fill("")
    page.keyboard.type("5 clicks, then =SUM(1)")
    expect(page.get_by_role("radio", name="2 Poor")).to_be_checked()
    page.get_by_role("button", name="Next").click()
    heading(page, "Clip 1 of 4")
    assert stored(study_dir)[-1]["comment"] == "5 clicks, then =SUM(1)"
    expect(page.get_by_label("What did you notice?")).to_be_hidden()
    assert page.locator("#comment").input_value() == ""


def test_a_reload_comes_back_to_the_very_trial(page: Page, url: str) -> None:
    begin(page, url)
    rate(page, "4")
    heading(page, "Clip 1 of 4")
    rate(page, "4")
    heading(page, "Clip 2 of 4")
    source = page.locator("audio").get_attribute("src")
    page.reload()
    heading(page, "Clip 2 of 4")
    assert page.locator("audio").get_attribute("src") == source
    expect(page.get_by_role("radio").first).to_be_disabled()


def test_an_outage_is_told_and_the_same_rating_is_sent_again(
    page: Page, url: str, study_dir: Path
) -> None:
    begin(page, url)
    before = len(stored(study_dir))
    sent: list[Any] = []

    def lose_the_answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        if len(sent) == 1:
            route.abort()  # never arrives
        elif len(sent) == 2:
            route.fetch()  # arrives and is stored, but its answer is lost
            route.abort()
        else:
            route.continue_()

    page.route("**/rating", lose_the_answer)
    rate(page, "4")
    expect(page.get_by_role("alert")).to_contain_text("not saved yet")
    expect(page.get_by_role("alert")).to_contain_text("Keep this page open")
    expect(page.get_by_text("saved ✓")).to_have_count(0)
    heading(page, "Clip 1 of 4")
    expect(page.get_by_text("saved ✓")).to_be_visible()
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert len(stored(study_dir)) == before + 1


def test_a_rating_in_flight_survives_a_reload(page: Page, url: str, study_dir: Path) -> None:
    begin(page, url)
    before = len(stored(study_dir))
    page.route("**/rating", lambda route: route.abort())
    rate(page, "5")
    expect(page.get_by_role("alert")).to_be_visible()
    assert len(stored(study_dir)) == before
    page.unroute("**/rating")
    page.reload()
    heading(page, "Clip 1 of 4")
    (row,) = stored(study_dir)[before:]
    assert row["score"] == "5"


def test_a_second_tab_cannot_rate_the_same_clip_twice(
    page: Page, url: str, study_dir: Path
) -> None:
    begin(page, url)
    second = page.context.new_page()
    second.goto(url)
    heading(second, "Practice clip")
    before = len(stored(study_dir))
    rate(page, "4")
    heading(page, "Clip 1 of 4")
    rate(second, "1")  # it had loaded the clip, but the trial is done
    heading(second, "Clip 1 of 4")
    expect(second.get_by_role("alert")).to_have_text(
        "This clip was rated already, or is not up yet."
    )
    assert [row["score"] for row in stored(study_dir)[before:]] == ["4"]


def test_a_clip_that_does_not_load_is_told_and_can_be_played_later(page: Page, url: str) -> None:
    page.route("**/clip/*", lambda route: route.abort())
    begin(page, url)
    page.keyboard.press("Space")
    expect(page.get_by_role("alert")).to_contain_text("could not be played")
    expect(page.get_by_role("radio").first).to_be_disabled()
    page.unroute("**/clip/*")
    rate(page, "4")
    heading(page, "Clip 1 of 4")


def test_a_tab_whose_clip_was_rated_elsewhere_catches_up(page: Page, url: str) -> None:
    begin(page, url)
    late = page.context.new_page()
    late.route("**/clip/*", lambda route: route.abort())
    late.goto(url)
    heading(late, "Practice clip")
    rate(page, "4")
    heading(page, "Clip 1 of 4")
    late.keyboard.press("Space")
    heading(late, "Clip 1 of 4")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_at_any_step(browser: Browser, url: str, scheme: Any) -> None:
    size = {"width": 1280, "height": 800}
    with local_page(browser, color_scheme=scheme, viewport=size) as page:
        run_axe_through_a_session(page, url)


def run_axe_through_a_session(page: Page, url: str) -> None:
    def check(step: str) -> None:
        accessible(page, step=step)

    page.goto(url)
    expect(page.get_by_role("button", name="I agree")).to_be_visible()
    check("consent")
    page.get_by_role("button", name="I agree").click()
    check("instructions")
    page.get_by_role("button", name="Begin").click()
    heading(page, "Practice clip")
    check("practice")
    page.get_by_text("Comment (optional)").click()
    page.route("**/rating", lambda route: route.abort())
    page.locator("h1:visible").focus()
    rate(page, "4")
    expect(page.get_by_role("alert")).to_be_visible()
    check("not saved")
    page.unroute("**/rating")
    for number in range(1, 5):
        heading(page, f"Clip {number} of 4")
        if number == 1:  # the next ones are the same page
            check("clip")
        rate(page, "3")
    heading(page, "Thank you")
    check("thanks")


def test_a_phone_has_big_targets_and_no_sideways_scroll(browser: Browser, url: str) -> None:
    size = {"width": 360, "height": 740}
    with local_page(browser, viewport=size, has_touch=True) as page:
        rate_a_clip_by_touch(page, url)


def rate_a_clip_by_touch(page: Page, url: str) -> None:
    def fits() -> bool:
        return bool(page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"))

    page.goto(url)
    for name in ("I agree", "Begin"):
        expect(page.get_by_role("button", name=name)).to_be_visible()
        assert fits()
        page.get_by_role("button", name=name).tap()
    heading(page, "Practice clip")
    assert fits()
    targets = [*page.locator(".answers label").all(), page.get_by_role("button", name="Play")]
    for target in targets:
        box = target.bounding_box()
        assert box is not None
        assert box["height"] >= 44
        assert box["width"] >= 44
    page.get_by_role("button", name="Play").tap()
    expect(page.get_by_role("radio").first).to_be_enabled()
    page.get_by_text("Good", exact=True).tap()
    page.get_by_role("button", name="Next").tap()
    heading(page, "Clip 1 of 4")


def test_the_page_shows_no_length_and_no_player(page: Page, url: str) -> None:
    begin(page, url)
    page.keyboard.press("Space")
    expect(page.get_by_role("radio").first).to_be_enabled()
    assert page.locator("audio[controls], canvas, progress, svg, [type=range]").count() == 0
    text = page.locator("body").inner_text().lower()
    assert not [name for name in SYSTEMS if name in text]


def test_a_busy_device_that_notices_the_sound_late_loses_no_rating(
    page: Page, url: str, study_dir: Path
) -> None:
    page.add_init_script(
        """document.addEventListener("playing", () => {
          const end = performance.now() + 300;  // the sound runs on meanwhile
          while (performance.now() < end);
        }, true);"""
    )
    begin(page, url)
    before = len(stored(study_dir))
    rate(page, "4")
    heading(page, "Clip 1 of 4")
    (row,) = stored(study_dir)[before:]
    assert float(row["listened_fraction"]) > 0.9


def test_an_answer_refused_as_not_heard_is_kept_and_can_be_given_again(
    page: Page, url: str, study_dir: Path
) -> None:
    source = "() => document.querySelector('audio').src"  # the browser hides some media requests
    begin(page, url)
    first = page.evaluate(source)
    before = len(stored(study_dir))
    refusal = {"error": "not_heard", "message": "Please listen to the whole clip."}
    page.route("**/rating", lambda route: route.fulfill(status=409, json=refusal), times=1)
    page.keyboard.press("Space")
    expect(page.get_by_role("radio").first).to_be_enabled()
    page.get_by_text("Comment (optional)").click()
    page.get_by_label("What did you notice?").fill("a click")
    page.get_by_role("radio", name="2 Poor").check()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("alert")).to_contain_text("play the clip once more, to its end")
    heading(page, "Practice clip")
    expect(page.get_by_role("radio", name="2 Poor")).to_be_checked()
    expect(page.get_by_role("radio").first).to_be_disabled()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    # Loaded anew, so that the server's clock starts again.
    assert page.evaluate(source).startswith(f"{first}?again=")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Next")).to_be_enabled()
    page.get_by_role("button", name="Next").click()
    heading(page, "Clip 1 of 4")
    (row,) = stored(study_dir)[before:]
    assert (row["score"], row["comment"]) == ("2", "a click")


def test_the_scale_stays_shut_while_a_rating_is_on_its_way(page: Page, url: str) -> None:
    begin(page, url)
    page.route("**/rating", lambda route: None)  # never answered
    rate(page, "4")
    expect(page.get_by_text("saving …")).to_be_visible()
    page.get_by_role("button", name="Play").click()
    page.evaluate("() => new Promise((r) => document.querySelector('audio').onended = r)")
    expect(page.get_by_role("radio").first).to_be_disabled()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.unroute_all(behavior="ignoreErrors")


@pytest.mark.parametrize("how", ["silence", "a proxy's page"])
def test_only_an_answer_of_the_server_counts_as_saved(
    page: Page, url: str, study_dir: Path, how: str
) -> None:
    # Twenty seconds are long for a test: any wait of the page for an answer is cut to half one.
    page.add_init_script(
        "const wait = AbortSignal.timeout.bind(AbortSignal);"
        "AbortSignal.timeout = (ms) => { window.asked = ms; return wait(500); };"
    )
    begin(page, url)
    before = len(stored(study_dir))

    def astray(route: Route) -> None:
        if how != "silence":
            route.fulfill(status=200, body="<h1>Please log in</h1>")

    page.route("**/rating", astray, times=1)
    rate(page, "3")
    expect(page.get_by_role("alert")).to_contain_text("not saved yet")
    if how == "silence":
        expect(page.get_by_role("alert")).to_contain_text("does not answer in time")
    heading(page, "Clip 1 of 4")
    assert page.evaluate("window.asked") == 20_000
    assert len(stored(study_dir)) == before + 1


def methods_study(folder: Path, method: str, more: str = "") -> Path:
    practice = "{id: text-p}" if method in ("ccr", "ab", "abx", "mushra") else None
    extra = f"method: {method}\n{more}"
    return prepared_study(
        folder, items=2, systems=SYSTEMS[:2], extra=extra, practice=practice, seconds=0.42
    )


def hear_all(page: Page, players: int) -> None:
    buttons = page.locator("#clips .play")
    for number in range(players):
        page.keyboard.press("Space")
        expect(buttons.nth(number)).to_contain_text("✓" if players > 1 else "Play again")


@pytest.mark.parametrize(
    ("method", "players", "digits", "scores"),
    [
        ("dcr", 1, "2", ["2"]),
        ("ccr", 1, "1", ["3"]),
        ("ab", 2, "2", ["tie"]),
        ("abx", 3, "1", ["a"]),
        ("p835", 1, "314", ["3", "1", "4"]),
    ],
)
def test_every_scale_by_keyboard(
    page: Page, tmp_path: Path, method: str, players: int, digits: str, scores: list[str]
) -> None:
    more = f"reference: {SYSTEMS[1]}" if method == "dcr" else ""
    study_dir = methods_study(tmp_path, method, more)
    with serving(study_dir) as url:
        begin(page, url)
        hear_all(page, players)
        expect(page.get_by_role("radio").first).to_be_enabled()
        accessible(page)
        for digit in digits:
            expect(page.get_by_role("button", name="Next")).to_be_disabled()
            page.keyboard.press(digit)
        page.keyboard.press("Enter")
        heading(page, "Clip 1 of 4" if method == "p835" else "Page 1 of 2")
        rows = stored(study_dir)
        assert [row["choice"] or row["score"] for row in rows] == scores
        heard = [row["listened_fraction"] for row in rows]
        heard += [row["listened_fraction_b"] for row in rows if row["stimulus_b_id"]]
        assert all(float(fraction) > 0.9 for fraction in heard)


def test_one_press_plays_a_pair_in_turn_and_a_second_press_stops_it(
    page: Page, tmp_path: Path
) -> None:
    with serving(methods_study(tmp_path, "ccr")) as url:
        begin(page, url)
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Stop – First")).to_be_visible()
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        page.wait_for_timeout(1500)  # the second clip does not begin by itself now
        expect(page.get_by_role("radio").first).to_be_disabled()
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Stop – Second")).to_be_visible()
        expect(page.get_by_role("radio").first).to_be_enabled()
        page.get_by_text("Slightly better").click()
        page.get_by_role("button", name="Next").click()
        heading(page, "Page 1 of 2")


def test_sliders_count_only_once_they_were_moved_or_pressed(page: Page, tmp_path: Path) -> None:
    study_dir = methods_study(tmp_path, "mushra", f"reference: {SYSTEMS[0]}\nanchors: [3500]")
    with serving(study_dir) as url:
        begin(page, url)
        sliders = page.get_by_role("slider")
        expect(sliders).to_have_count(3)
        expect(page.get_by_role("button", name="Play – Reference")).to_be_visible()
        hear_all(page, 4)
        expect(sliders.first).to_be_enabled()
        accessible(page)
        following = page.get_by_role("button", name="Next")
        sliders.nth(0).focus()
        page.keyboard.press("ArrowRight")
        sliders.nth(1).focus()
        page.keyboard.press("Enter")  # at 50, where it stands
        expect(following).to_be_disabled()
        expect(page.get_by_text("not rated")).to_have_count(1)
        sliders.nth(2).click(position={"x": 4, "y": 20})
        expect(following).to_be_enabled()
        following.click()
        heading(page, "Page 1 of 2")
        scores = [int(row["score"]) for row in stored(study_dir)]
        assert scores[:2] == [51, 50]
        assert scores[2] < 10


@pytest.mark.parametrize(
    ("language", "direction", "play", "next_word"),
    [
        ("zh", "ltr", "播放", "下一步"),
        ("ar", "rtl", "تشغيل", "التالي"),
        ("fr", "ltr", "Play", "Next"),
    ],
)
def test_the_page_speaks_the_studys_language(
    page: Page, tmp_path: Path, language: str, direction: str, play: str, next_word: str
) -> None:
    with serving(methods_study(tmp_path, "acr", f"language: {language}")) as url:
        page.set_viewport_size({"width": 360, "height": 740})
        page.goto(url)
        page.locator("#agree").click()
        accessible(page)
        page.locator("#begin").click()
        expect(page.get_by_role("button", name=play)).to_be_visible()
        assert page.evaluate("document.documentElement.dir") == direction
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("Space")
        expect(page.get_by_role("radio").first).to_be_enabled()
        page.keyboard.press("4")
        expect(page.get_by_role("button", name=next_word)).to_be_enabled()
        accessible(page)


def test_every_language_says_everything_with_the_same_gaps() -> None:
    text = (PAGE / "strings.js").read_text(encoding="utf-8")
    tables = {
        name: dict(re.findall(r"^  (\w+): ((?:.|\n)*?),$", body, re.M))
        for name, body in re.findall(r"const (EN|ZH|AR) = \{\n(.*?)\n\};", text, re.S)
    }
    assert set(tables) == {"EN", "ZH", "AR"}
    assert len(tables["EN"]) > 40
    gaps = {
        name: {key: set(re.findall(r"\{\w+\}", said)) for key, said in table.items()}
        for name, table in tables.items()
    }
    assert gaps["EN"] == gaps["ZH"] == gaps["AR"]
