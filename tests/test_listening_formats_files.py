"""Formats through files: there and back without loss, and the command that converts."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listening_test.analyse import REQUIRED, load_ratings
from listening_test.analysis import analyse
from listening_test.columns import csv_text
from listening_test.convert import convert, main, read_table, write_table
from listening_test.formats import FORMATS
from tests.listening_formats import MUSHRA, SAMPLES, ratings, there_and_back, values

# Text that breaks careless CSV: formulas, quotes, line breaks, separators, other scripts.
NASTY = [
    "", "=1+1", "+49", "-", "@x", "'=x", "''=x", "'", "'-", "\t=", "\r", "a,b", '"', '"a"', "a\nb",
    "a\r\nb", " ", "NA", "nan", "3", "1e5", "00", "é漢🎧", "\ufeff", "\u2028", "____",
]  # fmt: skip
IDS = ("session_id", "rater_id", "item_id", "stimulus_id", "system")
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
AWKWARD = st.sampled_from(NASTY) | st.text(LETTERS, max_size=6)
ID = AWKWARD.filter(lambda text: bool(text.strip()))
METHODS = {"mushra": ["mushra"], "lss": ["acr"], "paired_comparison": ["ab"], "matrix": ["acr"]}
DIMENSIONS = {"mushra": ["quality"], "dcr": ["degradation"], "p835": ["sig"]}


@st.composite
def tidy(draw: st.DrawFn, name: str) -> pd.DataFrame:
    """Ratings of distinct raters, items and systems, all of them answers."""
    keys = st.tuples(*(st.sampled_from(draw(st.lists(ID, min_size=1, max_size=3))),) * 3)
    cells = draw(st.lists(keys, min_size=1, max_size=8, unique=True))
    method = draw(st.sampled_from(METHODS.get(name, ["acr", "dcr", "p835"])))
    dimension = draw(st.sampled_from(DIMENSIONS.get(method, ["quality", "naturalness"])))
    # Minus zero is the score zero: a table need not keep its sign, by which `kept` would sort.
    score = st.integers(1, 5) | st.floats(-1e9, 1e9).map(lambda x: x + 0.0) | st.floats(0, 100)
    rows = [
        {
            "study_id": draw(AWKWARD), "session_id": f"{session}{rater}", "rater_id": rater,
            "block_id": draw(AWKWARD), "item_id": item, "stimulus_id": f"{item}|{system}",
            "system": system, "score": math.nan if method == "ab" else draw(score),
            "rt_ms": draw(st.integers(0, 10**7) | st.just(math.nan)), "comment": draw(AWKWARD),
            "status": draw(st.sampled_from(FORMATS[name].shape.statuses)), "trial_type": "rating",
            "method": method, "dimension": dimension,
        }
        for session in [draw(st.sampled_from(["s", "=s"]))]
        for rater, item, system in cells
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    if method == "ab":
        frame["system_b"] = [f"not {system}" for system in frame["system"]]
        frame["choice"] = [draw(st.sampled_from(["a", "b", "tie"])) for _ in rows]
    return frame


def kept(frame: pd.DataFrame, name: str) -> list[tuple[Any, ...]]:
    """The rows that a format keeps, in one order; nan as None, for it equals nothing."""
    columns = [c for c in FORMATS[name].shape.keeps if c in frame]
    rows = frame[columns or list(frame)].astype(object)
    return sorted(values(rows.where(rows.notna(), None), *rows.columns), key=repr)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ratings"])
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_there_and_back_loses_nothing_that_has_a_column(name: str, data: st.DataObject) -> None:
    frame = data.draw(tidy(name))
    back = FORMATS[name].read(there_and_back(FORMATS[name].write(frame)))
    assert kept(back, name) == kept(frame, name)
    table = FORMATS["ratings"].write(back)
    ours = FORMATS["ratings"].read(there_and_back(table))
    pd.testing.assert_frame_equal(ours, back, check_dtype=False)
    with tempfile.TemporaryDirectory() as folder:
        write_table(table, Path(folder) / "ratings.csv")
        loaded = load_ratings(Path(folder) / "ratings.csv")
    assert values(loaded, *IDS) == values(back, *IDS)
    assert loaded["score"].tolist() == pytest.approx(back["score"].tolist(), rel=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(AWKWARD, min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_file_gives_back_any_text_and_runs_none(rows: list[list[str]]) -> None:
    table = pd.DataFrame(rows, columns=["=a", "b"], dtype=object)
    assert there_and_back(table).to_numpy().tolist() == rows
    with tempfile.TemporaryDirectory() as folder:
        write_table(table, Path(folder) / "x.csv")
        text = (Path(folder) / "x.csv").read_bytes().decode()
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_a_file_of_the_export_is_read_without_its_guard(tmp_path: Path) -> None:
    rows = [dict.fromkeys(REQUIRED, "x") | {"score": -2, "comment": "@home, =1", "system": "-5 dB"}]
    path = tmp_path / "ratings.csv"
    path.write_text(csv_text(rows, (*REQUIRED, "comment")), encoding="utf-8")
    (found,) = values(FORMATS["ratings"].read(read_table(path)), "score", "system", "comment")
    assert found == (-2, "-5 dB", "@home, =1")


def test_what_is_no_answer_stays_behind_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = ratings(
        trial_type=["practice", "rating", "null_pair", "rating", "trap", "rating"],
        status=["use", "exclude", "use", "use", "use", "use"], comment="hello",
    )  # fmt: skip
    write_table(frame, tmp_path / "ratings.csv")
    arguments = [str(tmp_path), "--from", "ratings", "--to", "mushra", "--out"]
    assert main([*arguments, str(tmp_path / "new" / "folder")]) == 0
    told = capsys.readouterr().out
    for line in (
        "left out: 1 with no score", "left out: 1 with status: exclude",
        "left out: 1 with trial_type: practice", "left out: 1 with trial_type: trap",
        "mushra has no place for: trial_type, stimulus_id",
    ):  # fmt: skip
        assert line in told
    written = read_table(tmp_path / "new" / "folder" / "mushra.csv")
    assert written["rating_score"].tolist() == ["3", "4"]
    # Where there is a status, what does not count goes along with it.
    table = FORMATS["votes_per_worker"].write(frame)
    assert values(table, "vote", "assignmentstatus") == [
        (2, "Rejected"), (3, "Approved"), (4, "Approved")
    ]  # fmt: skip


def test_checks_of_the_export_have_no_system_and_pairs_have_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = ratings(
        trial_type=["trap", "gold", "rating", "null_pair", "rating", "rating"],
        system=["", "", "x", "x", "y", "x"], system_b=["", "", "y", "x", "x", "y"],
        score=math.nan, choice=["a", "b", "a", "b", "a", ""], method="ab",
    )  # fmt: skip
    write_table(frame, tmp_path / "ratings.csv")
    arguments = [str(tmp_path), "--from", "ratings", "--to", "paired_comparison", "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    for rule in ("trial_type: trap", "a pair of a system with itself", "no choice"):
        assert f"left out: 1 with {rule}" in told
    written = read_table(tmp_path / "out" / "paired_comparison.csv")
    assert values(written, "choice_reference", "choice_non_reference") == [("x", "y"), ("y", "x")]
    write_table(frame.assign(system_b=""), tmp_path / "ratings.csv")
    assert main([*arguments, str(tmp_path / "out")]) == 2
    assert "ratings.csv row 4: system_b is empty" in capsys.readouterr().err


def test_a_rating_that_is_there_twice_is_converted_once(tmp_path: Path) -> None:
    write_table(ratings(rating_id=list("abcdad")), tmp_path / "ratings.csv")
    target, _ = convert(tmp_path, "ratings", "matrix", tmp_path / "m.csv")
    assert len(read_table(target)) == 4


def test_the_reference_is_called_as_other_tools_call_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.csv").write_text(MUSHRA)
    frame = FORMATS["mushra"].read(read_table(tmp_path / "theirs.csv"))
    frame["system"] = frame["system"].map({"reference": "natural", "anchor35": "fast"})
    write_table(frame, tmp_path / "ratings.csv")
    out = str(tmp_path / "m.csv")
    options = [str(tmp_path), "--from", "ratings", "--to", "mushra", "--out", out]
    assert main([*options, "--reference", "natural"]) == 0
    written = read_table(tmp_path / "m.csv")
    assert set(written["rating_stimulus"]) == {"reference", "fast"}
    assert main([*options, "--reference", "human"]) == 2
    assert "no system 'human' to be the reference: it has fast, natural" in capsys.readouterr().err
    frame["system"] = frame["system"].replace("fast", "reference")
    write_table(frame, tmp_path / "ratings.csv")
    assert main([*options, "--reference", "natural"]) == 2
    assert "a system called reference beside 'natural'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "text"), SAMPLES.items())
def test_the_command_imports_for_analyse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / FORMATS[name].shape.file_name).write_text(text, encoding="utf-8-sig")
    out = tmp_path / "out"
    assert main([str(tmp_path), "--from", name, "--to", "ratings", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"listening_test.analyse {out}" in told
    assert ("does not say who voted" in told) is (name == "votes_per_clip")
    frame = load_ratings(out / "ratings.csv")
    assert {*REQUIRED, "method"} <= set(frame)
    counted = {"votes_per_worker": 3, "paired_comparison": 3}
    assert analyse(frame)["n"] == counted.get(name, frame["score"].count())


def swapped(name: str, old: str, new: str) -> tuple[str, bytes]:
    assert old in SAMPLES[name]
    return name, SAMPLES[name].replace(old, new, 1).encode()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("mushra", b""), "is empty"),
        (("mushra", b"\n\n"), "is empty"),
        (("mushra", b"\xff\xfea"), "not UTF-8"),
        (("mushra", "a,b".encode("utf-16-le")), "holds NUL"),
        (("mushra", b"trial_id;rating_stimulus\n1;2\n"), "no commas"),
        (("mushra", MUSHRA.splitlines()[0].encode()), "holds no rows"),
        (("mushra", b"trial_id,rating_stimulus,rating_score\n"), "holds no rows"),
        (("mushra", b"trial_id,rating_stimulus,rating_score\n1,2,3\n"), "tell people apart"),
        (("mushra", b"trial_id,trial_id\n1,2\n"), "'trial_id' more than once"),
        (swapped("mushra", "20,53210", "loud,53210"), "row 3: rating_score 'loud' is not a number"),
        (swapped("mushra", "20,53210", "inf,53210"), "row 3: rating_score 'inf' is not a number"),
        (swapped("mushra", "20,53210", "1_0,53210"), "row 3: rating_score '1_0' is not a number"),
        (swapped("mushra", "20,53210", "20,53210,9"), "row 3: 10 cells, where the header has 9"),
        (swapped("mushra", '"dull', 'x"dull'), "row"),
        (swapped("mushra", ',"dull', ',"d"ull'), "row 3: not CSV"),
        (swapped("mushra", "u2", " "), "row 4: session_uuid is empty"),
        (swapped("votes_per_worker", "vote,", "votes,"), "lacks the column vote (it has: HITId"),
        (swapped("votes_per_worker", "4,MOS,x", "4,ABC,x"), "row 2: question_type 'ABC'"),
        (swapped("votes_per_worker", "5,MOS,x", "5,MOS,"), "row 4: no condition says"),
        (swapped("votes_per_clip", ",3,4,", ",4,4,"), "row 2: n is 4, but there are 3 votes"),
        (swapped("votes_per_clip", "MOS_SIG", "mean"), "0 of MOS"),
        (swapped("lss", "bob", "ann"), "row 4: the same questionnaire answers"),
        (swapped("lss", "stimuli_rating1,stimuli_rating2", "a,b"), "lacks the column stimuli_rat"),
        (swapped("paired_comparison", "undecided", "maybe"), "row 3: choice_answer 'maybe'"),
        (swapped("matrix", "s3", ""), "each with its name"),
    ],
)
def test_bad_files_get_a_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, bytes], says: str
) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(given[1])
    out = tmp_path / "out"
    assert main([str(path), "--from", given[0], "--to", "ratings", "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"{path} ")
    assert says in told.err
    assert told.out == ""
    assert not out.exists()


def test_files_that_cannot_be_read_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(ratings(), tmp_path / "ratings.csv")
    ours = str(tmp_path / "ratings.csv")
    for source, out, says in (
        (str(tmp_path / "no.csv"), "x.csv", "no.csv cannot be read (No such file"),
        (ours, ours, "is the file to read"),
        (ours, f"{ours}/x.csv", "x.csv cannot be written ("),
    ):
        assert main([source, "--from", "ratings", "--to", "ratings", "--out", out]) == 2
        assert says in capsys.readouterr().err
