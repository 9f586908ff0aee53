"""Other tools' formats, by hand-written files in their shape: what is read, written, refused."""

from __future__ import annotations

import math
import re
import statistics

import numpy as np
import pandas as pd
import pytest

from listening_test.analyse import REQUIRED
from listening_test.analysis import analyse
from listening_test.formats import FORMATS, FormatError, exported
from listening_test.formats.webmushra import from_lss
from tests.listening_formats import (
    CLIP,
    LSS,
    MATRIX,
    MUSHRA,
    PAIRED,
    WORKER,
    ratings,
    read,
    there_and_back,
    values,
)


def test_p808_votes_per_worker() -> None:
    frame = read(WORKER, "votes_per_worker")
    ids = ("session_id", "rater_id", "block_id", "item_id", "stimulus_id", "system", "score")
    assert values(frame, *ids)[:2] == [
        ("S1", "A1", "H1", "x_1.wav", "https://h/c/x_1.wav", "x", 4.0),
        ("S1", "A1", "H1", "y_1.wav", "https://h/c/y_1.wav", "y", 2.0),
    ]
    assert frame["status"].tolist() == ["use", "use", "use", "exclude"]
    assert set(values(frame, "method", "dimension", "trial_type")) == {("acr", "quality", "rating")}
    result = analyse(frame)
    assert {name: s["mos"] for name, s in result["systems"].items()} == {"x": 4.5, "y": 2}
    assert result["excluded"] == {"assignmentstatus Rejected": 1}


@pytest.mark.parametrize(
    ("question", "method", "dimension"),
    [("MOS", "acr", "quality"), ("DMOS", "dcr", "degradation"), ("CMOS", "ccr", "quality"),
     ("MOS_BAK", "p835", "bak"), ("MOS_NATURALNESS", "acr", "naturalness")],
)  # fmt: skip
def test_p808_question_types(question: str, method: str, dimension: str) -> None:
    frame = read(WORKER.replace("MOS", question).replace(",2,", ",-2,"), "votes_per_worker")
    assert set(values(frame, "method", "dimension")) == {(method, dimension)}
    assert ("system_b" in frame) == (method == "ccr")
    again = FORMATS["votes_per_worker"].write(frame)
    assert set(again["question_type"]) == {question}
    assert again["vote"].tolist() == [4, -2, 5, 1]


def test_a_p808_comparison_is_with_the_reference_whichever_was_heard_first() -> None:
    frame = read(WORKER.replace("MOS", "CMOS").replace(",2,", ",-2,"), "votes_per_worker")
    assert values(frame, "system", "system_b", "stimulus_b_id", "score", "score_signed")[:2] == [
        ("reference", "x", "https://h/c/x_1.wav", 4, 4),
        ("reference", "y", "https://h/c/y_1.wav", -2, -2),
    ]
    pairs = {(p["a"], p["b"]): p["difference"] for p in analyse(frame)["pairs"]}
    assert pairs == {("reference", "x"): -4.5, ("reference", "y"): 2}
    turned = frame.rename(columns={
        "system": "system_b", "system_b": "system", "stimulus_id": "stimulus_b_id",
        "stimulus_b_id": "stimulus_id",
    }).assign(score=-frame["score"])  # fmt: skip
    for name in ("votes_per_worker", "votes_per_clip"):
        expected = FORMATS[name].write(frame)
        pd.testing.assert_frame_equal(FORMATS[name].write(turned), expected)
    same = frame.assign(system="reference", system_b="reference", trial_type="null_pair")
    _, left_out = exported(pd.concat([frame, same]), FORMATS["votes_per_worker"].shape)
    assert left_out == {"a pair of a system with itself": 4}


def test_p808_has_no_place_for_the_reference_of_a_degradation() -> None:
    frame = ratings(method="dcr", dimension="degradation", stimulus_b_id="r", system_b="natural")
    table = FORMATS["votes_per_worker"].write(frame)
    assert values(table, "question_type", "system", "file")[0] == (
        "DMOS", "system0", "stimulus_id0",
    )  # fmt: skip


def test_p808_votes_per_clip() -> None:
    frame = read(CLIP, "votes_per_clip")
    # Condition keys are joined as the toolkit joins them, in their alphabetical order.
    assert values(frame, "item_id", "system", "score") == [
        ("x_1.wav", "x____10", 3), ("x_1.wav", "x____10", 4), ("x_1.wav", "x____10", 5),
        ("y_1.wav", "y____10", 2), ("y_1.wav", "y____10", 3),
    ]  # fmt: skip
    assert frame["rater_id"].is_unique
    assert set(values(frame, "method", "dimension")) == {("p835", "sig")}
    table = FORMATS["votes_per_clip"].write(frame)
    assert list(table) == [
        "file_url", "n", "MOS_SIG", "std_sig", "95%CI_sig", "short_file_name", "system",
        "vote_1", "vote_2", "vote_3",
    ]  # fmt: skip
    assert values(table.iloc[:1], "n", "MOS_SIG", "std_sig") == [(3, 4.0, 1.0)]
    assert table["95%CI_sig"].tolist() == pytest.approx(
        [1.96 / math.sqrt(3), 1.96 * statistics.stdev([2, 3]) / math.sqrt(2)]
    )


def test_webmushra_mushra() -> None:
    frame = read(MUSHRA, "mushra")
    assert set(values(frame, "study_id", "item_id")) == {("t1", "trial1")}
    assert values(frame, "rater_id", "session_id", "system", "score") == [
        ("u1", "u1", "reference", 100), ("u1", "u1", "anchor35", 20),
        ("u2", "u2", "reference", 95), ("u2", "u2", "anchor35", 11),
    ]  # fmt: skip
    assert frame["comment"].tolist() == ["", 'dull, "very" dull\nand slow', "=cmd", ""]
    assert frame["rt_ms"].tolist() == [53210, 53210, 9999, 9999]
    assert set(values(frame, "method", "dimension")) == {("mushra", "quality")}
    assert "a@b.c" not in frame.to_csv()
    table = FORMATS["mushra"].write(frame)
    own = [c for c in MUSHRA.replace("\\\n", "").splitlines()[0].split(",") if c in table]
    assert list(table.drop(columns="rater_id")) == own


def test_webmushra_lss_spreads_dimensions() -> None:
    frame = read(LSS, "lss")
    assert values(frame, "item_id", "system", "dimension", "rt_ms") == [
        ("lss1", "C1", "rating1", 1200), ("lss1", "C1", "rating2", 1200),
        ("lss1", "C2", "rating1", 800), ("lss1", "C2", "rating2", 800),
        ("lss1", "C1", "rating1", 700), ("lss1", "C1", "rating2", 700),
    ]  # fmt: skip
    scores = frame["score"].tolist()
    assert scores[:3] + scores[4:] == [4, 5, 2, 3, 1]
    assert math.isnan(scores[3])
    # Two people, told apart by the questionnaire, whose answers are not kept.
    assert frame["rater_id"].nunique() == 2
    assert not {"ann", "bob"} & set(frame["rater_id"])
    table = FORMATS["lss"].write(frame)
    assert list(table) == [
        "session_test_id", "rater_id", "session_id", "trial_id", "stimuli_rating1",
        "stimuli_rating2", "stimuli", "rating_time",
    ]  # fmt: skip
    assert table["stimuli_rating1"].tolist() == [4, 2, 3]
    named = from_lss(table, ["sig", "bak"])
    assert named["dimension"].tolist() == ["sig", "bak", "sig", "sig", "bak"]
    # What one person rated twice in a trial takes two rows.
    twice = FORMATS["lss"].write(pd.concat([named, named]))
    assert sorted(twice["stimuli_rating1"]) == [2, 2, 3, 3, 4, 4]
    # Versions before the spread wrote one column, with blanks around the number.
    old = LSS.replace("stimuli_rating1,stimuli_rating2", "stimuli_rating")
    old = old.replace("4,5", " 4 ").replace("2,NA", " NA ").replace("3,1", " 3 ")
    single = read(old, "lss")
    assert single["score"].dropna().tolist() == [4, 3]
    assert "stimuli_rating" in FORMATS["lss"].write(single)


def test_webmushra_paired_comparison() -> None:
    frame = read(PAIRED, "paired_comparison")
    assert values(frame, "system", "system_b", "choice", "comment") == [
        ("reference", "C1", "a", ""), ("reference", "C2", "tie", "same"),
        ("reference", "C1", "b", ""), ("reference", "C2", "", ""),
    ]  # fmt: skip
    assert set(REQUIRED) <= set(frame)
    table = FORMATS["paired_comparison"].write(frame)
    assert table["choice_answer"].tolist() == ["correct", "undecided", "incorrect"]
    # The reference heard second is still the reference, and its choice still correct.
    turned = frame.assign(system=frame["system_b"], system_b="reference", choice=list("baab"))
    written = FORMATS["paired_comparison"].write(turned)
    assert set(written["choice_reference"]) == {"reference"}
    assert written["choice_answer"].tolist() == ["correct", "incorrect", "incorrect", "correct"]


def test_the_matrix_is_what_crowdmos_takes() -> None:
    """The example in the readme of mean-opinion-score 0.0.2, and the MOS printed there."""
    frame = read(MATRIX, "matrix")
    table = there_and_back(FORMATS["matrix"].write(frame))
    array = table[table["system"] == "a"].drop(columns=["system", "rater_id"])
    array = array.replace("", "nan").to_numpy(dtype=float)
    _ = np.nan
    given_there = np.array([[4, 5, _, 4, 3], [4, 4, 4, 5, 4], [_, 3, 5, 4, 1]])
    np.testing.assert_array_equal(array, given_there)
    assert round(float(np.nanmean(array)), 2) == round(analyse(frame)["systems"]["a"]["mos"], 2)
    assert round(float(np.nanmean(array)), 2) == 3.85


# As their tools write them; where a questionnaire's answers or condition keys stand, our ids do.
HEADERS = {
    "votes_per_worker": "HITId,workerid,assignment_id,assignmentstatus,file,short_file_name,vote,"
    "question_type,<system>",
    "votes_per_clip": "file_url,n,MOS,std,95%CI,short_file_name,<system>,vote_1,vote_2",
    "mushra": "session_test_id,<rater_id>,session_uuid,trial_id,rating_stimulus,rating_score,"
    "rating_time,rating_comment",
    "lss": "session_test_id,<rater_id>,<session_id>,trial_id,stimuli_rating,stimuli,rating_time",
    "paired_comparison": "session_test_id,<rater_id>,<session_id>,trial_id,choice_reference,"
    "choice_non_reference,choice_answer,choice_time,choice_comment",
    "matrix": "<system>,<rater_id>,weather",
}


@pytest.mark.parametrize("name", HEADERS)
def test_columns_are_named_and_ordered_as_the_tools_do(name: str) -> None:
    method = {"mushra": "mushra", "paired_comparison": "ab"}.get(name, "acr")
    frame = ratings(
        method=method, dimension="quality", system_b="z", choice="a", stimulus_id="clip",
        item_id="weather", system="full",
    ).iloc[:2]  # fmt: skip
    table = there_and_back(FORMATS[name].write(frame))
    assert ",".join(table) == re.sub("[<>]", "", HEADERS[name])


@pytest.mark.parametrize(
    ("name", "frame", "says"),
    [
        ("mushra", ratings(method="acr"), "row 2: mushra holds the methods mushra, not acr"),
        ("votes_per_worker", ratings(method="ab"), "not ab. Choose another"),
        ("votes_per_worker", ratings(method="ccr", system_b="z"), "row 2: votes_per_worker compar"),
        ("matrix", ratings(method="ccr"), "row 2: matrix holds the methods acr"),
        ("paired_comparison", ratings(), "As ratings, paired_comparison needs them."),
        ("paired_comparison", ratings(choice="c", system_b="z"), "row 2: choice 'c' is not a, b"),
        ("mushra", ratings(status="test"), "left out: 6 rows (status: test)."),
        ("matrix", ratings(rater_id="r", item_id="i", system="s"), "row 3: this rater scored"),
        ("matrix", ratings(item_id="system"), "an item called system"),
        ("matrix", ratings(dimension=list("aabbcc")), "has 3 dimensions ('a', 'b', 'c')"),
        ("votes_per_clip", ratings(dimension=list("aabbcc")), "has 3 questions ('MOS_A'"),
        ("mushra", ratings(score="fine"), "row 2: score 'fine' is not a number"),
        ("mushra", ratings().iloc[:0], "holds no rows"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, frame: pd.DataFrame, says: str) -> None:
    with pytest.raises(FormatError) as caught:
        FORMATS[name].write(frame)
    assert says in str(caught.value)


def test_frames_of_other_code_are_taken() -> None:
    """Missing values of any kind, numbers as ids, and labels that repeat."""
    frame = ratings(rater_id=range(6), comment=None, rt_ms=pd.NA, item_id=np.arange(6.0))
    rows, left_out = exported(pd.concat([frame, frame]), FORMATS["mushra"].shape)
    assert (len(rows), left_out) == (10, {"no score": 2})
    table = FORMATS["mushra"].write(frame)
    assert values(table, "rater_id", "trial_id", "rating_comment")[1] == ("1", "1", "")
    with pytest.raises(FormatError, match="has 1 dimensions, not 2"):
        from_lss(FORMATS["lss"].write(frame), ["a", "b"])
