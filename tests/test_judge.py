"""The judge: what its replies are worth, and an endpoint that is not always well."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spark import jsonl
from spark.evaluation import endpoint, judge, runner, scales, summary
from spark.evaluation.endpoint import Endpoint, EndpointError


class Judge(BaseHTTPRequestHandler):
    """Answers as the test has it say; keeps what it was sent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            status, said = server.script(len(server.seen), body)
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.wfile.write(text)

    def log_message(self, *told: Any) -> None:
        """Quiet."""


def said(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    made.seen, made.lock = [], threading.Lock()
    made.script = lambda number, body: (200, said("[Correct]"))
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def asked(server: Any, **changes: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"key": "secret", "first_wait_s": 0.01, **changes})


def line(item: str, policy: str, heard: str, family: str = "web_questions") -> dict[str, Any]:
    """A line as the runner writes it, with the fields that figures need."""
    return {
        "item_id": item, "family": family, "split": "test", "policy": policy, "prompt": "Where?",
        "expected": "Rome", "aliases": ["Rome", "Roma"], "text": f"{heard}!", "heard": heard,
        "correct_text": True, "correct_heard": "rome" in heard, "correct_heard_numbers": True,
        "wer": 0.0, "edits": 0, "words": 2, "text_edits": 0, "text_words": 1,
        "mos_predicted": 3.0, "mean_depth_speech": 14.0, "mean_depth_text": 14.0,
        "traffic_ratio": 1.0, "ms_per_token": 4.0, "finish": "stop",
    }  # fmt: skip


def folder_of(path: Path, lines: list[dict[str, Any]]) -> Path:
    jsonl.append(path / runner.ITEMS, lines)
    told = {
        "command": "c", "model": "m", "title": "M", "layers": 14, "suite": "web_questions",
        "limit": None, "settings": {"seed": 1}, "fixed_exit": None, "margin": 0.05, "torch": "2",
        "policies": list(dict.fromkeys(one["policy"] for one in lines)), "spoken": False,
        "recogniser": "pocketsphinx",
    }  # fmt: skip
    summary.ask(path, told, sorted({one["item_id"] for one in lines}))
    return path


@pytest.mark.parametrize(
    ("scale", "reply", "points"),
    [
        ("right", "It means Rome. [Correct]", 1),
        ("right", "[incorrect] since", 0),
        ("right", "[Correct] or [Incorrect]?", None),
        ("right", "correct", None),
        ("chat-10", "Fine. [[7]]", 7),
        ("chat-10", "[[3]] no, [[8.5]]", 8.5),
        ("chat-10", "[[11]]", None),
        ("chat-10", "[7]", None),
        ("chat-5", " 4\n", 4),
        ("chat-5", "Score 4", None),
        ("chat-5", "0", None),
        ("reasoning-5", "steps [1] and [2], so [0]", 0),
        ("reasoning-5", "[6]", None),
        ("chat-100", "[[100]]", 100),
        ("chat-100", "", None),
    ],
)
def test_what_a_judges_reply_is_worth(scale: str, reply: str, points: float | None) -> None:
    assert scales.SCALES[scale].read(reply) == points


def test_each_set_has_its_published_scale() -> None:
    families = {
        "alpaca_eval": "chat-10", "alpaca_eval_full": "chat-10", "reasoning_qa": "reasoning-5",
        "trivia_qa": "right", "factual": "right",
    }  # fmt: skip
    assert {name: scales.usual({"family": name}).name for name in families} == families


def test_the_judge_sees_answers_only_where_the_scale_says() -> None:
    of = line("a", "full", "in rome")
    (_, shown), (_, hidden) = (
        [part["content"] for part in scales.messages(scales.SCALES[name], of, "heard")]
        for name in ("right", "chat-5")
    )
    assert "Rome; Roma" in shown
    assert "in rome" in shown
    assert "Roma" not in hidden
    (_, text) = scales.messages(scales.SCALES["right"], of, "text")
    assert "in rome!" in text["content"]


def test_a_request_has_the_key_and_the_sampling(server: Any) -> None:
    reply = asked(server).reply([{"role": "user", "content": "?"}], 0.5, 0.95, 10)
    assert reply == "[Correct]"
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 0.5,
        "top_p": 0.95, "max_tokens": 10,
    }  # fmt: skip
    asked(server, key="").reply([], 0, 1, 1)
    assert "Authorization" not in server.seen[1][1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(server: Any, status: int) -> None:
    server.script = lambda number, body: (200, said("yes")) if number == 3 else (status, {})
    assert asked(server).reply([], 0, 1, 1) == "yes"
    assert len(server.seen) == 3


def test_what_does_not_pass_is_told(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = lambda number, body: (401, {"error": "bad key"})
    with pytest.raises(EndpointError, match=r"(?s)refused \(401.*check OPENAI_API_KEY.*bad key"):
        asked(server).reply([], 0, 1, 1)
    assert len(server.seen) == 1  # no second try
    server.script = lambda number, body: (503, {})
    with pytest.raises(EndpointError, match=r"did not answer in 5 tries.*503"):
        asked(server).reply([], 0, 1, 1)
    for answer in (b"<html>", {"choices": []}, []):
        server.script = lambda number, body, answer=answer: (200, answer)
        with pytest.raises(EndpointError, match=r"something else than JSON|holds no text"):
            asked(server).reply([], 0, 1, 1)
    monkeypatch.setattr(endpoint, "_TRIES", 1)
    with pytest.raises(EndpointError, match="did not answer"):
        Endpoint("http://127.0.0.1:9", "m").reply([], 0, 1, 1)


def test_the_environment_says_where_and_the_key_is_never_shown() -> None:
    of = Endpoint.of_environment
    assert of("m", {"OPENAI_API_KEY": "k"}).url == endpoint.PUBLIC
    own = of("m", {"OPENAI_BASE_URL": "http://localhost:8000/v1/"})
    assert (own.url, own.key) == ("http://localhost:8000/v1", "")
    assert "k3y" not in repr(of("m", {"OPENAI_API_KEY": "k3y"}))
    with pytest.raises(EndpointError, match="set OPENAI_API_KEY"):
        of("m", {})
    with pytest.raises(EndpointError, match="must begin with http"):
        of("m", {"OPENAI_BASE_URL": "file:///etc"})


def test_the_estimate_counts_samples_and_the_same_words_once() -> None:
    lines = [line(item, policy, "rome") for item in "ab" for policy in ("full", "spark")]
    lines.append(line("c", "full", "paris") | {"refused": "too long"})
    ((one, _),) = judge.questions(lines, "chat-5", "heard")  # one question, asked once
    assert len(one.lines) == 4
    estimate = judge.Estimate.of([one])
    assert estimate.requests == 3
    assert estimate.tokens_out == 3 * scales.SCALES["chat-5"].longest
    letters = sum(len(part["content"]) for part in one.asked)
    assert estimate.tokens_in == pytest.approx(3 * letters / 4, abs=3 * 25)
    cost = (estimate.tokens_in * 2 + estimate.tokens_out * 8) / 1e6
    assert f"about {cost:.2f}" in estimate.words(2, 8)
    assert "--price-in" in estimate.words(None, None)


def test_a_folder_is_judged_once_and_what_cannot_be_read_is_counted(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line("a", "full", "rome"), line("a", "spark", "rome"), line("b", "full", "paris"),
             line("b", "spark", "um")]  # fmt: skip
    folder = folder_of(tmp_path, lines)

    def script(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        told = body["messages"][1]["content"]
        if "rome" in told:
            return 200, said("[Correct]")
        return 200, said("[Incorrect]" if "paris" in told else "I cannot say.")

    server.script = script
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    command = [str(folder), "--judge", "m", "--parallel", "2"]
    assert judge.main(command) == 2  # nobody to say yes
    assert "3 requests" in capsys.readouterr().err
    assert not server.seen
    assert judge.main([*command, "--yes", "--price-in", "1", "--price-out", "1"]) == 0
    assert len(server.seen) == 3
    found = json.loads((folder / "summary.json").read_text())["policies"]
    name = "right, m, heard"
    assert found["full"]["judged"][name]["value"] == 0.5
    assert found["spark"]["judged"][name] == {
        "value": 1.0, "ci95": [1.0, 1.0], "n": 1, "invalid": 1,
    }  # fmt: skip
    assert "1 not readable" in (folder / "report.html").read_text()
    with (folder / summary.JUDGED).open("a") as file:
        file.write('{"torn')
    assert judge.main([*command, "--yes"]) == 0
    assert len(server.seen) == 3  # all were there
    assert judge.main([*command, "--yes", "--channel", "text"]) == 0
    assert len(server.seen) == 6  # other words
    assert "secret" not in (folder / summary.JUDGED).read_text()


def test_an_endpoint_that_fails_half_way_keeps_what_was_judged(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, [line(str(n), "full", f"rome {n}") for n in range(6)])
    server.script = lambda number, body: (200, said("[Correct]")) if number < 4 else (400, {})
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    command = [str(folder), "--judge", "m", "--parallel", "1", "--yes"]
    assert judge.main(command) == 2
    assert "What was judged is kept" in capsys.readouterr().err
    assert len(jsonl.read(folder / summary.JUDGED)) == 3
    server.script = lambda number, body: (200, said("[Correct]"))
    before = len(server.seen)
    assert judge.main(command) == 0
    assert len(server.seen) == before + 3
    assert len(jsonl.read(folder / summary.JUDGED)) == 6


def test_a_folder_without_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge.main([str(tmp_path), "--judge", "m"]) == 2
    assert "holds no replies" in capsys.readouterr().err
