"""Cells: no text is run as a formula, and every text comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listening_test import analyse
from listening_test.columns import cell, csv_text, uncell

GUARDS = st.text("'=+-@\t\ra", max_size=4)


@given(st.builds(str.__add__, GUARDS, st.text(max_size=4)))
def test_a_cell_gives_back_its_text_and_is_no_formula(text: str) -> None:
    assert uncell(cell(text)) == text
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize(
    ("text", "stored"),
    [("=a", "'=a"), ("'=a", "''=a"), ("''=a", "'''=a"), ("'a", "'a"), ("'", "'"), ("", "")],
)
def test_only_what_could_be_run_gets_a_quote(text: str, stored: str) -> None:
    assert cell(text) == stored
    assert uncell(stored) == text


def test_a_system_is_shown_by_the_name_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"trial_type": "rating", "status": "use", "session_id": "=s", "stimulus_id": "x"}
    rows = [
        made | {"rater_id": f"@{rater}", "item_id": f"+{item}", "system": system, "score": score}
        for rater in "ab"
        for item in "ij"
        for system, score in (("-5 dB", -1), ("'-5 dB", 1))
    ]
    path = tmp_path / "ratings.csv"
    path.write_text(csv_text(rows, analyse.REQUIRED), encoding="utf-8")
    frame = analyse.load_ratings(path)
    found = set(zip(frame["system"], frame["score"], strict=True))
    assert found == {("-5 dB", -1.0), ("'-5 dB", 1.0)}
    assert frame[["session_id", "rater_id", "item_id"]].to_numpy()[0].tolist() == ["=s", "@a", "+i"]
    (tmp_path / "sessions.csv").write_text('"session_id","state"\n"\'=s","started"\n')
    assert analyse.load_incomplete(tmp_path) == {"=s"}
    assert analyse.main([str(tmp_path), "--json"]) == 0
    systems = json.loads(capsys.readouterr().out)["systems"]
    assert {name: values["mos"] for name, values in systems.items()} == {"-5 dB": -1, "'-5 dB": 1}


def test_a_row_that_ends_early_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(",".join((*analyse.REQUIRED, "comment")) + "\ns,r,i,x,a,3,rating,use\n")
    assert analyse.load_ratings(path)["score"].tolist() == [3]
