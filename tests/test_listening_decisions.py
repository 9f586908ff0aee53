"""Raters left out by hand and the team's own sessions: kept as events, reversible, in no result."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

import app
from listening_test import admin, analyse, enrolment, trials, withdraw
from listening_test.admin import overview
from listening_test.analysis import Plan
from listening_test.analysis import analyse as analysed
from listening_test.database import SCHEMA
from listening_test.decisions import DECISIONS, MAX_REASON, BadDecision, decide
from listening_test.export import export, exported_frame
from listening_test.gate import SECRET_VARIABLE
from listening_test.hosting import Studies
from listening_test.report import write_report
from listening_test.results import show_results
from listening_test.tables import notes
from tests.browser import accessible, local_page
from tests.copies import Browser as Kept
from tests.copies import FakeHub, Server
from tests.listening import SYSTEMS, prepared_study
from tests.test_listening_methods import served, take
from tests.test_listening_store import Clock, clock, opened, tiny_study  # noqa: F401
from tests.tiny import tiny_lm

OUT, BACK, OURS, NOT_OURS = DECISIONS.values()
SECRET = "a long secret of the operator's"


def ids(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT rater_id FROM sessions ORDER BY rowid")]


@pytest.fixture
def study_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four raters came to the end of a study; each uses the scale in a way of their own."""
    found = prepared_study(
        tmp_path, items=2, systems=SYSTEMS[:2], seconds=0.42, extra="ratings_per_stimulus: 3"
    )
    with served(found) as client:
        for number in range(4):
            take(client, monkeypatch, number)
    return found


def raters_of(study_dir: Path) -> list[str]:
    return list(exported_frame(study_dir)[0]["rater_id"].drop_duplicates())


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert admin.main([str(one) for one in arguments]) == 0
    return capsys.readouterr().out


def result_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert analyse.main([str(folder), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_analysis_report_and_csv_honour_both(
    study_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, study = exported_frame(study_dir)
    cheat, ours, *rest = raters_of(study_dir)
    why = "=wrote that they had no sound"
    told(capsys, study_dir, "--leave-out", cheat, "--reason", why)
    told(capsys, study_dir, "--internal", ours)
    export(study_dir, tmp_path / "out")
    result = result_of(tmp_path / "out", capsys)
    kept = whole[whole["rater_id"].isin(rest)]
    expected = analysed(kept, Plan.of(study))
    assert result["systems"] == expected["systems"]
    assert result["pairs"] == expected["pairs"]
    assert result["excluded"] == {
        f"by hand: {why}": 4, "internal": 4, "trial_type: practice": 4,
    }  # fmt: skip
    assert f"Not counted: 4 rows (by hand: {why})." in notes(result)
    with open(tmp_path / "out" / "ratings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["rater_id"], row["status"], row["status_reason"]) for row in rows}
    assert found == {
        (cheat, "exclude", f"by hand: {why}"), (ours, "test", "internal"),
        *((rater, "use", "") for rater in rest),
    }  # fmt: skip
    with open(tmp_path / "out" / "sessions.csv", encoding="utf-8", newline="") as file:
        sessions = list(csv.DictReader(file))
    assert {(row["rater_id"], row["status"], row["status_reason"]) for row in sessions} == found
    write_report(tmp_path / "out", tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Excluded: 1 rater (4 ratings) by hand: " in report
    assert "1 session of the team (4 ratings) tested the test" in report
    assert "2 raters of 3 who rated are analysed. Sessions: 3 complete." in report


def test_both_can_be_taken_back_and_every_decision_stays(
    study_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(study_dir, tmp_path / "before")
    rater, ours, *_ = raters_of(study_dir)
    for arguments in (
        ("--leave-out", rater, "--reason", "slept"), ("--internal", ours),
        ("--internal", rater), ("--take-back", rater, "--reason", "did not"),
    ):  # fmt: skip
        told(capsys, study_dir, *arguments)
    export(study_dir, tmp_path / "between")
    assert result_of(tmp_path / "between", capsys)["excluded"]["internal"] == 8
    for who in (ours, rater):
        out = told(capsys, study_dir, "--not-internal", who)
    decisions = out.partition("\ndecisions\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(decisions) == 6
    assert ["slept" in line for line in decisions] == [True] + [False] * 5
    assert [rater in line for line in decisions] == [True, False, True, True, False, True]
    export(study_dir, tmp_path / "after")
    for name in ("ratings.csv", "sessions.csv"):
        before = (tmp_path / "before" / name).read_bytes()
        assert (tmp_path / "after" / name).read_bytes() == before


def test_a_decision_after_the_results_were_open_says_so(
    study_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early, late, ours, _ = raters_of(study_dir)
    told(capsys, study_dir, "--leave-out", early, "--reason", "slept")
    told(capsys, study_dir, "--close")
    studies = Studies()
    studies.open(study_dir)
    before = " ".join(show_results(studies).words)
    told(capsys, study_dir, "--leave-out", late, "--reason", "too low")
    told(capsys, study_dir, "--internal", ours)
    export(study_dir, tmp_path / "out")
    excluded = result_of(tmp_path / "out", capsys)["excluded"]
    assert set(excluded) == {
        "by hand: slept", "by hand after the results were open: too low",
        "internal after the results were open", "trial_type: practice",
    }  # fmt: skip
    after = " ".join(show_results(studies).words)  # not the analysis of a minute ago
    assert "too low" in after
    assert "too low" not in before
    studies.close()


def test_who_is_left_out_counts_nowhere_and_the_overview_says_why(
    study_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cheat, ours, *_ = raters_of(study_dir)
    now = 2_000_000_000.0
    full = overview(study_dir, now)
    assert full.sessions["complete"] == 4
    assert [set(row.values()) - {row["text"]} for row in full.cells] == [{4}, {4}]
    assert full.alarms == ["All 3 planned sessions are complete. Close the study."]
    told(capsys, study_dir, "--leave-out", cheat, "--reason", "slept")
    told(capsys, study_dir, "--internal", ours)
    seen = overview(study_dir, now)
    assert "2 complete, 1 left out by hand, 1 internal" in seen.summary
    assert [set(row.values()) - {row["text"]} for row in seen.cells] == [{2}, {2}]
    assert seen.alarms == []
    assert {row["rule"]: (row["raters"], row["ratings"]) for row in seen.excluded} == {
        "by hand: slept": (1, 4), "internal": (1, 4),
    }  # fmt: skip
    reasons = {row["rater"]: row["left out by"] for row in seen.raters}
    assert (reasons[cheat], reasons[ours]) == ("by hand: slept", "internal")
    assert [row["decision"] for row in seen.decisions] == list(DECISIONS)[0:3:2]
    studies = Studies()
    studies.open(study_dir)
    (state,) = studies.states()
    assert (state.sessions_complete, state.ratings, state.decisions) == (2, 8, 2)
    studies.close()


def test_the_place_of_who_is_left_out_goes_to_somebody_else(clock: Clock) -> None:  # noqa: F811
    def row_of(key: str) -> int:
        return clock.store.run(lambda db: enrolment.session_of(db, key)["design_row"]).result()

    for key in ("a", "b", "c"):
        clock.start(key)
        clock.finish(key)
    assert [row_of(key) for key in ("a", "b", "c")] == [0, 1, 2]
    _, second, third = clock.store.run(ids).result()
    for rater, decision in ((second, OUT), (third, OURS)):
        clock.store.run(lambda db, r=rater, d=decision: decide(db, r, d, "why", clock.now)).result()
    counts = clock.store.run(trials.progress).result()
    assert (counts["started"], counts["complete"], counts["decisions"]) == (3, 1, 2)
    for key in ("d", "e", "f"):
        clock.start(key)
    assert sorted(row_of(key) for key in ("d", "e", "f")) == [1, 2, 3]
    assert row_of("a") == 0


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(list(DECISIONS)), st.integers(-3, 3)),
        max_size=30,
    )
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_the_last_decision_holds_whatever_the_clock_says(
    steps: list[tuple[int, str, int]],
) -> None:
    db = sqlite3.connect(":memory:")
    db.row_factory = sqlite3.Row
    db.executescript(SCHEMA)
    for number in range(3):
        db.execute(
            "INSERT INTO sessions (session_id, key_sha256, rater_id, platform, design_row, trials, "
            "consent_utc, last_seen) VALUES (?, ?, ?, 'open', 0, '[]', '', 0)",
            (f"s{number}", f"k{number}", f"r{number}"),
        )
    now, slow, n = 1000.0, set(), 0
    for rater, name, step in steps:
        now += step / 1000  # within the milliseconds that are kept, and backwards too
        decision = DECISIONS[name]
        held = (rater, decision.rule) in slow
        if held == decision.holds:
            with pytest.raises(BadDecision, match="so already"):
                decide(db, f"r{rater}", decision, "why", now)
            continue
        decide(db, f"r{rater}", decision, "why", now)
        n += 1
        (slow.add if decision.holds else slow.discard)((rater, decision.rule))
    found = {(int(row[0][1:]), row[1]) for row in db.execute("SELECT * FROM left_out")}
    assert found == slow
    times = [row[0] for row in db.execute("SELECT server_utc FROM decisions")]
    assert len(times) == n
    db.close()


@pytest.mark.parametrize(
    ("rater", "decision", "reason", "says"),
    [
        (None, OUT, " \n\x00", "Give a reason"),
        (None, OUT, "x" * (MAX_REASON + 1), "201 characters; 200"),
        ("nobody", OUT, "why", "nobody with that id"),
        (None, BACK, "", "so already"),
        (None, NOT_OURS, "", "so already"),
    ],
)
def test_a_decision_that_cannot_be_is_told(
    clock: Clock,  # noqa: F811
    rater: str | None,
    decision: Any,
    reason: str,
    says: str,
) -> None:
    clock.start("a")
    (known,) = clock.store.run(ids).result()
    with pytest.raises(BadDecision, match=says):
        clock.store.run(lambda db: decide(db, rater or known, decision, reason, clock.now)).result()
    assert clock.store.run(trials.progress).result()["decisions"] == 0


def test_the_command_line_tells_what_is_lacking(
    study_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater = raters_of(study_dir)[0]
    assert admin.main([str(study_dir), "--leave-out", rater]) == 2
    assert "Give a reason" in capsys.readouterr().err


def test_who_withdraws_takes_the_reason_along(
    study_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater = raters_of(study_dir)[0]
    told(capsys, study_dir, "--leave-out", rater, "--reason", "a telling reason")
    assert withdraw.main([str(study_dir), "--rater", rater, "--yes"]) == 0
    kept = b"".join(path.read_bytes() for path in (study_dir / "data").iterdir())
    assert b"a telling reason" not in kept
    assert overview(study_dir, 2e9).decisions == []


def test_decisions_outlive_a_lost_disk(tmp_path: Path) -> None:
    from tests.test_listening_copies import hub_target

    server = Server(tmp_path / "data", hub_target(FakeHub()))
    browser = Kept()
    browser.begin(server)
    browser.rate(server, 4)
    (rater,) = server.run(ids)
    server.run(lambda db: decide(db, rater, OUT, "slept", server.now))
    server.run(lambda db: decide(db, rater, BACK, "", server.now))
    server.run(lambda db: decide(db, rater, OURS, "", server.now))
    server.copy.cycle()
    before = server.rows("decisions")
    assert len(before) == 3
    server.wipe()
    assert server.rows("decisions") == before
    assert [row["rule"] for row in server.rows("left_out")] == ["internal"]
    server.store.close()


# ---- the Admin page
def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option").filter(has_text=option).first.click()


def clean(page: Page) -> None:
    expect(page.get_by_text("Loading...")).to_have_count(0)
    expect(page.locator(".pending")).to_have_count(0)
    accessible(page)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_deciding_in_a_browser(
    study_dir: Path,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
    scheme: Any,
    width: int,
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    rater, ours, *_ = raters_of(study_dir)
    studies = Studies()
    studies.open(study_dir)
    demo = app.build(tiny_lm(), studies)
    _, address = app.launch(demo, studies, "127.0.0.1")
    size = {"width": width, "height": 900}
    try:
        with local_page(browser, color_scheme=scheme, viewport=size) as page:
            page.set_default_timeout(30_000)
            page.goto(f"{address.rstrip('/')}/admin")
            page.get_by_label("Secret").fill(SECRET)
            page.get_by_role("button", name="Show", exact=True).click()
            note = page.locator("#admin-note")
            expect(note).to_contain_text("4 complete")
            page.get_by_role("button", name="Leave a rater out").click()
            save = page.get_by_role("button", name="Save the decision")
            save.click()
            expect(note).to_contain_text("Choose a rater and a decision first.")
            choose(page, "Rater", rater)
            choose(page, "Decision", "Leave out")
            save.click()
            expect(note).to_contain_text("Give a reason")
            choose(page, "Rater", rater)
            page.get_by_label("Reason").fill("<b>slept</b>")
            save.click()
            expect(note).to_contain_text("3 complete, 1 left out by hand")
            choose(page, "Rater", ours)
            choose(page, "Decision", "Internal")
            save.click()
            expect(note).to_contain_text("2 complete, 1 left out by hand, 1 internal")
            expect(page.get_by_text("by hand: <b>slept</b>").first).to_be_attached()
            clean(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            choose(page, "Rater", rater)
            choose(page, "Decision", "Take back")
            save.click()
            expect(note).to_contain_text("3 complete, 1 internal")
    finally:
        demo.close(verbose=False)
        studies.close()
    frame, _ = exported_frame(study_dir)
    assert set(frame.loc[frame["status"] != "use", "rater_id"]) == {ours}


def test_the_exported_file_says_whom_the_rules_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads ratings.csv alone, here the P.808 reader, counts what the analysis counts."""
    study_dir = prepared_study(
        tmp_path / "ruled", items=3, systems=SYSTEMS[:2], seconds=0.42,
        extra="exclusion: {same_answer_share: 0.95}",
    )  # fmt: skip
    with served(study_dir) as client:
        for number in range(3):
            take(client, monkeypatch, number)
        take(client, monkeypatch, 3, step=0)  # always the same answer
    export(study_dir, tmp_path / "out")
    with open(tmp_path / "out" / "ratings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    marked = {row["rater_id"] for row in rows if row["status"] == "exclude"}
    assert marked == {raters_of(study_dir)[3]}
    assert {row["status_reason"] for row in rows if row["rater_id"] in marked} == {
        "same answer share"
    }
    with_rules = result_of(tmp_path / "out", capsys)
    assert with_rules["excluded"]["same answer share"] == 6
    (tmp_path / "out" / "study.json").unlink()
    alone = result_of(tmp_path / "out", capsys)
    means = [{n: s["mos"] for n, s in r["systems"].items()} for r in (with_rules, alone)]
    assert means[0] == means[1]
    assert alone["raters"] == 3
