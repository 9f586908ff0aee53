"""The study file: what is accepted, and what its errors say."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from listening_test.methods import QUALITY
from listening_test.ready import READY_STUDY
from listening_test.study import Study, StudyError, load_study
from spark.comparison import CompareSettings
from spark.evaluation.suite import builtin
from spark.text import normalise
from spark.training import questions
from spark.ui import EXAMPLES
from tests.listening import SYSTEMS, write_study

GOOD = """\
id: demo
title: A demo
systems:
  - name: one
    policy: full
  - name: two
    policy: spark
items:
  - {id: a, prompt: First.}
  - {id: b, prompt: Second.}
  - {id: c, prompt: Third.}
trials_per_rater: 4
ratings_per_stimulus: 6
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "demo.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_has_the_standard_wording_and_its_own_numbers(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, GOOD))
    (question,) = study.questions
    assert question.options == tuple(zip(range(5, 0, -1), QUALITY, strict=True))
    assert QUALITY == ("Excellent", "Good", "Fair", "Poor", "Bad")
    assert question.text == "How natural does the speech sound?"
    assert study.items_per_rater == 2
    # 6 ratings x 3 texts x 2 systems, 4 a session.
    assert study.planned_sessions == 9


def test_a_text_heard_once_lets_a_rater_take_a_share_of_the_conditions(tmp_path: Path) -> None:
    spread = GOOD.replace("rater: 4", "rater: 2\nsame_text: once")
    study = load_study(written(tmp_path, spread))
    assert (study.trials, study.items_per_rater, study.planned_sessions) == (2, 2, 18)
    with pytest.raises(
        StudyError, match=r"demo\.yaml line 12: trials_per_rater: .*3 texts.*1, 2\."
    ):
        load_study(written(tmp_path, spread.replace("rater: 2", "rater: 3")))
    with pytest.raises(StudyError, match=r"demo\.yaml line 12: same_text: .*give `trials_per_"):
        load_study(written(tmp_path, spread.replace("trials_per_rater: 2\n", "")))
    together = GOOD.replace("rater: 4", "rater: 2\nsame_text: together")
    assert load_study(written(tmp_path, together)).items_per_rater == 1


def test_the_hash_follows_the_content_not_the_layout_or_the_place(tmp_path: Path) -> None:
    first = load_study(written(tmp_path, GOOD))
    (tmp_path / "moved").mkdir()
    second = load_study(written(tmp_path / "moved", "# a note\n" + GOOD.replace("  - {", "  -  {")))
    assert first.sha256 == second.sha256
    changed = load_study(written(tmp_path, GOOD.replace("Third.", "Third!")))
    assert changed.sha256 != first.sha256


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("id: demo", "id: Demo Study", 1, "must be small letters, digits and hyphens"),
        ("title: A demo\n", "", 1, "title: is missing"),
        ("policy: spark", "policy: sparc", 7, "'full', 'spark' or 'confidence'"),
        ("    policy: spark", "    polisy: spark", 7, "known keys: name, folder, policy"),
        ("policy: spark", "policy: spark\n    folder: wavs", 6, "exactly one source"),
        ("id: b", "id: a", 8, "a is listed twice"),
        (", prompt: Second.", "", 10, "item b needs a `prompt:`"),
        ("rater: 4", "rater: 5", 12, "multiple of the 2 systems"),
        ("rater: 4", "rater: 2", 12, "back to back"),
        ("rater: 4", "rater: many", 12, "found 'many'"),
        ("stimulus: 6", "stimulus: 0", 13, "greater than or equal to 1"),
        ("title: A demo", "title: [A", 3, "not valid YAML"),
        ("title: A demo", "title: A demo\ntitle: B", 3, "duplicate key"),
        ("    policy: full", "    folder: nowhere", 5, "there is no folder"),
        ("stimulus: 6", "stimulus: 6\nrater: 3", 14, "(did you mean `raters`?)"),
        ("stimulus: 6", "stimulus:", 13, "is empty; give a value, or leave the key out"),
        ("stimulus: 6", "stimulus: true", 13, "is a yes or no"),
        ("stimulus: 6", "stimulus: .nan", 13, "(found nan)"),
        ("stimulus: 6", "stimulus: 6\n\tseed: 1", 14, "indent with spaces, not tabs"),
        ("title: A demo", "title: 2027", 2, "write it in quotes (found 2027)"),
        ("{id: a, prompt: First.}", "{id: 001, prompt: First.}", 9, "write it in quotes (found 1)"),
        ("{id: a, prompt: First.}", "a", 9, "known keys: id, prompt, talker (found 'a')"),
        ("stimulus: 6", "stimulus: 6\ngold: {id: x}", 14, "must be a list"),
        ("stimulus: 6", "stimulus: 6\npractice: []\nitems: []", 15, "duplicate key"),
        ("stimulus: 6", "stimulus: 6\nscreening: {environment: {pass: 3}}", 14, "passes, on_fail"),
        ("stimulus: 6", "stimulus: 6\nplatform: {name: mturk, code: AB12}", 14, "completed"),
        ("stimulus: 6", "stimulus: 6\nstop_rule: {until: 2027-01-31T10:00:00Z}", 14, "zero time"),
        ("stimulus: 6", "stimulus: &n 6\nraters: *n", 14, "`*n` stands for another part"),
        ("stimulus: 6", "stimulus: 6\nquestion: !!python/name:os.system x", 14, "question"),
        ("stimulus: 6", "stimulus: 6\n---\nid: b", 14, "another document"),
    ],
)
def test_errors_name_the_line_and_the_problem(
    tmp_path: Path, old: str, new: str, line: int, says: str
) -> None:
    assert old in GOOD
    with pytest.raises(StudyError) as caught:
        load_study(written(tmp_path, GOOD.replace(old, new, 1)))
    assert f"demo.yaml line {line}:" in str(caught.value)
    assert says in str(caught.value)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghijkl")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, r"line 2: `\*a` stands for another part"),
        ("a: " + "[" * 5000 + "]" * 5000, "brackets within brackets"),
        (GOOD + "# " + "x" * 1_000_000, r"1\.0 MB is no study file"),
        (GOOD + "seed: " + "9" * 6000, "not valid YAML: Exceeds the limit"),
        (GOOD + "stop_rule: {until: 2027-13-45}", "not valid YAML: month must be"),
    ],
    ids=["aliases", "brackets", "huge", "number", "date"],
)
def test_what_would_take_for_ever_or_ends_in_an_error_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(StudyError, match=says):
        load_study(written(tmp_path, text))


def test_a_byte_order_mark_is_no_part_of_the_study(tmp_path: Path) -> None:
    marked, plain = (load_study(written(tmp_path, mark + GOOD)) for mark in ("\ufeff", ""))
    assert marked.sha256 == plain.sha256


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "\x00"])
def test_what_is_no_study_at_all_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyError, match=r"demo\.yaml"):
        load_study(written(tmp_path, text))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="UTF-8"):
        load_study(tmp_path / "binary.yaml")


def test_the_ready_study_is_valid_and_mixes_answers_with_reading(tmp_path: Path) -> None:
    study = load_study(READY_STUDY)
    assert [system.policy for system in study.systems] == ["full", "spark", "confidence"]
    prompts = [item.prompt or "" for item in study.items]
    read_aloud = sum(prompt.lower().startswith("say:") for prompt in prompts)
    assert 0 < read_aloud < len(prompts)
    assert study.practice


def test_the_ready_study_is_heard_nowhere_else_first() -> None:
    study = load_study(READY_STUDY)
    clips = [*study.practice, *study.items]
    texts = {normalise(clip.prompt or "") for clip in clips}
    assert len(texts) == len(clips) == 9
    assert not texts & {normalise(text) for text, _ in EXAMPLES}
    assert not texts & {normalise(item.prompt) for item in builtin()}
    assert study.seed != CompareSettings().seed


def test_the_ready_study_asks_what_the_model_is_taught() -> None:
    asked = {
        normalise(template.format(**dict(zip("xy", fact.slots, strict=False))))
        for fact in questions.facts()
        if not fact.held_out
        for template in questions.templates(fact, unseen=False)
    }
    for item in load_study(READY_STUDY).items:
        text = normalise(item.prompt or "")
        assert text in asked or text.startswith("say "), item.prompt


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("non_inferiority_margin: 4", "two acr scores differ by 4 at most"),
        ("exclusion: {anchor_above: [90, 0.15]}", "add 7000 to `anchors:`"),
    ],
)
def test_a_margin_or_an_anchor_that_cannot_be_is_told_with_its_line(
    tmp_path: Path, extra: str, says: str
) -> None:
    path = write_study(tmp_path, extra=extra)
    with pytest.raises(StudyError, match=re.escape(says)) as told:
        load_study(path)
    line = path.read_text().splitlines().index(extra) + 1
    assert f"line {line}: " in str(told.value)


@pytest.mark.parametrize(
    ("method", "rule", "says"),
    [
        ("acr", "trap_errors: 0", "no trap; add `traps:`"),
        ("acr", "gold_errors: 0", "no gold clip; add `gold:`"),
        ("acr", "repeat_difference: 1.5", "no trial comes again; add `repeats:`"),
        ("acr\nrepeats: 2", "repeat_difference: 4", "differ by 4 at most"),
        ("ab", "correlation_below: 0.2", "are no scores"),
        ("acr", "reference_below: [90, 0.15]", "no hidden reference that is scored"),
    ],
)
def test_a_rule_that_could_never_leave_anybody_out_is_refused(
    tmp_path: Path, method: str, rule: str, says: str
) -> None:
    text = GOOD.replace("trials_per_rater: 4\n", "") + f"method: {method}\nexclusion:\n  {rule}\n"
    path = written(tmp_path, text)
    with pytest.raises(StudyError, match=re.escape(says)) as told:
        load_study(path)
    line = path.read_text().splitlines().index(f"  {rule}") + 1
    key = rule.split(":")[0]
    assert f"line {line}: exclusion.{key}: could never leave anybody out" in str(told.value)


def test_rules_that_can_fit_are_taken_and_a_study_on_record_keeps_its_own(tmp_path: Path) -> None:
    rules = "repeats: 2\nexclusion: {repeat_difference: 1.5, same_answer_share: 0.9}\n"
    study = load_study(written(tmp_path, GOOD.replace("rater: 4", "rater: 6") + rules))
    assert study.exclusion.repeat_difference == 1.5
    record = study.model_dump(mode="json") | {"exclusion": {"trap_errors": 0}}
    assert Study.model_validate(record).exclusion.trap_errors == 0
    short = GOOD.replace("rater: 4", "rater: 2\nsame_text: once")
    with pytest.raises(StudyError, match="a rater gives 2 answers, and 5 are the fewest"):
        load_study(written(tmp_path, short + "exclusion: {same_answer_share: 0.9}\n"))
    with pytest.raises(StudyError, match="a rater scores 2, and 3 are the fewest"):
        load_study(written(tmp_path, short + "exclusion: {correlation_below: 0.2}\n"))


def test_the_usual_margin_is_the_same_share_of_every_scale(tmp_path: Path) -> None:
    assert load_study(write_study(tmp_path)).non_inferiority_margin == 0.2
    mushra = f"method: mushra\nreference: {SYSTEMS[0]}\nanchors: [7000]"
    text = "{id: text-p}"
    study = load_study(write_study(tmp_path / "m", extra=mushra, practice=text))
    assert study.non_inferiority_margin == 5  # of 100, as 0.2 is of 1 to 5
    assert study.mid_anchor == "anchor-7000"
    mushra += "\nnon_inferiority_margin: 10"
    own = load_study(write_study(tmp_path / "o", extra=mushra, practice=text))
    assert own.non_inferiority_margin == 10
