"""Every method from its study file to its analysis: trials, rules, rows, and what stays hidden."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test import analyse as command
from listening_test.export import export, exported_frame
from listening_test.hosting import Studies
from listening_test.levelling import StimulusError
from listening_test.methods import LAYOUTS
from listening_test.prepared import Check, load_prepared
from listening_test.server import attach
from listening_test.session_plan import session_trials
from listening_test.stimuli import prepare
from listening_test.study import StudyError, load_study
from tests.listening import RATE, SYSTEMS, Rater, made, prepared_study, tone_bursts, write_study

BOTH = "{id: text-p}"
# Enough of each method's study file to be a study of three systems.
FILES = {
    "acr": ("method: acr", None),
    "p835": ("method: p835", None),
    "dcr": (f"method: dcr\nreference: {SYSTEMS[1]}", None),
    "ccr": ("method: ccr\nnull_pairs: 1", BOTH),
    "ab": ("method: ab", BOTH),
    "abx": ("method: abx", BOTH),
    "mushra": (f"method: mushra\nreference: {SYSTEMS[0]}\nanchors: [3500]", BOTH),
}


def study_of(folder: Path, method: str, items: int = 3, more: str = "") -> Path:
    extra, practice = FILES[method]
    return prepared_study(
        folder, items=items, seconds=0.42, extra=f"{extra}\n{more}", practice=practice
    )


@contextmanager
def served(study_dir: Path) -> Iterator[TestClient]:
    studies = Studies()
    studies.open(study_dir)
    app = FastAPI()
    attach(app, studies)
    with TestClient(app) as client:
        yield client
    studies.close()


def answers_to(shown: dict[str, Any], clips: int, value: int) -> list[Any]:
    """One possible answer to each question, or to each clip but the open reference."""
    if not shown["questions"][0]["options"]:
        return [10 * value] * (clips - 1)
    return [
        question["options"][value % len(question["options"])][0] for question in shown["questions"]
    ]


def take(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, number: int = 0, step: int = 1
) -> list[Any]:
    """One whole session; clips are heard in no time, since the server's clock is moved."""
    rater = Rater(client)
    shown = client.get("/listen/small/study").json()
    state = rater.start()
    bodies = []
    while state["state"] != "done":
        rater.fetch(state)
        with monkeypatch.context() as patched:
            later = time.time() + 3
            patched.setattr("time.time", lambda later=later: later)
            given = answers_to(shown, len(state["clips"]), number + step * len(bodies))
            body = rater.body(state, *given, listened_ms=440)
            reply = rater.post("rating", body)
        assert reply.status_code == 200, reply.text
        bodies.append(body)
        state = reply.json()["next"]
    return bodies


@pytest.mark.parametrize("method", list(FILES))
def test_each_method_goes_from_its_file_to_its_analysis(
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study_dir = study_of(tmp_path, method)
    with served(study_dir) as client:
        for number in range(4):
            bodies = take(client, monkeypatch, number)
    export(study_dir, tmp_path / "out")
    frame, study = exported_frame(study_dir)
    rated = frame[frame["trial_type"].isin(("rating", "null_pair"))]
    per_trial = {"p835": 3, "mushra": 4}.get(method, 1)
    expected = study.conditions * 3 * per_trial + (1 if method == "ccr" else 0)
    assert len(rated) == 4 * expected
    assert len(bodies) == 1 + (expected // per_trial if method != "ccr" else expected)
    assert set(rated["dimension"]) == {q.dimension for q in study.questions}
    assert rated["label_shown"].notna().all()
    assert frame["rating_id"].is_unique
    assert command.main([str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == len(rated)
    assert result["methods"] == [method]
    names = set(SYSTEMS)
    if method in ("acr", "p835"):
        assert set(result["systems"]) == names
    elif method == "mushra":
        assert set(result["systems"]) == names
        assert set(result["anchors"]) == {"anchor-3500"}
    elif method == "dcr":
        assert set(result["systems"]) == names - {SYSTEMS[1]}
        assert set(rated["system_b"]) == {SYSTEMS[1]}
    elif method == "ccr":
        assert len(result["pairs"]) == 3
        assert result["null_pair_bias"] is not None
        apart = rated[rated["system"] != rated["system_b"]]
        assert (apart["score_signed"].abs() == apart["score"].abs()).all()
    elif method == "ab":
        assert len(result["preferences"]) == 3
        assert set(result["bradley_terry"]) == names
    else:
        assert result["identification"]["n"] == len(rated)


@pytest.mark.parametrize("method", list(FILES))
def test_nothing_of_a_method_tells_the_system(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_dir = study_of(tmp_path, method)
    key = (study_dir / "key" / "stimuli.csv").read_text(encoding="utf-8")
    secrets = [line.split(",")[0].strip('"') for line in key.splitlines()[1:]]
    secrets += [*SYSTEMS, "text-0", "anchor", "expected", "rating_type", '"answer"', "tolerance"]
    with served(study_dir) as client:
        rater = Rater(client)
        seen = client.get("/listen/small/study").text
        state = rater.start()
        seen += json.dumps(state)
        assert set(state) == {"state", "trial_index", "number", "total", "clips"}
        assert len(set(state["clips"])) == len(state["clips"])
        for token in state["clips"]:
            seen += repr(client.get(f"/listen/small/clip/{token}").headers)
    assert [secret for secret in secrets if secret.lower() in seen.lower()] == []


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(["ccr", "ab", "abx"]),
    items=st.integers(4, 9),
    arms=st.integers(2, 4),
    seed=st.integers(0, 999),
)
def test_both_orders_of_a_pair_are_heard_equally_often(
    method: str, items: int, arms: int, seed: int
) -> None:
    per_rater = 3
    study = made(method, items, arms, per_rater, seed)
    # After this many rows each text was heard four times by four raters.
    rows = 4 * items // per_rater if 4 * items % per_rater == 0 else 4 * items
    orders = Counter(trial.clips for row in range(rows) for trial in session_trials(study, row))
    assert len(set(orders.values())) == 1
    pairs = {frozenset(clips[:2]) for clips in orders}
    assert len(pairs) == items * arms * (arms - 1) // 2
    variants = Counter(frozenset(clips[:2]) for clips in orders)
    assert set(variants.values()) == {4 if method == "abx" else 2}


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(list(LAYOUTS)), seed=st.integers(0, 999), row=st.integers(0, 60),
    repeats=st.integers(0, 3),
)  # fmt: skip
def test_extras_lie_between_and_never_beside_their_own_text(
    method: str, seed: int, row: int, repeats: int
) -> None:
    wanted = max(len(LAYOUTS[method].names), 1)
    checks = tuple(
        Check(kind, (f"c{n}",) * wanted, 3, 0) for n, kind in enumerate(("trap", "gold"))
    )
    study = made(
        method, 8, 3, 8, seed, repeats=repeats,
        checks=() if method in ("abx", "mushra") else checks,
        null_pairs=2 if LAYOUTS[method].conditions == "pair" else 0,
    )  # fmt: skip
    order = session_trials(study, row)
    assert len(order) == study.trials_per_session
    kinds = Counter(trial.trial_type for trial in order)
    assert kinds["repeat"] == repeats
    assert kinds["trap"] == kinds["gold"] == (method not in ("abx", "mushra"))
    assert kinds["null_pair"] == study.null_pairs
    assert order[0].trial_type == "rating"
    assert all(one.item_id != two.item_id for one, two in pairwise(order))
    heard = [trial.clips for trial in order]
    for place, trial in enumerate(order):
        if trial.trial_type == "repeat":
            assert heard.index(trial.clips) < place - 1
            assert place >= len(order) // 3
    assert order == session_trials(study, row)


def test_checks_are_judged_by_the_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    for name in ("trap", "gold"):
        soundfile.write(tmp_path / "source" / f"{name}.wav", tone_bursts(7, 0.42), RATE)
    more = (
        "traps: [{id: say-two, files: [trap.wav], answer: 2}]\n"
        "gold: [{id: clean, files: [gold.wav], answer: 5, tolerance: 1}]\nrepeats: 1"
    )
    study_dir = study_of(tmp_path, "acr", more=more)
    with served(study_dir) as client:
        for number in range(5):  # five raters, each of whom always gives the same answer
            take(client, monkeypatch, number, step=0)
    frame, _ = exported_frame(study_dir)
    assert Counter(frame["trial_type"])["repeat"] == 5
    for kind, passes in (("trap", {2}), ("gold", {4, 5})):
        rows = frame[frame["trial_type"] == kind]
        assert len(rows) == 5
        assert (rows["check_passed"] == rows["score"].isin(passes).astype(int)).all()
        assert rows["check_passed"].nunique() == 2
        assert rows["system"].isna().all()
    export(study_dir, tmp_path / "out")
    assert command.main([str(tmp_path / "out"), "--json"]) == 0
    design = load_prepared(study_dir)
    assert {check.answer for check in design.checks} == {2, 5}


@pytest.mark.parametrize(
    ("method", "clips", "seconds"),
    [
        # Clips of a second and one between; 4 s an answer; 6 texts of 3 systems.
        ("acr", 1, 18 * (2 + 4)), ("p835", 1, 18 * (2 + 3 * 4)), ("dcr", 2, 12 * (2 * 2 + 4)),
        ("ccr", 2, 18 * (2 * 2 + 4)), ("abx", 3, 18 * (3 * 2 + 4)),
        ("mushra", 4, 6 * (4 * 2 + 3 * 4)),
    ],
)  # fmt: skip
def test_raters_are_told_a_time_that_counts_every_clip_and_answer(
    method: str, clips: int, seconds: int
) -> None:
    study = made(method, 6, 3, 6, 1)
    assert (study.clips_per_trial, study.minutes) == (clips, round(seconds / 60))


def test_answers_that_do_not_fit_the_method_are_refused(tmp_path: Path) -> None:
    for method, wrong in {
        "p835": [[3], [3, 3, 3, 3], [3, 3, 6]],
        "ccr": [[4], [-4], ["a"]],
        "ab": [[1], ["c"], ["a", "b"]],
        "mushra": [[50], [50, 50, 50, 101], [50, 50, 50, "x"]],
    }.items():
        with served(study_of(tmp_path / method, method)) as client:
            rater = Rater(client)
            state = rater.start()
            for given in wrong:
                reply = rater.post("rating", rater.body(state, *given))
                assert reply.json()["error"] == "bad_request", (method, given)
                assert reply.json()["message"].endswith(".")


def test_every_clip_of_a_trial_must_be_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late enough for both clips to have been heard, so that each case fails for its own reason."""
    cases: list[tuple[Callable[[list[Any]], list[Any]], str]] = [
        (lambda clips: clips[:1], "foreign_clip"),
        (lambda clips: clips[::-1], "foreign_clip"),
        (lambda clips: [clips[0], clips[0]], "foreign_clip"),
        (lambda clips: [clips[0], {**clips[1], "listened_ms": 0}], "not_heard"),
        (lambda clips: [{**clips[0], "listened_ms": 0}, clips[1]], "not_heard"),
    ]
    with served(study_of(tmp_path, "ab")) as client:
        rater = Rater(client)
        state = rater.start()
        rater.fetch(state)
        body = rater.body(state, "a", listened_ms=440)
        later = time.time() + 3
        monkeypatch.setattr("time.time", lambda: later)
        for change, code in cases:
            reply = rater.post("rating", {**body, "clips": change(body["clips"])})
            assert reply.json()["error"] == code
        assert rater.post("rating", body).status_code == 200
        one = rater.trial()
        client.get(f"/listen/small/clip/{one['clips'][0]}")  # the second was never asked for
        reply = rater.post("rating", rater.body(one, "a", listened_ms=440))
        assert reply.json()["error"] == "not_heard"


def test_the_same_sound_under_both_is_a_null_pair(tmp_path: Path) -> None:
    path = write_study(tmp_path / "source", extra="method: ab", practice=BOTH)
    samples, _ = soundfile.read(tmp_path / "source" / SYSTEMS[0] / "text-1.wav")
    soundfile.write(tmp_path / "source" / SYSTEMS[1] / "text-1.wav", samples, RATE)
    prepare(load_study(path), tmp_path / "study")
    kinds = [
        (trial.item_id, trial.trial_type)
        for trial in session_trials(load_prepared(tmp_path / "study"), 0)
    ]
    assert kinds.count(("text-1", "null_pair")) == 1
    assert kinds.count(("text-1", "rating")) == 2
    assert Counter(kind for _, kind in kinds)["null_pair"] == 1


@pytest.mark.parametrize(
    ("extra", "practice", "says"),
    [
        ("method: dcr", None, "name the system, `reference:`"),
        (f"method: ab\nreference: {SYSTEMS[0]}", BOTH, "has no reference"),
        ("method: dcr\nreference: nobody", None, "is not one of"),
        (f"method: mushra\nreference: {SYSTEMS[0]}\nanchors: [3500, 3500]", BOTH, "listed twice"),
        ("null_pairs: 1", None, "null_pairs belong"),
        ("method: ab", None, "takes all systems"),
        ("", BOTH, "needs a `system:`"),
        ("method: p835\nquestion: How?", None, "asks 3 questions"),
        ("labels: [a, b]", None, "labels must be 5, not 2"),
        ("method: mushra", BOTH, "name the system, `reference:`"),
        ("traps: [{id: t, files: [a.wav], answer: 9}]", None, "none of 5, 4, 3, 2, 1"),
        ("traps: [{id: t, files: [a.wav, b.wav], answer: 2}]", None, "a trial has 1 clips"),
        ("traps: [{id: text-1, files: [a.wav], answer: 2}]", None, "two of items, practice"),
        ("repeats: 9", None, "at most half"),
        ("method: sing", None, "method"),
    ],
)
def test_what_a_method_cannot_have_is_told(
    tmp_path: Path, extra: str, practice: str | None, says: str
) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml line \d+") as caught:
        load_study(write_study(tmp_path, extra=extra, practice=practice))
    assert says in str(caught.value)


def test_a_system_cannot_have_an_anchors_name_and_may_be_called_na(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "method: mushra\nreference: NA\nanchors: [3500]"
    path = write_study(tmp_path / "bad", systems=("NA", "anchor-3500"), extra=extra, practice=BOTH)
    with pytest.raises(StudyError, match="anchor-3500 has the name of an anchor"):
        load_study(path)
    study_dir = prepared_study(
        tmp_path / "good", systems=("NA", "nan"), seconds=0.42, extra=extra, practice=BOTH
    )
    with served(study_dir) as client:
        take(client, monkeypatch)
    frame, _ = exported_frame(study_dir)
    assert set(frame["system"]) == {"NA", "nan", "anchor-3500"}


def test_a_check_without_its_file_is_told(tmp_path: Path) -> None:
    path = write_study(tmp_path, extra="traps: [{id: t, files: [none.wav], answer: 2}]")
    with pytest.raises(StimulusError, match=r"none\.wav \(check t\): missing"):
        prepare(load_study(path), tmp_path / "out")
