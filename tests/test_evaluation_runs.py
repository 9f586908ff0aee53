"""Where an evaluation's tasks run, and that nothing is lost when what runs them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from spark import pool
from spark.comparison import CompareSettings
from spark.evaluation import (
    executors,
    experiment,
    fingerprint,
    judge,
    listing,
    on_ray,
    report,
    runner,
    summary,
    tables,
)
from spark.evaluation.answering import Job, Task
from spark.evaluation.suite import Item
from tests.checkpoints import write_step
from tests.evaluated import evaluate
from tests.tiny import tiny_lm

TIMES = ("ms_per_token", "ms_per_text_token", "ms_per_speech_token")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that loads in a moment and talks for some tokens."""
    return write_step(tmp_path_factory.mktemp("models") / "step", layers=4)


def asked(model: Path, out: Path, **changes: Any) -> Job:
    settings = CompareSettings(max_tokens=24)
    words = ("full", "spark", "fixed:2")
    job = Job(str(model), settings, None, out, policies=words, options=(("device", "cpu"),))
    return replace(job, **changes)


def items(count: int) -> list[Item]:
    words = ("hello world", "the capital", "hello human", "the world", "the human", "hello")
    return [
        Item(f"i{n}", "factual", "test", words[n % len(words)], "the world", "world")
        for n in range(count)
    ]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in runner.read_lines(path / runner.ITEMS)
    ]


def finish(job: Job, of: Sequence[Item], **how: Any) -> list[dict[str, Any]]:
    for _ in runner.run(job, of, **how):
        pass
    return untimed(job.out)


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process makes of six items."""
    return finish(asked(model, tmp_path_factory.mktemp("alone")), items(6), workers=1)


def test_several_processes_give_the_lines_of_one(
    model: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert len(alone) == 18
    assert {line["policy"] for line in alone} == {"full", "spark", "fixed:2"}
    assert finish(asked(model, tmp_path), items(6), workers=2) == alone


@pytest.mark.parametrize("executor", executors.NAMES)
def test_the_model_is_let_go_where_workers_load_their_own(
    executor: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of a large one may not fit."""
    job, alive = asked(model, tmp_path), list[bool]()
    lm = job.load()
    watched = weakref.ref(lm)

    def elsewhere(*given: Any) -> Iterator[tuple[Task, list[dict[str, Any]]]]:
        alive.append(watched() is not None)
        yield from ()

    monkeypatch.setattr(pool, "results", elsewhere)
    monkeypatch.setattr(executors, "_on_ray", elsewhere)
    steps = runner.run(job, items(2), 2, executor, lm)
    del lm
    list(steps)
    assert alive == [False]


def test_progress_tells_what_was_there_before(model: Path, tmp_path: Path) -> None:
    finish(asked(model, tmp_path), items(2), workers=1)
    told = list(runner.run(asked(model, tmp_path), items(3), workers=1))
    half = told[0].total // 3  # items, and the teacher's items where it is installed
    assert told[0].total % 3 == 0
    assert [at.done for at in told] == [2 * half, *range(2 * half + 1, 3 * half + 1)]
    assert {at.before for at in told} == {2 * half}


def test_another_policy_is_added_and_nothing_made_again(
    model: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = asked(model, tmp_path, policies=("full",))
    finish(first, items(6), workers=1)
    before = (tmp_path / runner.ITEMS).read_text()
    assert finish(asked(model, tmp_path), items(6), workers=1) == alone
    assert (tmp_path / runner.ITEMS).read_text().startswith(before)
    assert len((tmp_path / runner.ITEMS).read_text().splitlines()) == 18


def test_other_weights_in_a_folder_are_another_run(model: Path, tmp_path: Path) -> None:
    other = write_step(tmp_path / "step", layers=4, seed=1)
    held = fingerprint.conditions(asked(model, tmp_path), items(1))
    wanted = fingerprint.conditions(asked(other, tmp_path), items(1))
    changed = fingerprint.differences(held, wanted | {"model": held["model"]})
    assert len(changed) == 1
    assert changed[0].startswith("other contents of model-00001-of-00003.safetensors")
    big = tmp_path / "big.safetensors"
    with big.open("wb") as file:
        file.truncate(100 << 20)
    empty = fingerprint._sampled_digest(big)
    with big.open("r+b") as file:
        file.seek((100 << 20) - 5)
        file.write(b"x")
    assert fingerprint._sampled_digest(big) != empty


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine for two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else they wait behind whatever else runs
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_workers_killed_on_ray_lose_nothing(
    model: Path, alone: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both die when one has ended a task, so the other in the midst of its own."""
    make, pids = on_ray._actors, list[int]()

    def watched(job: Job, most: int) -> list[Any]:
        actors = make(job, most)
        pids.extend(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors]))
        return actors

    monkeypatch.setattr(on_ray, "_actors", watched)
    before = 0
    for at in runner.run(asked(model, tmp_path), items(6), executor="ray"):
        if at.done > at.before and not before:
            before = at.done
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    assert len(set(pids)) == 2
    assert 0 < before < at.total
    assert untimed(tmp_path) == alone
    assert len((tmp_path / runner.ITEMS).read_text().splitlines()) == 18


@pytest.mark.usefixtures("cluster")
def test_ray_says_what_a_worker_could_not_load(tmp_path: Path) -> None:
    gone = asked(tmp_path / "gone", tmp_path)
    task = Task(tuple(items(1)), gone.policies, False)
    with pytest.raises(ValueError, match=r"(?s)worker on Ray failed.*there is no model"):
        list(executors.run("ray", tiny_lm(), gone, [task], None))


def command(model: Path, out: Path, workers: int = 1) -> list[str]:
    return [
        sys.executable, "-m", "spark.evaluation", "--model", str(model), "--device", "cpu",
        "--policies", "full,spark,fixed:2", "--max-tokens", "16", "--limit", "4",
        "--workers", str(workers), "--out", str(out),
    ]  # fmt: skip


def without_times(value: Any) -> Any:
    """The same without any figure that is a time."""
    if isinstance(value, dict):
        return {
            name: without_times(of) for name, of in value.items() if not name.startswith("ms_per")
        }
    return [without_times(of) for of in value] if isinstance(value, list) else value


def test_a_command_killed_half_way_ends_as_an_undisturbed_one(model: Path, tmp_path: Path) -> None:
    """kill -9 of the command and its workers, a torn last line, and the same command again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(model, whole), check=True, capture_output=True)
    lines = (whole / runner.ITEMS).read_text().splitlines()
    assert len(lines) == 12
    running = subprocess.Popen(
        command(model, killed, workers=2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    path = killed / runner.ITEMS
    while running.poll() is None and not (path.exists() and "\n" in path.read_text()):
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    found = path.read_text()
    held = found[: found.rindex("\n") + 1]  # the kill may have torn the line after it
    assert 0 < len(held.splitlines()) < 12
    assert not (killed / summary.SUMMARY).exists()
    with path.open("a") as file:
        file.write(lines[0][:50])
    subprocess.run(command(model, killed), check=True, capture_output=True)
    assert path.read_text().startswith(held)
    assert len(path.read_text().splitlines()) == 12
    assert untimed(killed) == untimed(whole)
    first, second = (
        json.loads((folder / summary.SUMMARY).read_text()) for folder in (whole, killed)
    )
    assert without_times(first) == without_times(second)
    assert first["policies"]["full"]["ms_per_token"] > 0


def test_what_nobody_could_hear_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without its vocoder's files: its words and cost count, and nothing is wrong for it.

    A reply without speech of a model with a voice is: it was there to be heard.
    """
    folder = evaluate(tiny_lm(vocoder=False), tmp_path / "mute")
    lines = [line for line in runner.read_lines(folder / runner.ITEMS) if "refused" not in line]
    for line in lines:
        assert line["heard"] is line["correct_heard"] is line["wer"] is line["edits"] is None
        assert line["correct_text"] in (True, False)
        assert line["traffic_ratio"] > 0
    found = json.loads((folder / summary.SUMMARY).read_text())
    for of in found["policies"].values():
        assert of["correct_heard"] is of["wer"] is of["mos_predicted"] is of["sets"] is None
        assert of["correct_text"]["n"] == 4
        assert not any(of.get("against_full", {}).values())
        assert of.get("non_inferior") is of.get("non_inferior_wer") is None
    rows = report.policy_rows(found)[:3]  # without the teacher, where it is installed
    assert [row[2:5] for row in rows] == [["not measured"] * 3] * 3
    assert tables.left_out({**found, "voice": False})[0].startswith("The model had no voice here")
    read = experiment.read(tmp_path, "mute")
    replies = [reply for row in read.rows for reply in row.replies if not reply.refused]
    assert {(reply.heard, reply.right_heard) for reply in replies} == {(None, None)}
    wordless = sum(not reply.text for reply in replies)
    assert listing.items_table(read.rows).count("<i>no words</i>") == wordless
    assert judge.main([str(folder), "--judge", "m", "--yes"]) == 2
    assert "--channel text judges the model's own words" in capsys.readouterr().err
    spoken = evaluate(tiny_lm(), tmp_path / "short", max_tokens=1)
    lines = [line for line in runner.read_lines(spoken / runner.ITEMS) if "refused" not in line]
    assert {line["correct_heard"] for line in lines} == {False}


def test_a_voice_that_was_fetched_later_begins_another_run(model: Path, tmp_path: Path) -> None:
    job = asked(model, tmp_path)
    finish(job, items(1), workers=1)
    results = [tmp_path / runner.ITEMS]
    fingerprint.claim(job, items(1), results, voice=False)
    with pytest.raises(ValueError, match="voice False, now True"):
        fingerprint.claim(job, items(1), results, voice=True)
