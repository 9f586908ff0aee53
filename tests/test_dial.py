"""Acceptances and schedules by name: on the dial, in links, in settings, in what the page says."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spark import bundle, cards, compare, findings
from spark.acceptance import ALWAYS, EXACT, Acceptance, sound_groups
from spark.comparison import CompareSettings, Comparison
from spark.modality import Interleave
from spark.models import load
from spark.named import (
    DIAL_END,
    Nearness,
    acceptance,
    at_dial,
    dial_of,
    nearness_of,
    spark_policy,
)
from spark.plots import comparison as plots
from spark.schedule import DriftSpark, Spark
from spark.shelf import Shelf
from spark.ui import ComparePage
from tests.forms import form, run
from tests.tiny import tiny_lm

SHORT, LONG = Interleave(1, 4), Interleave(13, 26, speech_tail=True)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("always", ALWAYS),
        ("exact", EXACT),
        ("0", EXACT),
        ("0.5", Acceptance("relaxed", 0.5)),
        ("12", Acceptance("relaxed", 12)),
    ],
)
def test_acceptances_by_name(name: str, rule: Acceptance) -> None:
    found = acceptance(name, tiny_lm())
    assert (found.mode, found.tolerance, found.groups) == (rule.mode, rule.tolerance, None)


@pytest.mark.parametrize(
    "name",
    ["", "sometimes", "-1", "inf", "nan", "relaxed", "sound", "sound:", "sound:-1", "sound:nan"],
)
def test_names_that_are_none_are_refused_with_the_names_that_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"always, exact, a tolerance|0 or more"):
        acceptance(name, tiny_lm())


def test_codes_that_sound_alike_stand_by_name() -> None:
    lm = load("embedded")
    found = acceptance("sound:1.5", lm)
    assert (found.mode, found.tolerance) == ("relaxed", 0)
    assert found.groups is not None
    assert torch.equal(found.groups, sound_groups(lm, 1.5))
    assert acceptance("sound:0", lm) == EXACT
    with pytest.raises(ValueError, match="does not say which of its codes sound alike"):
        acceptance("sound:1.5", tiny_lm())


@given(
    st.integers(0, 4 * int(DIAL_END)).map(lambda detent: detent / 4),
    st.sampled_from(["nats", "sound"]),
)
def test_the_dial_stands_where_its_acceptance_puts_it(value: float, nearness: Nearness) -> None:
    name = at_dial(value, nearness)
    assert dial_of(name) == value
    assert not 0 < value < DIAL_END or nearness_of(name) == nearness


def test_from_lossless_to_fast() -> None:
    assert [at_dial(v) for v in (0, 0.25, 4.75, 5)] == ["exact", "0.25", "4.75", "always"]
    assert [at_dial(v, "sound") for v in (0, 0.25, 5)] == ["exact", "sound:0.25", "always"]
    assert dial_of("7") == dial_of("sound:7") == math.inf


@pytest.mark.parametrize(
    ("name", "layout", "policy"),
    [
        ("triple", SHORT, Spark(3, variant="triple")),
        ("k5", SHORT, Spark(3, 5)),
        ("drift", SHORT, DriftSpark(3, 2, 4, 0.2)),
        ("drift", LONG, DriftSpark(3, 2, 6, 0.2)),
        ("drift", Interleave(1, 1), DriftSpark(3, 2, 2, 0.2)),
        ("drift3-9", SHORT, DriftSpark(3, 3, 9, 0.2)),
    ],
)
def test_schedules_by_name(name: str, layout: Interleave, policy: Spark | DriftSpark) -> None:
    assert spark_policy(name, 3, layout, 0.2) == policy


@pytest.mark.parametrize(
    "name", ["drift1-3", "drift5-4", "drift3", "drift-3", "k1", "k", "drifting"]
)
def test_schedules_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown schedule|2 <= shortest K|at least 2"):
        spark_policy(name, 3, SHORT, 0.2)


# On the page


@pytest.fixture(scope="module")
def page() -> ComparePage:
    with gr.Blocks():
        return ComparePage(Shelf(tiny_lm(), []))


@pytest.fixture(scope="module")
def lossless() -> Comparison:
    settings = CompareSettings(
        exit_layer=1, acceptance="exact", schedule="drift", temperature=0.7, threshold=0.02
    )
    return compare.compare(tiny_lm(), "hello there", settings, listen=False)


def opened(page: ComparePage, **query: str) -> dict[object, object]:
    return page.share.load(SimpleNamespace(session_hash="v", query_params=query))


def test_the_form_asks_for_what_stands_on_the_dial(page: ComparePage) -> None:
    for value, name in ((0, "exact"), (1.5, "1.5"), (5, "always")):
        asked = page.form.wanted(form(page, dial=value, schedule="drift", drift_target=0.3))
        assert (asked.acceptance, asked.schedule, asked.drift_target) == (name, "drift", 0.3)


def test_near_misses_by_sound_where_the_codec_has_points(page: ComparePage) -> None:
    asked = page.form.wanted(form(page, dial=1.5, nearness="sound"))
    assert asked.acceptance == "sound:1.5"
    assert page.form.nearness.visible is False  # the tiny model's codec has none
    with gr.Blocks():
        own = ComparePage(Shelf(load("embedded"), []))
    assert own.form.nearness.visible is True
    updates = opened(own, acceptance="sound:1.25")
    assert updates[own.form.dial] == 1.25
    assert updates[own.form.nearness]["value"] == "sound"
    assert updates[own.form.dial_words] == cards.dial(1.25, "sound")
    assert {own.form.dial_words, own.form.nearness} <= set(own.share.load_outputs())
    refused = opened(page, acceptance="sound:1.25")
    assert "does not say which of its codes sound alike" in str(refused[page.board.status])
    assert page.form.dial not in refused


def test_a_run_on_the_dials_left_end_is_lossless(page: ComparePage) -> None:
    _, last = run(page, dial=0, exit_layer=1, schedule="k6", seed=2)
    full, *others = last[page.board.shown].comparison.replies
    assert all(reply.trace.ids() == full.trace.ids() for reply in others)
    assert sum(len(reply.trace.rejected) for reply in others) > 0


def test_a_link_sets_the_dial_and_the_drift_target(page: ComparePage) -> None:
    for name, place in (("exact", 0.0), ("0.75", 0.75), ("always", DIAL_END)):
        updates = opened(page, acceptance=name, schedule="drift", drift_target="0.25")
        assert page.board.status not in updates
        assert updates[page.form.dial] == place
        assert updates[page.form.drift_target] == 0.25


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"acceptance": "sometimes"}, "unknown acceptance"),
        ({"acceptance": "7"}, "Exits stand: 0 lossless … 5 fast: 7 is not between 0 and 5"),
        ({"acceptance": "-1"}, "0 or more"),
        ({"drift_target": "2"}, "2 is not between 0 and 1"),
    ],
)
def test_a_link_that_asks_too_much_is_answered(
    page: ComparePage, query: dict[str, str], says: str
) -> None:
    updates = opened(page, prompt="hi", **query)
    assert says.replace("'", "&#x27;") in str(updates[page.board.status])
    assert page.form.dial not in updates
    assert page.form.drift_target not in updates
    assert updates[page.form.prompt] == "hi"


def test_the_dial_says_what_it_means() -> None:
    assert "token for token" in cards.dial(0)
    assert "0.5 nats likelier" in cards.dial(0.5)
    assert "as SPAR-K was published" in cards.dial(5)
    assert "no two lie further apart than 1.5 times" in cards.dial(1.5, "sound")
    assert cards.dial(0, "sound") == cards.dial(0)
    assert all("role='status'" in cards.dial(value) for value in (0, 0.5, 5))


def test_cards_and_tables_say_what_was_taken_back(lossless: Comparison) -> None:
    for reply in lossless.replies[1:]:
        trace = reply.trace
        assert trace.rejected
        text = cards.figures(reply, complete=True)
        assert f"{trace.verified - trace.corrected} of {trace.verified}" in text
        assert f"{len(trace.rejected)} steps taken back" in text
        listed = cards.token_tables([reply])
        assert all(f"{step.index} (depth {step.depth})" in listed for step in trace.rejected)
        assert listed.count(" %</td>") == len(trace.drifted())
    always = compare.compare(tiny_lm(), "hello", listen=False).replies[1]
    assert "taken back" not in cards.figures(always, True) + cards.token_tables([always])


def test_what_a_stop_leaves_unheard_is_no_draft_taken_back(lossless: Comparison) -> None:
    reply = lossless.replies[1]
    steps = reply.trace.steps
    cut = replace(reply.trace, steps=steps[:9], ahead=steps[9:], rejected=[], finish="interrupted")
    stopped = replace(reply, trace=cut)
    told = cards.figures(stopped, True) + cards.token_tables([stopped])
    assert f"Drawn ahead of the stop and not heard: {len(steps) - 9} tokens." in told
    assert "Drafts taken back" not in told
    assert not [t for t in plots.depth_figure([stopped]).data if t.name == "taken back"]
    ours, whole = cut.summary(), replace(reply.trace, rejected=[]).summary()
    assert ours["traffic_ratio"] == pytest.approx(whole["traffic_ratio"])
    assert ours["ms_per_token"] == pytest.approx(whole["ms_per_token"])


def test_the_plot_marks_every_rejected_step_and_draws_the_drift(lossless: Comparison) -> None:
    figure = plots.depth_figure(lossless.replies)
    marks = [trace for trace in figure.data if trace.name == "taken back"]
    for reply, mark in zip(lossless.replies[1:], marks, strict=True):
        assert list(mark.x) == [step.index for step in reply.trace.rejected]
        line = next(t for t in figure.data if t.mode == "lines+markers"
                    and t.name.endswith(plots.POLICY_TITLES[reply.policy]))  # fmt: skip
        seen = reply.trace.drifted()
        assert list(line.x) == [step.index for step in seen]
        assert list(line.y) == [step.drift for step in seen]
        assert all(f"KL {step.kl:.3f} nats" in told
                   for step, told in zip(seen, line.text, strict=True))  # fmt: skip
    without = plots.depth_figure(lossless.replies, drift=False)
    assert not any(trace.mode == "lines+markers" for trace in without.data)
    by_time = plots.depth_figure(lossless.replies, "seconds")
    assert any(trace.mode == "lines+markers" for trace in by_time.data)


def test_k_stands_beside_each_refresh_of_a_schedule_by_drift(lossless: Comparison) -> None:
    figure = plots.depth_figure(lossless.replies)
    spark = lossless.replies[1].trace
    ks = [str(step.k) for step in spark.steps if step.refresh]
    told = [list(t.text) for t in figure.data if t.name == "refresh (catch-up)"]
    assert ks in told
    assert f"K is {ks[0]} from here" in plots.hover(
        next(step for step in spark.steps if step.refresh), 4
    )


def test_the_sentence_says_what_the_trace_says(lossless: Comparison) -> None:
    words = findings.drift_words(lossless)
    for reply in lossless.replies[1:]:
        figures, n = reply.trace.summary(), len(reply.trace.drifted())
        assert f"share {100 * (1 - figures['drift']):.0f} % of their probability" in words
        assert f"over {n} tokens (KL {figures['kl']:.2f} nats)" in words
    ks = [step.k for step in lossless.replies[1].trace.steps]
    assert f"K went from {min(ks)} to {max(ks)}" in words
    assert "Full depth:" not in words
    assert "<b>Drift.</b>" in cards.drifted(lossless)
    assert cards.drifted(Comparison("", "", CompareSettings())) == ""


def test_files_hold_the_drift_where_it_was_measured(lossless: Comparison) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.zip_bytes(lossless))) as archive:
        names = archive.namelist()
        assert "full.drift.csv" not in names
        details = json.loads(archive.read("details.json"))["policies"]
        for reply, told in zip(lossless.replies, details, strict=True):
            assert told["n_rejected"] == len(reply.trace.rejected)
            if reply.policy == "full":
                assert told["drift"] is told["kl"] is told["acceptance_rate"] is None
                continue
            table = pd.read_csv(io.BytesIO(archive.read(f"{reply.policy}.drift.csv")))
            trace = pd.read_csv(io.BytesIO(archive.read(f"{reply.policy}.trace.csv")))
            assert list(table.columns) == ["index", "time_s", "depth", "overlap", "kl", "k"]
            joined = trace.set_index("index").loc[table["index"], "drift"]
            assert (1 - table["overlap"]).tolist() == pytest.approx(joined.tolist())
            assert trace["drift"].notna().sum() == len(table)
            assert told["drift"] == pytest.approx(1 - table["overlap"].mean())
            assert table["k"].notna().all() == (reply.policy == "spark")


def test_the_command_takes_both_and_says_the_drift(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "load", lambda name, told: tiny_lm())
    asked = [
        "--prompt",
        "hello",
        "--no-listen",
        "--out",
        str(tmp_path / "out"),
        "--exit-layer",
        "1",
    ]
    assert compare.main([*asked, "--schedule", "drift2-3", "--acceptance", "exact"]) == 0
    printed = capsys.readouterr()
    assert "SPAR-K: where it exited, the exit head and full depth share" in printed.err
    assert all(line.startswith(str(tmp_path)) for line in printed.out.splitlines())
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert (settings["schedule"], settings["acceptance"]) == ("drift2-3", "exact")
    for wrong, says in (
        (["--schedule", "drift4-3"], "2 <= shortest K"),
        (["--acceptance", "never"], "always, exact, a tolerance"),
        (["--drift-target", "3", "--schedule", "drift"], "between 0 and 1"),
    ):
        assert compare.main([*asked, *wrong]) == 2
        assert says in capsys.readouterr().err
