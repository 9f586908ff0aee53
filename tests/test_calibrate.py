"""A whole calibration on the tiny model, killed and resumed; the confirmation; the page."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from spark import jsonl, schedule_file
from spark.calibrate import __main__ as command
from spark.calibrate import calibration, confirm, page, prompts, report, trials
from spark.calibrate.front import Limits, tried
from spark.calibrate.trials import FULL
from spark.engine import Engine
from spark.metrics import mos, wer
from spark.modality import Modality
from spark.positions import parse
from spark.schedule_file import ScheduleFile
from tests.browser import accessible, chromium, local_page
from tests.tiny import tiny_lm

AMOUNTS = (
    "--sweep=16 --candidates=2 --finalists=1 --trials=16 --finals=16 --workers=1 --max-tokens=40 "
    "--min-saving=0.2"
)
LM = tiny_lm(0, layers=6)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, and ears that need no second a reply: they hear by what was said."""
    for module in (command, confirm):
        monkeypatch.setattr(module, "load", lambda name, **_: LM)
    monkeypatch.setattr(wer, "transcribe", lambda pcm, rate: f"{len(pcm) % 7} is here")
    monkeypatch.setattr(mos, "predict", lambda pcm, rate: 3 + float(pcm[5] % 10) / 10)


def calibrate(out: Path, *more: str) -> int:
    return command.main(["--model", "tiny", "--out", str(out), *AMOUNTS.split(), *more])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration's folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        assert calibrate(folder) in (0, 1)
    return folder


@pytest.fixture
def done(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written to."""
    return Path(shutil.copytree(made, tmp_path / "done"))


def test_a_calibration_leaves_a_schedule_and_says_how(done: Path, capsys) -> None:
    held = json.loads((done / "calibration.json").read_text())
    assert len(held["schedules"]) == 3  # two candidates and Triple
    finalist = held["schedules"][0]
    assert (finalist["n"], held["chosen"]) == (32, finalist["notation"])
    assert held["reference"] in {row["notation"] for row in held["schedules"]}
    assert held["command"].startswith("python -m spark.calibrate --model tiny --seed 1")
    file = schedule_file.read(done / "schedule.json")
    assert file.schedule(LM).notation == held["chosen"]
    assert file.measured["saving"] == finalist["saving"] >= 0.2
    assert file.provenance["command"] == held["command"]


def test_figures_are_those_of_the_replies(done: Path) -> None:
    """Replies made alone give the depths and words of those made in a batch by the calibration."""
    held = json.loads((done / "calibration.json").read_text())
    setting = trials.Setting(**{**held["setting"], "sampling": LM.sampling})
    items, name = prompts.draw("trial", 32, 1), held["chosen"]
    lines = {
        x["item_id"]: x for x in trials.read_lines(done / "trials.jsonl") if x["policy"] == name
    }
    policy = parse(name)
    assert policy is not None
    depths = []
    for item in items:
        engine = Engine(LM)
        start = engine.prefill(LM.encode_prompt(item.prompt))
        sampling = trials.replace(LM.sampling, seed=trials.seed_of(setting, item))
        reply = engine.generate(start, policy, sampling, 40)
        for _ in reply:
            pass
        assert lines[item.item_id]["text"] == LM.decode_text(reply.trace.text_ids())
        depths += [reply.trace.mean_depth(Modality.SPEECH)]
    depths = [depth for depth in depths if depth is not None]  # some replies hold no speech
    assert held["schedules"][0]["saving"] == pytest.approx(1 - sum(depths) / len(depths) / 6)


def test_killed_and_resumed_gives_the_same(done: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed in the sweep's replies, in the first round and among the finalists."""
    out, real = tmp_path / "again", jsonl.append
    for at in (0, 2, 4):
        left = iter(range(at))

        def dying(path: Path, lines: list, left=left) -> None:
            real(path, lines)
            if next(left, None) is None:
                path.write_bytes(path.read_bytes()[:-5])  # a torn last line
                raise KeyboardInterrupt

        monkeypatch.setattr(jsonl, "append", dying)
        assert calibrate(out) == 130
    monkeypatch.setattr(jsonl, "append", real)
    calibrate(out)
    for name in ("calibration.json", "schedule.json", "sweep.json"):
        assert (out / name).read_text() == (done / name).read_text()


def test_another_calibration_does_not_mix_in(done: Path, capsys) -> None:
    assert calibrate(done, "--seed", "2") == 2
    assert "begun otherwise (setting)" in capsys.readouterr().err
    (done / "sweep.json").write_text("{")
    assert calibrate(done) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err


def test_what_cannot_be_asked_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    assert calibrate(tmp_path / "a", "--candidates", "0") == 2
    assert calibrate(tmp_path / "b", "--max-wer-gain", "0") == 2
    assert calibrate(tmp_path / "c", "--min-saving", "0.95") == 2
    said = capsys.readouterr().err
    assert "candidates must be above 0" in said
    assert "the limit of wer gain must be above 0" in said
    assert "no schedule saves 95 %" in said
    monkeypatch.setattr(command, "load", lambda name, **_: tiny_lm(vocoder=False))
    assert calibrate(tmp_path / "d") == 2
    assert "has no sound here" in capsys.readouterr().err


@pytest.fixture
def timed(tmp_path: Path, monkeypatch) -> calibration.Calibration:
    """Of ten minutes on two processes, where one alone takes half a second a reply."""
    monkeypatch.setattr(calibration.Calibration, "_seconds_a_reply", lambda self: 0.5)
    setting = trials.Setting("tiny", "fitted", LM.sampling, 40)
    return calibration.Calibration(LM, report.Wanted(setting, Limits(), 10.0, workers=2), tmp_path)


def test_minutes_become_numbers_of_prompts_that_stay(timed, monkeypatch) -> None:
    plan = timed._planned(9)
    # 2,328 replies in what ten minutes on two cores leave: half for ten schedules, half for four.
    assert (plan.trials, plan.finals) == (112, 288)
    monkeypatch.setattr(calibration.Calibration, "_seconds_a_reply", lambda self: 5.0)
    assert timed._planned(9) == plan
    assert timed._settled(plan, None) == plan  # of an earlier process, whose time is not known


def test_a_second_round_gets_what_the_first_one_left(timed) -> None:
    plan = timed._planned(9)
    timed._begun -= 400  # seconds that the first round took: 182 of 582 are left
    settled = timed._settled(plan, 0.75)  # 485 replies of two processes, for four schedules
    assert (settled.trials, settled.finals) == (plan.trials, 112)
    assert timed._planned(9) == settled
    asked = calibration.Calibration(LM, replace(timed._wanted, finals=64), timed._out)
    assert asked._settled(asked._planned(9), 0.75).finals == 64


def lines_of(policy: str, right: float, edits: int, n: int = 1500) -> list[dict]:
    """n replies, a share `right` of them heard right."""
    return [
        {
            "item_id": f"x{i:04d}", "policy": policy, "family": "factual",
            "correct_heard": (i * 7919) % n < right * n, "correct_text": True, "edits": edits,
            "words": 100, "mos_predicted": 3.0, "traffic_ratio": 1.0,
            "mean_depth_speech": 14.0 if policy == FULL else 10.5,
        }
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "edits", "n", "found"),
    [
        (0.70, 20, 1500, (True, True)),
        (0.60, 20, 1500, (False, True)),
        (0.70, 25, 1500, (True, False)),
        (0.69, 20, 100, (False, True)),
    ],
)
def test_the_verdict(right: float, edits: int, n: int, found: tuple[bool, bool]) -> None:
    lines = lines_of(FULL, 0.7, 20, n) + lines_of("f-7", right, edits, n)
    ours, base = ([x for x in lines if x["policy"] == name] for name in ("f-7", FULL))
    said = confirm.verdict(tried(lines, "f-7", Limits()), base, ours, 0.02)
    kept = said["non_inferior"]
    assert (kept["accuracy"], kept["wer"]) == found
    assert kept["both"] is all(found)
    assert said["accuracy"]["value"] == pytest.approx(right - 0.7, abs=0.011)
    assert said["wer"]["value"] == pytest.approx((edits - 20) / 100)
    assert said["inferior"] == {"accuracy": right < 0.65, "wer": edits > 22}
    words = said["words"]
    assert words.startswith("f-7 saves 25.0 % of speech depth")
    assert words.endswith("Confirmed." if all(found) and "Not" not in words else "Not confirmed.")
    assert ("not decided" in words) is (n == 100)


def test_the_confirmation_is_asked_once_of_fresh_prompts(done: Path, capsys, monkeypatch) -> None:
    asked = ["confirm", str(done), "--prompts", "48", "--workers", "1"]
    real, left = jsonl.append, iter(range(2))

    def dying(path: Path, lines: list) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(path, lines)

    monkeypatch.setattr(jsonl, "append", dying)
    assert command.main(asked) == 130
    monkeypatch.setattr(jsonl, "append", real)
    assert command.main(asked) in (0, 1)
    held = json.loads((done / "confirmation.json").read_text())
    assert capsys.readouterr().out.strip() == held["words"]
    fresh = {line["prompt"] for line in trials.read_lines(done / "confirmation.jsonl")}
    used = {line["prompt"] for line in trials.read_lines(done / "trials.jsonl")}
    assert len(fresh) == 48
    assert not fresh & used
    assert command.main([*asked[:2], "--prompts", "64", "--workers", "1"]) == 2
    assert "begun otherwise (prompts)" in capsys.readouterr().err


def test_a_schedule_by_hand_cannot_be_confirmed(tmp_path: Path, capsys) -> None:
    schedule = parse("f-3-2-1")
    assert schedule is not None
    ScheduleFile.of(LM, schedule).write(tmp_path / "schedule.json")
    assert command.main(["confirm", str(tmp_path)]) == 2
    assert "does not say how its replies were made" in capsys.readouterr().err
    assert command.main(["confirm", str(tmp_path / "nowhere")]) == 2
    assert command.main(["confirm", str(tmp_path), "--margin", "2"]) == 2


@pytest.mark.browser
def test_the_page_stands_alone_and_is_accessible(done: Path) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(done))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with chromium() as browser, local_page(browser) as shown:
            shown.goto(f"http://127.0.0.1:{server.server_port}/calibration.html")
            shown.wait_for_selector(".js-plotly-plot .main-svg")
            assert shown.locator(".js-plotly-plot").count() == 3
            held = json.loads((done / "calibration.json").read_text())
            assert f"{held['chosen']} *" in shown.inner_text("table")
            assert report.verdict(held) in shown.inner_text("main")
            accessible(shown)
    finally:
        server.shutdown()


def test_what_files_hold_is_text_on_the_page(done: Path) -> None:
    held = json.loads((done / "calibration.json").read_text())
    held["setting"]["model"] = held["command"] = "<img src=x>"
    assert "<img src=x>" not in page.html(held)
