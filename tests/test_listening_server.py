"""The raters' API: what is refused, how sound is served, and that nothing tells the system."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from listening_test.bodies import MAX_BODY
from listening_test.hosting import Studies
from listening_test.server import attach
from tests.listening import SYSTEMS, Rater, prepared_study


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def client(study_dir: Path) -> Iterator[TestClient]:
    studies = Studies()
    studies.open(study_dir)
    studies.announce("soon", "Later")
    studies.announce("broken", "Never")
    studies.fail("broken", "/secret/path/zebrafish is missing")
    app = FastAPI()

    @app.get("/{anything:path}")
    def catch_all(anything: str) -> PlainTextResponse:
        return PlainTextResponse("the app's own page")

    attach(app, studies)
    with TestClient(app) as test_client:
        yield test_client
    studies.close()


@pytest.fixture
def rater(client: TestClient) -> Rater:
    return Rater(client)


def ratings(study_dir: Path) -> str:
    return (study_dir / "data" / "ratings.csv").read_text(encoding="utf-8")


def heard(rater: Rater, state: dict[str, Any]) -> bytes:
    data = rater.fetch(state)
    time.sleep(0.51)
    return data


def test_routes_come_before_a_catch_all(client: TestClient) -> None:
    assert "the app's own page" in client.get("/elsewhere").text
    assert "<title>Listening test</title>" in client.get("/listen/small").text


def test_a_session_over_http(client: TestClient, rater: Rater, study_dir: Path) -> None:
    state = rater.start()
    assert rater.start() == state  # asked again, as after a lost answer
    heard(rater, state)
    body = rater.body(state, 4, comment="=cmd()")
    reply = rater.post("rating", body)
    assert reply.json()["saved"] == body["rating_id"]
    assert rater.post("rating", body).json() == reply.json()
    assert ratings(study_dir).count(body["rating_id"]) == 1
    assert '"\'=cmd()"' in ratings(study_dir)
    assert rater.trial() == reply.json()["next"]


def test_what_is_out_of_turn_is_refused_with_a_reason(
    client: TestClient, rater: Rater, study_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, other = rater.start(), Rater(client)
    theirs = other.start()
    heard(other, theirs)
    before = ratings(study_dir)
    cases = [
        (rater.body(state, 3), 409, "not_heard"),
        (rater.body({**state, "clips": theirs["clips"]}, 3), 403, "foreign_clip"),
        (rater.body({**state, "trial_index": 2}, 3), 409, "out_of_order"),
        (rater.body(state, 6), 422, "bad_request"),
        (rater.body(state, 0), 422, "bad_request"),
        ({**rater.body(state, 3), "answers": ["3"]}, 422, "bad_request"),
        ({**rater.body(state, 3), "answers": [True]}, 422, "bad_request"),
        ({**rater.body(state, 3), "answers": [3.5]}, 422, "bad_request"),
        ({**rater.body(state, 3), "rating_id": "../../x"}, 422, "bad_request"),
        ({**rater.body(state, 3), "comment": "x" * 1001}, 422, "bad_request"),
        ({**rater.body(state, 3), "comment": "x" * 10**6}, 413, "too_large"),
        ({**rater.body(state, 3), "system": "full"}, 422, "bad_request"),
        ([1], 422, "bad_request"),
    ]
    for body, status, code in cases:
        reply = rater.post("rating", body)
        assert (reply.status_code, reply.json()["error"]) == (status, code), body
        assert reply.json()["message"].endswith(".")
        assert len(reply.content) < MAX_BODY
        assert caplog.messages[-1] == f"refused POST '/listen/small/rating': {code}"
    reply = client.post("/listen/small/rating", content=b"{not json", headers=rater.headers)
    assert reply.json()["error"] == "bad_request"
    reply = client.post("/listen/small/rating", json=rater.body(state, 3))
    assert (reply.status_code, reply.json()["error"]) == (401, "no_session")
    stranger = {"X-Session": uuid.uuid4().hex}
    reply = client.post("/listen/small/rating", json=rater.body(state, 3), headers=stranger)
    assert (reply.status_code, reply.json()["error"]) == (401, "no_session")
    assert ratings(study_dir) == before


def test_no_session_without_consent_or_a_proper_key(client: TestClient, rater: Rater) -> None:
    assert rater.post("session", {"consent": False}).json()["error"] == "no_consent"
    assert rater.post("session", {}).json()["error"] == "bad_request"
    reply = client.post("/listen/small/session", json={"consent": True}, headers={"X-Session": "1"})
    assert reply.json()["error"] == "no_session"


def test_odd_text_is_stored_safely(client: TestClient, rater: Rater, study_dir: Path) -> None:
    state = rater.start()
    heard(rater, state)
    text = json.dumps(rater.body(state, 2, comment="a@b")).replace("@", "\\u0000\\ud800")
    reply = client.post("/listen/small/rating", content=text.encode(), headers=rater.headers)
    # Half a surrogate pair is no text: refused with a sentence, and never a crash.
    assert (reply.status_code, reply.json()["error"]) == (422, "bad_request")
    text = text.replace("\\ud800", "\\n\u4f60")
    assert client.post("/listen/small/rating", content=text.encode(), headers=rater.headers).json()[
        "saved"
    ]
    assert '"a \u4f60b"' in ratings(study_dir)


def test_sound_that_is_refused_is_logged_as_other_refusals_are(
    client: TestClient, rater: Rater, caplog: pytest.LogCaptureFixture
) -> None:
    token = rater.start()["clips"][0]
    assert client.get(f"/listen/small/clip/{token}").status_code == 200
    assert caplog.messages == []
    for path, code in [
        ("small/clip/guessed", "no_clip"),
        (f"soon/clip/{token}", "preparing"),
        (f"none/clip/{token}", "no_study"),
        ("broken/volume", "failed"),
    ]:
        reply = client.get(f"/listen/{path}")
        assert reply.json()["error"] == code
        assert caplog.messages[-1] == f"refused GET '/listen/{path}': {code}"


def test_sound_is_served_without_a_trace(client: TestClient, rater: Rater) -> None:
    state = rater.start()
    path = f"/listen/small/clip/{state['clips'][0]}"
    whole = client.get(path)
    names = {name.lower() for name in whole.headers}
    assert names == {
        "cache-control", "x-content-type-options", "accept-ranges", "content-length",
        "content-type",
    }  # fmt: skip
    assert whole.headers["cache-control"] == "no-store"
    size = len(whole.content)
    for asked, status, first, last in [
        ("bytes=0-1", 206, 0, 1),
        ("bytes=100-", 206, 100, size - 1),
        ("bytes=-10", 206, size - 10, size - 1),
        (f"bytes=0-{size * 2}", 206, 0, size - 1),
    ]:
        part = client.get(path, headers={"Range": asked})
        assert part.status_code == status
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.content == whole.content[first : last + 1]
    assert client.get(path, headers={"Range": f"bytes={size}-"}).status_code == 416
    assert client.get(path, headers={"Range": "bytes=9-2"}).status_code == 416
    assert client.get(path, headers={"Range": "lines=1-2"}).content == whole.content
    for token in ("nothing", "..%5ckey", state["clips"][0][:-1]):
        assert client.get(f"/listen/small/clip/{token}").status_code == 404


def test_two_raters_get_different_tokens_for_the_same_clip(client: TestClient) -> None:
    one, two = Rater(client), Rater(client)
    first, second = one.start(), two.start()
    assert first["clips"] != second["clips"]
    assert one.fetch(first) == two.fetch(second)  # the same practice clip


def test_nothing_a_rater_gets_tells_the_system(client: TestClient, study_dir: Path) -> None:
    """Every address, header and byte of a whole session is searched for names and ids."""
    rater = Rater(client)
    key = (study_dir / "key" / "stimuli.csv").read_text(encoding="utf-8")
    stimulus_ids = [line.split(",")[0].strip('"') for line in key.splitlines()[1:]]
    secrets = [*SYSTEMS, *stimulus_ids, "text-0", "text-1", "stimuli.csv", "zebra"]
    seen = []

    def note(response: Any) -> Any:
        seen.append(str(response.url) + repr(response.headers) + response.content.decode("latin-1"))
        return response

    for path in ("", "/page.css", "/page.js", "/study"):
        assert note(client.get(f"/listen/small{path}")).status_code == 200
    state = note(rater.post("session", {"consent": True})).json()
    while state["state"] != "done":
        assert set(state) == {"state", "trial_index", "number", "total", "clips"}
        clip = note(client.get(f"/listen/small/clip/{state['clips'][0]}"))
        assert clip.content[36:40] == b"data"
        time.sleep(0.51)
        state = note(rater.post("rating", rater.body(state, 3))).json()["next"]
    assert len(seen) == 4 + 1 + 2 * 10
    text = "\n".join(seen).lower()
    assert [secret for secret in secrets if secret.lower() in text] == []


@pytest.mark.parametrize("path", ["small//trial", "small//", "small//clip/x", "/trial", "/"])
def test_an_address_with_an_empty_part_is_refused_and_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    reply = client.get(f"/listen/{path}", headers={"X-Session": "k" * 24})
    assert (reply.status_code, reply.headers["cache-control"]) == (404, "no-store")
    assert "refused GET" in caplog.text


def test_a_study_that_is_not_open_says_so_and_tells_no_more(client: TestClient) -> None:
    assert client.get("/listen/soon").status_code == 200  # the page waits by itself
    reply = client.get("/listen/soon/study")
    assert (reply.status_code, reply.json()["error"]) == (503, "preparing")
    reply = client.get("/listen/broken/study")
    assert (reply.status_code, reply.json()["error"]) == (503, "failed")
    assert "zebrafish" not in reply.text
    assert client.get("/listen/none").status_code == 404
    assert client.get("/listen/none/study").json()["error"] == "no_study"


def test_a_disk_that_fails_is_told_and_the_retry_counts_once(
    client: TestClient, rater: Rater, study_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from listening_test import trials

    state = rater.start()
    heard(rater, state)
    body = rater.body(state, 5)
    whole = trials._insert

    def failing(db: Any, row: Any) -> None:
        whole(db, row)
        db.execute("INSERT INTO no_such_table VALUES (1)")

    monkeypatch.setattr(trials, "_insert", failing)
    reply = rater.post("rating", body)
    assert (reply.status_code, reply.json()["error"]) == (503, "not_saved")
    assert "Keep this page open" in reply.json()["message"]
    assert body["rating_id"] not in ratings(study_dir)
    monkeypatch.setattr(trials, "_insert", whole)
    assert rater.post("rating", body).status_code == 200
    assert ratings(study_dir).count(body["rating_id"]) == 1
