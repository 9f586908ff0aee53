"""The report: factors filled or missing, numbers that are the analysis's, text that stays text."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from listening_test import (
    admin,
    analyse,
    analysis,
    calls,
    export,
    report,
    report_factors,
    report_text,
    wording,
)
from listening_test.document import Heading, Listing, Missing, Paragraph, Table, markdown, page
from listening_test.hosting import Studies
from listening_test.server import attach
from listening_test.study import Study, load_study
from listening_test.study_parts import Exclusion
from listening_test.tables import system_rows
from tests.listening import Clock, Rater, prepared_study, write_study
from tests.test_listening_statistics import crossed, write

NASTY = "</script><img src=x onerror=alert(1)>|`*[a](javascript:alert(2))"
KNOWN = {
    "recruitment": "Students were asked by a poster.",
    "raters": "All grew up in Iceland with Icelandic.",
    "qualification": "Anybody with normal hearing by own account.",
    "payment": "Three euros a session, about 18 euros an hour.",
    "systems": "Three kinds of noise; no natural speech.",
    "materials": "The texts were drawn from a list of 720 sentences.",
    "stop_rule": "The test ends after the last planned session.",
    "availability": "The bundle is at the publisher's.",
}


class Tags(HTMLParser):
    """The tags of a page outside its scripts, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.tags += [f"on:{name}" for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two slow parts: the mixed model, and 5 MB of the plotting library."""
    monkeypatch.setattr(analysis, "mixed_model", lambda *given: None)
    monkeypatch.setattr(report, "script", lambda: "<script></script>")


@pytest.fixture
def open_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared study that three raters have taken, one of them with a nasty comment."""
    extra = (
        "report: {payment: 'Three euros a session, about 18 euros an hour.'}\n"
        "exclusion: {same_answer_share: 0.9}\n"
        "platform: {name: prolific, completed: SECRET99, screened_out: SECRET88}"
    )
    study_dir = prepared_study(tmp_path, extra=extra)
    clock = Clock()
    monkeypatch.setattr(calls, "time", clock)
    studies = Studies()
    studies.open(study_dir)
    app = FastAPI()
    attach(app, studies)
    with TestClient(app) as client:
        for number in range(3):
            rater = Rater(client)
            ids = {"PROLIFIC_PID": f"p{number}", "SESSION_ID": f"s{number}"}
            state = rater.post("session", {"consent": True, "ids": ids}).json()
            while state["state"] != "done":
                rater.fetch(state)
                clock.wait(0.6)
                # The last of the three gives one answer throughout, and falls to the rule.
                score = 3 if number == 2 else 1 + (state["trial_index"] + number) % 5
                comment = NASTY if number == 1 else ""
                body = rater.body(state, score, comment=comment, ui_lang="en")
                state = rater.post("rating", body).json()["next"]
    studies.close()
    return study_dir


@pytest.fixture
def taken(open_study: Path) -> Path:
    """The same study, closed."""
    assert admin.main([str(open_study), "--close"]) == 0
    return open_study


@pytest.mark.usefixtures("quick")
def test_a_study_whose_last_day_is_over_has_a_report_without_a_server(
    open_study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = open_study / "key" / "study.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["config"]["stop_rule"] = {"planned": False, "until": "2020-01-31"}
    record.write_text(json.dumps(content), encoding="utf-8")
    assert report.main([str(open_study), "--out", str(out)]) == 0
    told = (out / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "has the test close at the end of 2020-01-31" in told
    assert export.closed_and_withdrawn(open_study)[0] == "2020-02-01T00:00:00.000+00:00"


def test_time_ends_with_the_last_answer_and_not_with_a_later_look() -> None:
    sessions = pd.DataFrame(
        {
            "state": ["complete", "complete"],
            "consent_utc": "2026-01-01T10:00:00.000+00:00",
            "last_seen_utc": ["2026-01-01T18:00:00.000+00:00", "2026-01-01T10:20:00.000+00:00"],
            "ended_utc": ["2026-01-01T10:10:00.000+00:00", None],
        }
    )
    used = crossed(np.random.default_rng(1), 2, 2)
    told = report_factors._time(report_factors.Evidence(used, used, {}, sessions=sessions))
    assert "took 15.0 minutes (10.0 to 20.0)" in (told or "")


@pytest.mark.usefixtures("quick")
def test_an_open_study_has_no_report(
    open_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(open_study), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "is still open" in told
    assert f"python -m listening_test.admin {open_study} --close" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_a_study_fills_every_factor_that_it_knows(
    taken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert report.main([str(taken), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    text = (out / "report.md").read_text(encoding="utf-8")
    missing = re.findall(r"\*\*MISSING: (.*?)\.\*\*", text)
    assert missing == [
        "Location and language background", "Qualification before the test",
        "Picture of the page", "Range of systems, anchors, natural reference",
        "Origin of the texts", "Stop rule", "Where data and code are",
    ]  # fmt: skip
    assert "missing: Location" in told
    for fact in (
        "Prolific", "Three euros a session", "2 raters of 3", "1 rater (9 ratings) by same answer",
        "Each rater gave 9 ratings", "each stimulus got 2", "In all 18 ratings of 9 stimuli",
        "How natural does the speech sound?", "5 Excellent, 4 Good", "16000 Hz", "-26 LUFS",
        "Williams", "seed 1", "Raters were asked nothing about themselves", "Sessions: 3 complete",
        "3 of 8 planned sessions", "8 ratings a stimulus at least: 8 sessions of 9 trials each",
        load_study(tmp_path / "source" / "study.yaml").sha256,
    ):  # fmt: skip
        assert fact in text.replace("\\", ""), fact
    # What the study fixed has a person's own words beside it, if --details gives them.
    details = tmp_path / "details.yaml"
    details.write_text(json.dumps({k: v for k, v in KNOWN.items() if k != "payment"}))
    picture = tmp_path / "page.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n rest")
    more = ["--details", str(details), "--screenshot", str(picture)]
    assert report.main([str(taken), "--out", str(out), *more]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "MISSING" not in text
    assert not [known for known in KNOWN.values() if known not in text.replace("\\", "")]


@pytest.mark.usefixtures("quick")
def test_the_numbers_are_the_analysis_and_a_p_has_its_interval(
    taken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_report(taken, tmp_path / "out")
    export.export(taken, tmp_path / "data")
    assert analyse.main([str(tmp_path / "data"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "analysis.json").read_text()) == result
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name, values in result["systems"].items():
        low, high = values["ci95"]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {round(values['mos'], 2)} | {low:.2f} to {high:.2f} |" in row
    frame = crossed(np.random.default_rng(1), 6, 4, ("a", "b"))
    frame["score"] = frame["system"].map({"a": 5.0, "b": 3.0})
    write(tmp_path / "sure", frame)
    report.write_report(tmp_path / "sure", tmp_path / "sure")
    text = (tmp_path / "sure" / "report.md").read_text(encoding="utf-8")
    assert "| a - b | 2.0 | none: no spread |  |" in text  # its Wilcoxon p would be 0.03


def test_the_bundle_holds_what_a_reader_needs_and_no_code(taken: Path, tmp_path: Path) -> None:
    report.write_report(taken, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "bundle.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {
        "report.md", "report.html", "analysis.json", "ratings.csv", "sessions.csv", "stimuli.csv",
        "study.json", "versions.json", "README.txt", "SHA256SUMS",
    }  # fmt: skip
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].decode().splitlines())
    for name, data in files.items():
        assert name == "SHA256SUMS" or sums[name] == hashlib.sha256(data).hexdigest()
        assert b"SECRET" not in data  # the platform's completion codes
    # A rater's own code has 32 bits: from any hash of it in public it would be found.
    whole = tmp_path / "whole"
    export.export(taken, whole)
    told, kept = ((one / "sessions.csv") for one in (whole, tmp_path / "kept"))
    kept.parent.mkdir()
    kept.write_bytes(files["sessions.csv"])
    both = [pd.read_csv(one, dtype=str, keep_default_na=False) for one in (told, kept)]
    private = ["submission_id", "payment_class", "completion_code_id"]
    pd.testing.assert_frame_equal(both[0].drop(columns=private), both[1])
    html = files["report.html"].decode()
    assert "Plotly.newPlot" in html
    assert len(html) > 10**6  # the library itself, so that the page needs no network
    assert "a mixed model (rater and text random) with 95 % intervals: quokka minus" in html
    versions = json.loads(files["versions.json"])
    assert {"python", "numpy", "scipy", "statsmodels"} <= set(versions)
    record = json.loads(files["study.json"])
    study = load_study(tmp_path / "source" / "study.yaml")
    assert record["config_sha256"] == study.sha256
    assert Study.model_validate(record["config"]).systems == study.systems
    # Who unpacks it can make the analysis again.
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    again = report.load_evidence(folder).result
    assert again == json.loads(files["analysis.json"])


@pytest.mark.usefixtures("quick")
def test_what_people_and_other_tools_wrote_stays_text(tmp_path: Path) -> None:
    frame = crossed(np.random.default_rng(1), 6, 4, ("a", NASTY))
    frame["comment"], frame["rater_id"] = NASTY, NASTY + frame["rater_id"]
    frame["status"] = np.where(frame["rater_id"].str.endswith("r0"), "exclude", "use")
    frame["status_reason"] = NASTY
    write(tmp_path, frame)
    report.write_report(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    found = Tags()
    found.feed(text)
    assert NASTY in found.text
    assert not {"img", "a", "iframe"} & set(found.tags)
    assert not [tag for tag in found.tags if tag.startswith("on:")]
    # Nothing outside the scripts of code: one for the library, one a figure.
    assert found.tags.count("script") == 1 + found.tags.count("figure") == 4
    assert not re.search(r"<(link|script|img)[^>]*(src|href)=", text.split("<body>")[1])
    plain = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<|(?<!\\)\[a\]", plain)


@pytest.mark.usefixtures("quick")
def test_every_rule_is_told_in_words_with_what_it_took_out(taken: Path, tmp_path: Path) -> None:
    """The study's own rule, and then all that there are."""
    export.export(taken, tmp_path)
    record = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    rules = {
        "trap_errors": 0, "gold_errors": 1, "same_answer_share": 0.9, "repeat_difference": 1.5,
        "reference_below": [90, 0.15], "anchor_above": None, "correlation_below": -0.5,
        "incomplete_sessions": True,
    }  # fmt: skip
    assert set(rules) == set(Exclusion.model_fields)
    record["config"]["exclusion"] = rules
    (tmp_path / "study.json").write_text(json.dumps(record), encoding="utf-8")
    told = {f.name: f.text for f in report_factors.factors(report.load_evidence(tmp_path))}
    text = told["Filtering after the test"] or ""
    for words in (
        "more than 0 wrong traps", "more than 1 wrong gold question", "90% or more of one and",
        "differ by more than 1.5 on average", "reference below 90 in more than 15% of the texts",
        "others below -0.5", "did not come to its end", "1 rater (9 ratings) by same answer share",
        "0 raters (0 ratings) by trap errors", "by incomplete session",
    ):  # fmt: skip
        assert words in text, words
    above = report_factors._RULES["anchor_above"]([90, 0.15])
    assert above == "the mid anchor above 90 in more than 15% of the texts (ITU-R BS.1534-3)"


def test_what_raters_said_of_themselves_is_counted(tmp_path: Path) -> None:
    write(tmp_path, crossed(np.random.default_rng(1), 3, 4, ("a", "b")))
    asked = "questionnaire: [{id: age, question: How old?, choices: [young, old]}]"
    study = load_study(write_study(tmp_path / "s", extra=asked))
    (tmp_path / "study.json").write_text(
        json.dumps({"config": study.model_dump(mode="json")}), encoding="utf-8"
    )

    def told() -> str:
        found = report_factors.factors(report.load_evidence(tmp_path))
        return next(f.text for f in found if f.name == "Raters' own account") or ""

    assert "“How old?” (answers are not in these data)" in told()
    (tmp_path / "sessions.csv").write_text(
        "session_id,rater_id,state,about_age\ns0,r0,complete,young\ns1,r1,complete,\n"
        "s2,r2,complete,young\ns9,r9,started,old\n"
    )
    # Who gave no rating that counts is not told of.
    assert "“How old?” (answered by 2 of 3; young: 2, old: 0)" in told()


def recorded(folder: Path, extra: str, sessions: str = "") -> report_factors.Evidence:
    """Evidence of three raters' ratings beside a study file that ends in `extra`."""
    write(folder, crossed(np.random.default_rng(1), 3, 4, ("a", "b")))
    study = load_study(write_study(folder / "s", extra=extra))
    (folder / "study.json").write_text(
        json.dumps({"config": study.model_dump(mode="json")}), encoding="utf-8"
    )
    (folder / "sessions.csv").write_text(sessions or "session_id,rater_id,state\n")
    return report.load_evidence(folder)


def factor(evidence: report_factors.Evidence, name: str) -> str:
    return next(f.text for f in report_factors.factors(evidence) if f.name == name) or ""


@pytest.mark.parametrize("extra", ["language: zh", "languages: {zh: {title: 测试}}"])
def test_instructions_and_questions_are_told_in_the_languages_read(
    tmp_path: Path, extra: str
) -> None:
    evidence = recorded(tmp_path, extra)
    told = factor(evidence, "Instructions")
    assert wording.INSTRUCTIONS["zh"] in told
    assert (wording.INSTRUCTIONS["en"] in told) == ("languages" in extra)
    asked = factor(evidence, "Question, labels and steps")
    assert "p800-acr-5-zh" in asked
    assert ("p800-acr-5)" in asked) == ("languages" in extra)
    printed = markdown(report_text._texts(evidence))
    assert wording.CONSENT["zh"] in printed


def test_who_played_the_sound_to_set_the_volume_by_is_counted(tmp_path: Path) -> None:
    sessions = (
        "session_id,rater_id,state,volume_utc\ns0,r0,complete,2026-01-01T00:00:00.000+00:00\n"
        "s1,r1,complete,\ns2,r2,complete,\ns9,r9,started,2026-01-01T00:00:00.000+00:00\n"
    )
    recorded(tmp_path, "", sessions)
    (tmp_path / "stimuli.csv").write_text("sample_rate,trial_type,system\n16000,rating,a\n")
    evidence = report.load_evidence(tmp_path)
    told = factor(evidence, "Playback")
    assert "in 1 of the 3 sessions that count it was played" in told


def test_a_test_below_its_planned_size_is_told_by_its_own_stop_rule(tmp_path: Path) -> None:
    open_end = markdown(report_text._progress(recorded(tmp_path / "a", "")))
    assert "0 of 8 planned sessions" in open_end
    assert "or tell why it came before" in open_end
    day = recorded(tmp_path / "b", "stop_rule: {until: 2020-01-31}")
    told = markdown(report_text._progress(day)).replace("\\", "")
    assert "close at the end of 2020-01-31 (UTC), however many" in told
    assert "wait" not in told


@pytest.mark.parametrize(
    ("method", "mean"), [("acr", "MOS"), ("dcr", "DMOS"), ("mushra", "mean"), ("p835", "MOS")]
)
def test_a_mean_is_called_what_its_standard_calls_it(method: str, mean: str) -> None:
    frame = crossed(np.random.default_rng(1), 3, 4, ("a", "b")).assign(method=method)
    rows = system_rows(analysis.analyse(frame))
    assert [list(row)[1] for row in rows] == [mean, mean]


def test_a_test_over_raters_alone_is_not_said_to_speak_of_other_texts(tmp_path: Path) -> None:
    told = factor(recorded(tmp_path, ""), "Intervals, tests, correction, effect size")
    assert "its p alone is too small to speak of other texts" in told


def test_a_document_says_the_same_in_both_forms() -> None:
    blocks = [
        Heading("T *x*", 1), Paragraph("1. a <b>\nline & &lt;"), Missing("pay", "Write it_."),
        Listing(("- one", "| two")), Table([{"a|b": None, "c": 1}]), Table([]),
    ]  # fmt: skip
    assert markdown(blocks) == (
        "# T \\*x\\*\n\n1\\. a \\<b\\> line & &amp;lt;\n\n**MISSING: pay.** Write it\\_.\n\n"
        "- \\- one\n- \\| two\n\n| a\\|b | c |\n| --- | --- |\n|  | 1 |\n\n\n"
    )
    html = page("T & x", blocks)
    assert "<title>T &amp; x</title>" in html
    assert "<h1>T *x*</h1>" in html
    assert '<p class="missing"><strong>MISSING: pay.</strong> Write it_.</p>' in html
    assert "<td></td><td>1</td>" in html


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["ab", "abx", "ccr", "p835"])
def test_every_method_has_a_report(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(2)
    frame = crossed(rng, 8, 5, ("a", "b")).assign(method=method)
    wanted = "margin"
    if method == "p835":
        other = frame.assign(dimension="sig", score=6 - frame["score"])
        frame = pd.concat([frame.assign(dimension="ovrl"), other])
        wanted = "### Question: sig"
    else:
        frame["system_b"] = frame["system"].map({"a": "b", "b": "a"})
        frame["stimulus_b_id"] = frame["item_id"] + "-other"
        frame["choice"] = rng.choice(["a", "b", "tie"], len(frame)) if method != "ccr" else ""
        frame.loc[frame.index[:3], "system_b"] = frame["system"]  # a clip with itself
        frame["check_passed"] = rng.integers(0, 2, len(frame))
        frame["score"] = frame["score"] - 3 if method == "ccr" else ""
        wanted = {"ab": "share", "abx": "guessing is 0.5", "ccr": "a - b"}[method]
    write(tmp_path, frame)
    assert report.main([str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert wanted in text
    if "system_b" in frame:
        itself = frame["system"] == frame["system_b"]
        assert f"In all {(~itself).sum()} ratings" in text
        assert "Besides, 3 ratings of a clip with itself." in text
    for line in text.splitlines():
        if re.search(r"\bp (<|\d)", line):
            assert "interval" in line


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("details", "says"),
    [("pay: much", "pay: Extra inputs"), ("a: [", "as YAML"), ("[1]", "Known keys: recruitment")],
)
def test_bad_input_gets_a_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], details: str, says: str
) -> None:
    write(tmp_path, crossed(np.random.default_rng(1), 3, 3))
    (tmp_path / "d.yaml").write_text(details)
    arguments = [str(tmp_path), "--out", str(tmp_path / "out")]
    assert report.main([*arguments, "--details", str(tmp_path / "d.yaml")]) == 2
    assert says in capsys.readouterr().err
    assert report.main([*arguments, "--screenshot", str(tmp_path / "d.yaml")]) == 2
    assert "no PNG" in capsys.readouterr().err
    assert report.main([str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    write(tmp_path, crossed(np.random.default_rng(1), 3, 3).assign(status="exclude"))
    assert report.main(arguments) == 2
    assert "nothing to report yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_without_a_report_keeps_its_hash(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    # As little do the other keys that came later change a study that does not use them.
    later = {"report", "languages", "raters", "stop_rule", "payment", "same_text"}
    content = {k: v for k, v in study.model_dump(mode="json").items() if k not in later}
    del content["exclusion"]["anchor_above"]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    assert study.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert load_study(
        write_study(tmp_path / "told", extra="report: {payment: none}")
    ).sha256 != study.sha256  # fmt: skip
