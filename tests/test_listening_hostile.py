"""Whatever a script sends to the raters' routes: a stored rating, or a refusal with a sentence.

Never a crash, never a trace, nothing stored of what was refused, every refusal logged.
"""

from __future__ import annotations

import csv
import json
import re
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test.bodies import MAX_BODY
from tests.listening import SYSTEMS, Rater, free_port, prepared_study, start_server
from tests.site import KINDS, Site, refused_well, served


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from served(tmp_path_factory.mktemp("study"), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from served(tmp_path_factory.mktemp("plain"), "acr")


TEXTS = st.sampled_from(
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r", "\x00", "\x1b[31m", "\u202e", "\ud800", "../..",
     "..\\..\\key", "/etc/passwd", "key/stimuli.csv", "C:\\con", "{x}", "%s%n", "<script>", "'",
     '";DROP TABLE ratings;--', "x" * 2000, "\U0001f600", "", " ", "NaN", "null"]
) | st.text(max_size=20)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"),
     float("inf"), float("-inf")]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def spoiled(draw: Any, keys: list[str]) -> Any:
    """What to do to a body: values by key (None in place of one: leave it out), and to its text."""
    names = draw(st.lists(st.sampled_from([*keys, "system", "answers", "a" * 5000]), max_size=3))
    changes = {name: draw(st.just("drop") | VALUES) for name in names}
    if not changes and "comment" in keys:  # the one field that takes any text
        changes["comment"] = draw(TEXTS)
    how = draw(
        st.sampled_from(
            ["", "", "", "cut", "double", "deep", "huge", "endless", "utf-16", "bom", "latin-1"]
        )
    )
    return changes, how, draw(st.integers(1, 400))


def spoil(body: dict[str, Any], changes: dict[str, Any], how: str, n: int) -> bytes:
    """The bytes of a body that was tampered with."""
    body = {**body, **changes}
    text = json.dumps({name: value for name, value in body.items() if value != "drop"})
    if how == "cut":
        return text.encode()[:-n]
    if how == "double":
        text = '{"trial_index": 77, "consent": false, ' + text[1:]
    if how == "deep":
        text = text[:-1] + ', "x": ' + "[" * (30 * n) + "]" * (30 * n) + "}"
    if how == "huge":
        text = text.replace(": 1", ": 1e999")
    if how == "endless":
        text = text[:-1] + ', "comment": "' + "y" * 10**6 + '"}'
    if how == "bom":
        return b"\xef\xbb\xbf" + text.encode()
    return text.encode(how if how in ("latin-1", "utf-16") else "utf-8")


def safe_cells(path: Path) -> None:
    """No cell of the CSV runs in a spreadsheet, none holds a control character."""
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                assert not re.match(r"[=+\-@\t\r]", text), (name, text)
                assert text.isprintable() or {c for c in text if not c.isprintable()} <= {
                    "\u200c", "\u200d"
                }, (name, text)  # fmt: skip


RATING = ["rating_id", "trial_index", "clips", "answers", "rt_ms", "first_play_to_submit_ms",
          "hidden_ms", "changed_n", "comment", "client_utc", "ui_lang", "receipt"]  # fmt: skip


def valid_answers(site: Site, state: dict[str, Any]) -> list[Any]:
    if state["state"] == "environment":
        return [1]
    questions = site.hosted.study.questions
    if not questions[0].options:
        return [50] * (len(state["clips"]) - 1)
    return [question.options[0][0] for question in questions]


@given(spoiled(RATING))
def test_a_rating_that_was_tampered_with_is_stored_whole_or_not_at_all(
    site: Site, how: Any
) -> None:
    rater = Rater(site.client)
    state = rater.start()
    if state["state"] == "questionnaire":
        state = rater.post("questionnaire", {"answers": {}}).json()
    listened = site.hear(rater, state)
    body = rater.body(state, *valid_answers(site, state), listened_ms=listened)
    before = site.kept()
    site.log.clear()
    reply = site.client.post(
        "/listen/small/rating", content=spoil(body, *how), headers=rater.headers
    )
    after = site.kept()
    if reply.status_code != 200:
        refused_well(reply, site.log)
        assert after == before
        return
    told = uuid.UUID(reply.json()["saved"])
    if state["state"] == "environment":
        assert len(after["screens"]) == len(before["screens"]) + 1
    else:
        new = after["ratings"][len(before["ratings"]) :]
        assert len(new) == len(body["answers"])
        assert new[0]["rating_id"] == str(told)
        assert {row["trial_index"] for row in new} == {str(state["trial_index"])} or {
            row["trial_index"] for row in new
        } == {state["trial_index"]}
    assert site.hosted.store.settle(10)
    safe_cells(site.hosted.store.csv_path)


@given(st.data())
def test_any_other_body_is_refused_or_understood(site: Site, data: Any) -> None:
    path, body = data.draw(
        st.sampled_from([
            ("session", {"consent": True, "ids": {"PROLIFIC_PID": "5"}, "ticket": None}),
            ("questionnaire", {"answers": {"age": "under 40", "ears": "good"}}),
            ("withdraw", {"confirmed": True}),
            ("volume", {}),
        ])
    )  # fmt: skip
    rater = Rater(site.client)
    if path != "session":
        rater.start()
    before = site.kept()
    site.log.clear()
    content = spoil(body, *data.draw(spoiled([*body, "ids", "ticket", "confirmed"])))
    reply = site.client.post(f"/listen/small/{path}", content=content, headers=rater.headers)
    if reply.status_code != 200:
        refused_well(reply, site.log)
        assert site.kept() == before
    else:
        assert path in ("session", "questionnaire", "withdraw", "volume")
        assert reply.json().keys() & {"state", "withdrawn"}


SEGMENTS = TEXTS | st.sampled_from(["small", "clip", "rating", "study", "page.js", "..", "."])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
HEADERS = st.dictionaries(
    st.sampled_from(["X-Session", "X-Safe", "Range", "Content-Type", "Content-Encoding", "Accept"]),
    st.sampled_from(["", "x", "9" * 40, "-1", "bytes=", "bytes=-", "bytes=-0", "bytes=1-0",
                     "bytes=0-0,5-9", "bytes=0-" + "9" * 30, "bytes=" + "9" * 12 + "-",
                     "lines=1-2", "bytes=a-b", "text/csv", "gzip", "../key", "\xff\xfe", "'" * 300])
    | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    max_size=4,
)  # fmt: skip


def of_a_study(parts: list[str]) -> bool:
    """Whether an address of these parts is the raters' at all."""
    return parts != [""] and "\n" not in "".join(parts)


@settings(max_examples=300)
@given(
    METHODS,
    st.lists(SEGMENTS, min_size=1, max_size=4).filter(of_a_study),
    HEADERS,
    st.booleans(),
)
def test_any_address_asked_in_any_way_is_answered(
    plain: Site, method: str, parts: list[str], headers: dict[str, str], known: bool
) -> None:
    quoted = [quote(part.encode("utf-8", "replace"), safe="") for part in ["small"] * known + parts]
    address = "/listen/" + "/".join(quoted).replace(".", "%2E")  # or httpx would resolve the dots
    sent = {name: value.strip().encode("latin-1") for name, value in headers.items()}
    plain.log.clear()
    before = plain.kept()
    reply = plain.client.request(method, address, headers=sent)
    assert plain.kept() == before  # no session is known here
    if reply.status_code in (200, 206, 307):
        return
    if reply.headers["content-type"].startswith("text/plain"):
        assert (reply.status_code, plain.log[0][:8]) == (404, "refused ")
    elif method != "HEAD":
        refused_well(reply, plain.log)


RANGES = st.from_regex(r"bytes=[0-9]{0,13}-[0-9]{0,13}(,[0-9]{0,4}-[0-9]{0,4})?", fullmatch=True)


@given(RANGES)
def test_any_range_gives_the_bytes_it_names_or_a_refusal(plain: Site, asked: str) -> None:
    rater = Rater(plain.client)
    path = f"/listen/small/clip/{rater.start()['clips'][0]}"
    whole = plain.client.get(path).content
    plain.log.clear()
    reply = plain.client.get(path, headers={"Range": asked})
    if reply.status_code == 416:
        refused_well(reply, plain.log)
        assert reply.headers["content-range"] == f"bytes */{len(whole)}"
    elif reply.status_code == 206:
        first, last = re.fullmatch(
            rf"bytes (\d+)-(\d+)/{len(whole)}", reply.headers["content-range"]
        ).groups()  # type: ignore[union-attr]
        assert reply.content == whole[int(first) : int(last) + 1]
    else:
        assert (reply.status_code, reply.content) == (200, whole)
        assert "," in asked or asked == "bytes=-" or len(asked) > 18


def test_cut_off_and_malformed_requests_on_the_wire_harm_nobody(tmp_path: Path) -> None:
    study_dir, port = prepared_study(tmp_path, items=2, systems=SYSTEMS[:2]), free_port()
    log = tmp_path / "log"
    with open(log, "wb") as file:
        process = start_server(study_dir, port, stderr=file)
        base = f"http://127.0.0.1:{port}/listen/small"
        with httpx.Client() as client:
            rater = Rater(client, base)
            state = rater.start()
            head = f"Host: x\r\nX-Session: {rater.headers['X-Session']}\r\n"
            body = json.dumps(rater.body(state, 3)).encode()
            for raw in wire(head, body):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
                    line.sendall(raw)
                    line.shutdown(socket.SHUT_WR)
                    answer = b""
                    while more := line.recv(65536):
                        answer += more
                assert re.match(rb"HTTP/1\.1 4\d\d |$", answer), (raw[:80], answer[:200])
            assert rater.trial() == state
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text(encoding="utf-8", errors="replace")
    assert len((study_dir / "data" / "ratings.csv").read_text(encoding="utf-8").splitlines()) == 1


def wire(head: str, body: bytes) -> list[bytes]:
    """Requests that no client library sends."""
    post = f"POST /listen/small/rating HTTP/1.1\r\n{head}".encode()
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
        post + b"Content-Length: 5000\r\n\r\n" + body,  # ends too early
        post + f"Content-Length: {len(body) // 2}\r\n\r\n".encode() + body[: len(body) // 2],
        post + b"Content-Length: -1\r\n\r\n" + body,
        post + b"Content-Length: 0\r\n\r\n",
        chunked + b"ffffffffffff\r\n" + body,
        chunked + b"zz\r\n" + body,
        chunked + b"400\r\n" + b"x" * 0x400 + b"\r\n" * 1 + b"4000\r\n" + b"x" * 0x4000,
        post + b"Content-Length: 90000\r\n\r\n" + b"x" * (MAX_BODY + 1),
        b"GET /listen/small/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /listen/small/clip/%00%ff%0a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /listen/small/trial HTTP/1.1\r\nHost: x\r\nX-Session: \xff\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # as if it were TLS
    ]
