"""Requests per address: what passes, who is counted together, and what a refused rater sees."""

from __future__ import annotations

import logging
import time
from fractions import Fraction
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from listening_test import serve
from listening_test.addresses import (
    PROXIES_VARIABLE,
    SPACE_VARIABLE,
    trust_platform,
)
from listening_test.admin import server_alarms
from listening_test.export import exported_frame
from listening_test.hosting import Studies
from listening_test.limit import (
    BURST_S,
    DEFAULT_RATE,
    VARIABLE,
    WINDOW_S,
    BadLimit,
    Limiter,
    counted_as,
    limit_from,
)
from listening_test.server import attach
from tests.browser import chromium, local_page
from tests.listening import SYSTEMS, Rater, free_port, prepared_study, start_server
from tests.test_listening_page import heading, rate

SOMEBODY = "203.0.113.7"


class SlowBuckets:
    """The same limit as one would write it down: a bucket a host, filled up at each request."""

    def __init__(self, rate: int, burst_s: int) -> None:
        self.rate, self.size = rate, max(rate * burst_s, 1)
        self.held: dict[str, tuple[Fraction, Fraction]] = {}

    def wait(self, host: str, now: Fraction) -> Fraction:
        tokens, then = self.held.get(host, (Fraction(self.size), now))
        tokens = min(Fraction(self.size), tokens + (now - then) * self.rate)
        self.held[host] = (tokens - 1 if tokens >= 1 else tokens, now)
        return max(Fraction(0), (1 - tokens) / self.rate)


# Steps of 1/64 s and such rates are exact in binary too.
STEPS = st.lists(st.tuples(st.integers(0, 200), st.sampled_from("abc")), max_size=200)


@given(STEPS, st.sampled_from([1, 2, 8]), st.integers(0, 3))
def test_the_limit_is_a_token_bucket_for_each_address(
    steps: list[tuple[int, str]], rate: int, burst_s: int
) -> None:
    now = [0.0]
    limiter = Limiter(rate, burst_s, clock=lambda: now[0])
    slow = SlowBuckets(rate, burst_s)
    for ticks, host in steps:
        now[0] += ticks / 64
        expected = slow.wait(host, Fraction(now[0]))
        assert limiter.wait_s(host) == pytest.approx(float(expected), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 40)), max_size=150), st.integers(1, 10))
@settings(deadline=None)
def test_no_more_addresses_are_remembered_than_may_be(
    steps: list[tuple[float, int]], most: int
) -> None:
    now = [0.0]
    limiter = Limiter(4, 2, most=most, clock=lambda: now[0])
    for seconds, host in steps:
        now[0] += seconds
        limiter.wait_s(f"198.51.100.{host}")
        assert limiter.remembered <= most
    now[0] += 3  # all buckets are full again
    limiter.wait_s(SOMEBODY)
    assert limiter.remembered == 1


def test_a_lab_behind_one_address_is_not_slowed_down() -> None:
    """60 raters of a MUSHRA test of 8 clips, who all begin at once; Safari asks three times."""
    now = [0.0]
    limiter = Limiter(clock=lambda: now[0])
    for second in range(300):
        now[0] = float(second)
        asked = 60 * 10 if second == 0 else 60 * (8 * 3 + 2) // 40  # a page in 40 s
        assert not any(limiter.wait_s(SOMEBODY) for _ in range(asked))
    # One script at that address still cannot ask for everything.
    passed = sum(not limiter.wait_s(SOMEBODY) for _ in range(5000))
    assert passed <= BURST_S * DEFAULT_RATE
    assert limiter.wait_s("198.51.100.1") == 0


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("unknown", "unknown"),
        ("x" * 1000, "x" * 64),
        ("", ""),
        (None, None),
    ],
)
def test_who_is_counted_together(host: str | None, counted: str | None) -> None:
    assert counted_as(host) == counted


def test_this_machine_is_not_counted_and_nought_is_no_limit() -> None:
    limiter = Limiter(1, 1)
    assert not any(limiter.wait_s("127.0.0.1") for _ in range(2000))
    assert limiter.remembered == 0
    open_to_all = limit_from({VARIABLE: "0"})
    assert not any(open_to_all.wait_s(SOMEBODY) for _ in range(2000))
    assert limit_from({}).rate == DEFAULT_RATE
    assert limit_from({VARIABLE: " 2.5 "}).rate == 2.5


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf", "1e999"])
def test_a_limit_that_is_none_is_told(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadLimit, match="requests a second"):
        limit_from({VARIABLE: given})
    monkeypatch.setenv(VARIABLE, given)
    assert serve.main([str(tmp_path)]) == 2
    assert VARIABLE in capsys.readouterr().err


def test_refusals_are_counted_for_the_admin_page_and_a_flood_logs_a_line_in_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [600.0]
    limiter = Limiter(1, 1, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(101):
            limiter.wait_s(SOMEBODY)
        assert [record.getMessage() for record in caplog.records] == [
            "refused 1 requests: more than 1 a second from one address"
        ]
        now[0] += 10
        limiter.wait_s(SOMEBODY)
        limiter.wait_s(SOMEBODY)
    assert "refused 100 requests" in caplog.text
    assert SOMEBODY not in caplog.text
    assert limiter.refused == 101
    hosted = type(
        "Hosted",
        (),
        {"store": type("Store", (), {"csv_error": None, "save_error": None}), "copy": None},
    )
    (alarm,) = server_alarms(hosted, None, limiter)
    assert alarm.endswith(f"more than 1 a second: 101. If many raters share an address, set "
                          f"{VARIABLE} higher.")  # fmt: skip
    now[0] += WINDOW_S + 60
    assert limiter.refused == 0


def asking(study_dir: Path, peer: str, rate: float, trusted: str) -> tuple[TestClient, Studies]:
    """The raters' routes as uvicorn runs them behind proxies, for connections from `peer`."""
    studies = Studies(limiter=Limiter(rate, 2))
    studies.open(study_dir)
    app = FastAPI()
    attach(app, studies)
    wrapped = ProxyHeadersMiddleware(app, trusted_hosts=trusted)
    return TestClient(wrapped, client=(peer, 50000)), studies


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_study(
        tmp_path_factory.mktemp("limit"), items=2, systems=SYSTEMS[:2], seconds=0.42
    )


def statuses(client: TestClient, *forwarded: str) -> list[int]:
    """Of one request for each value of X-Forwarded-For; none where it is empty."""
    return [
        client.get(
            "/listen/small/study", headers={"X-Forwarded-For": value} if value else {}
        ).status_code
        for value in forwarded
    ]


def test_a_spaces_proxy_is_believed_and_what_a_client_writes_is_not(
    study_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {SPACE_VARIABLE: "someone/lab"}
    trust_platform(environment)
    client, studies = asking(study_dir, "10.16.3.80", 1, environment[PROXIES_VARIABLE])
    made_up = [f"192.0.2.{n}, {SOMEBODY}" for n in range(4)]
    assert statuses(client, *made_up) == [200, 200, 429, 429]
    # Another client of the same proxy, also by way of a second proxy of the platform's.
    assert statuses(client, "198.51.100.1", "9.9.9.9, 198.51.100.1, 10.1.2.3") == [200, 200]
    assert statuses(client, "198.51.100.1") == [429]
    assert SOMEBODY not in caplog.text
    studies.close()


def test_without_a_known_proxy_the_connection_is_counted(study_dir: Path) -> None:
    client, studies = asking(study_dir, SOMEBODY, 1, "127.0.0.1,::1")
    assert statuses(client, "192.0.2.1", "192.0.2.2", "", "192.0.2.3") == [200, 200, 429, 429]
    studies.close()


def test_whose_proxies_are_believed() -> None:
    lab: dict[str, str] = {}
    trust_platform(lab)
    assert lab == {}
    for set_to, kept in ((None, False), ("*", False), ("10.16.0.0/16", True)):
        space = {SPACE_VARIABLE: "someone/lab"} | ({PROXIES_VARIABLE: set_to} if set_to else {})
        trust_platform(space)
        assert (space[PROXIES_VARIABLE] == set_to) is kept


def test_a_refused_rating_is_stored_when_it_is_sent_again(
    study_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, studies = asking(study_dir, SOMEBODY, 4, "127.0.0.1")
    rater = Rater(client)
    state = rater.start()
    rater.fetch(state)
    time.sleep(0.51)
    body = rater.body(state, 4)
    while client.get("/listen/small/study").status_code == 200:
        pass
    reply = rater.post("rating", body)
    assert reply.status_code == 429
    told = reply.json()
    assert told["error"] == "too_many"
    assert "tries again by itself" in told["message"]
    assert reply.headers["retry-after"] in told["message"]
    assert reply.headers["cache-control"] == "no-store"
    assert body["rating_id"] not in set(exported_frame(study_dir)[0]["rating_id"])
    assert "refused" in caplog.text
    # The page and its scripts come all the same: they say what is going on.
    assert client.get("/listen/small").status_code == 200
    assert client.get("/listen/small/net.js").status_code == 200
    time.sleep(float(reply.headers["retry-after"]))
    assert rater.post("rating", body).json()["saved"] == body["rating_id"]
    assert rater.post("rating", body).json()["saved"] == body["rating_id"]  # a third time: no twin
    assert (exported_frame(study_dir)[0]["rating_id"] == body["rating_id"]).sum() == 1
    studies.close()


@pytest.mark.browser
def test_a_rater_who_is_refused_is_told_so_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local proxy says that the browser stands elsewhere; it may make 20 requests at once."""
    monkeypatch.setenv(VARIABLE, "1")
    study = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42)
    port = free_port()
    server = start_server(study, port)
    url = f"http://127.0.0.1:{port}/listen/small"
    try:
        with (
            chromium() as browser,
            local_page(browser, extra_http_headers={"X-Forwarded-For": SOMEBODY}) as page,
        ):
            page.set_default_timeout(20_000)
            page.goto(url)
            page.get_by_role("button", name="I agree").click()
            page.get_by_role("button", name="Begin").click()
            heading(page, "Practice clip")
            rate(page, "3")
            heading(page, "Clip 1 of 4")
            page.keyboard.press("Space")
            expect(page.get_by_role("radio").first).to_be_enabled()
            page.evaluate(
                "async () => { while ((await fetch('study')).status !== 429) { /* again */ } }"
            )
            # Until the rating is refused: else a slow machine sends it when there is room again.
            page.evaluate(
                "() => { window.more = true; for (let i = 0; i < 4; i++) (async () => {"
                " while (window.more) await fetch('study') })() }"
            )
            page.keyboard.press("4")
            page.keyboard.press("Enter")
            told = "Too many requests come from your network at once. Keep this page open"
            expect(page.get_by_role("alert")).to_contain_text(told)
            page.evaluate("() => { window.more = false }")
            heading(page, "Clip 2 of 4")  # by itself
            page.evaluate(
                "async () => { while ((await fetch('study')).status !== 429) { /* again */ } }"
            )
            page.reload()
            expect(page.locator("#wait-text")).to_contain_text("Too many requests")
            heading(page, "Clip 2 of 4")
    finally:
        server.terminate()
        server.wait(20)
    kept, _ = exported_frame(study)
    assert list(kept["score"]) == [3, 4]
