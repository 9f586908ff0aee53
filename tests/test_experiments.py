"""An evaluation's folder read back, filtered, heard again; and what the page says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark.comparison import CompareSettings
from spark.engine import Engine
from spark.evaluation import experiment, runner, summary
from spark.evaluation.experiment import Reply, Row, chosen
from spark.evaluation.listing import items_table
from spark.evaluation.replay import replay
from spark.evaluation.tradeoff import MEASURES, placed
from spark.pareto import unbeaten
from spark.plots.evaluation import pareto_figure
from spark.plots.lens import lens_figure, lens_sentence
from spark.sampling import seed_for
from spark.schedule import FixedExit, FullDepth
from spark.shelf import Shelf
from spark.ui import ExperimentsPage
from tests.evaluated import POLICIES, evaluate
from tests.tiny import tiny_lm

LM = tiny_lm()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one evaluation, two folders down."""
    root = tmp_path_factory.mktemp("root")
    evaluate(LM, root / "tries" / "first")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to be written to."""
    return Path(shutil.copytree(made, tmp_path / "root"))


def page(root: Path) -> ExperimentsPage:
    with gr.Blocks() as demo:
        return ExperimentsPage(Shelf(LM, []), root, demo)


def test_a_folder_is_read_as_a_plain_loop_reads_it(made: Path) -> None:
    found = experiment.read(made, "tries/first")
    assert (found.policies, found.families) == (POLICIES, ("factual", "reasoning"))
    assert [row.item_id for row in found.rows] == ["i0", "i1", "i2", "i3", "i4"]
    seen = 0
    for line in (made / "tries" / "first" / runner.ITEMS).read_text().splitlines():
        held = json.loads(line)
        row = next(row for row in found.rows if row.item_id == held["item_id"])
        reply = next(reply for reply in row.replies if reply.policy == held["policy"])
        assert (row.family, row.prompt) == (held["family"], held["prompt"])
        seen += 1
        if "refused" in held:
            assert reply == Reply(held["policy"], refused=held["refused"])
            continue
        assert (reply.text, reply.heard) == (held["text"], held["heard"])
        assert reply.right_heard is held["correct_heard"]
        assert reply.wer == (pytest.approx(held["wer"]) if held["wer"] is not None else None)
        assert (reply.mos, reply.depth) == (held["mos_predicted"], held["mean_depth_speech"])
        assert (reply.traffic, reply.seconds) == (held["traffic_ratio"], held["audio_s"])
    assert seen == 15
    assert all(reply.refused for reply in found.rows[4].replies)


REPLIES = st.builds(
    Reply, st.just("?"), right_heard=st.none() | st.booleans(),
    edits=st.none() | st.integers(0, 9), words=st.none() | st.integers(0, 9),
)  # fmt: skip


@st.composite
def tables(draw: Any) -> list[Row]:
    rows = []
    for n in range(draw(st.integers(0, 6))):
        words = draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1))
        replies = tuple(
            Reply(word, right_heard=made.right_heard, edits=made.edits, words=made.words)
            for word, made in ((word, draw(REPLIES)) for word in words)
        )
        rows.append(Row(f"i{n}", draw(st.sampled_from("xy")), "s", "?", "", replies))
    return rows


@given(tables(), st.sampled_from([None, "x", "y"]), st.sampled_from([None, "a", "b"]),
       st.booleans(), st.sampled_from(["asked", "wer"]))  # fmt: skip
def test_filters_are_those_of_a_slow_loop(rows, family, policy, disagreed, order) -> None:
    kept, worst = [], []
    for row in rows:
        if family is not None and row.family != family:
            continue
        if policy is not None and policy not in [reply.policy for reply in row.replies]:
            continue
        verdicts = [r.right_heard for r in row.replies if r.right_heard is not None]
        if disagreed and (not verdicts or all(v == verdicts[0] for v in verdicts)):
            continue
        largest = None
        for reply in row.replies:
            if policy is not None and reply.policy != policy:
                continue
            if reply.edits is not None and reply.words:
                rate = reply.edits / reply.words
                largest = rate if largest is None or rate > largest else largest
        kept.append(row)
        worst.append(largest)
    found = chosen(rows, family, policy, disagreed, order)
    if order == "asked":
        assert found == kept
        return
    left = list(zip(kept, worst, strict=True))
    for row in found:  # each has no smaller one before it, and ties keep their order
        best = max(left, key=lambda pair: -1 if pair[1] is None else pair[1])
        assert row is best[0]
        left = [pair for pair in left if pair[0] is not row]
    assert not left


@given(st.dictionaries(st.text(max_size=2), st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_the_front_is_what_nothing_undercuts(at) -> None:
    wanted = []
    for name, (cost, quality) in at.items():
        beaten = False
        for c, q in at.values():
            if (c < cost and q >= quality) or (c <= cost and q > quality):
                beaten = True
        if not beaten:
            wanted.append(name)
    found = unbeaten({name: (cost, -quality) for name, (cost, quality) in at.items()})
    assert sorted(found) == sorted(wanted)
    assert [at[name][0] for name in found] == sorted(at[name][0] for name in wanted)


def test_the_plot_stands_where_the_summary_says(made: Path) -> None:
    held = json.loads((made / "tries" / "first" / summary.SUMMARY).read_text())
    for key, measure in MEASURES.items():
        at = placed(held, key)
        assert set(at) == {n for n, of in held["policies"].items() if of[key] is not None}
        _, marks = pareto_figure(held, (key,)).data
        for name, x, y in zip(marks.text, marks.x, marks.y, strict=True):
            of = held["policies"][name]
            value = of[key] if key == "mos_predicted" else of[key]["value"]
            assert x == pytest.approx(100 * of["traffic_ratio"])
            assert y == pytest.approx(measure.scale * value)


def test_a_measure_that_no_policy_has_leaves_an_empty_panel(made: Path) -> None:
    held = json.loads((made / "tries" / "first" / summary.SUMMARY).read_text())
    mute = {name: {**of, "sets": None} for name, of in held["policies"].items()}
    line, marks = pareto_figure({**held, "policies": mute}, ("sets",)).data
    assert (len(line.x), len(marks.x)) == (0, 0)


def test_an_item_sounds_as_the_engine_makes_it(made: Path) -> None:
    found = experiment.read(made, "tries/first")
    row = found.rows[1]
    again = replay(LM, found, row)
    assert [reply.policy for reply in again.replies] == list(POLICIES)
    assert all(reply.same for reply in again.replies)
    settings = CompareSettings(**found.told["settings"] | {"seed": seed_for(7, "i1")})
    for place, policy in ((0, FullDepth()), (2, FixedExit(2))):
        engine = Engine(LM)
        steps = engine.generate(
            engine.prefill(LM.encode_prompt(row.prompt)), policy, settings.sampling(), 60
        )
        for _ in steps:
            pass
        assert LM.vocoder is not None
        expected = LM.vocoder.decode(steps.trace.codes())
        assert np.array_equal(again.replies[place].pcm, expected)
        if place == 0:
            assert again.lens is not None
            assert again.lens.overlap.shape == (4, len(steps.trace.steps))
    assert again.lens is not None
    drawn = lens_figure(again.lens)
    assert np.allclose(drawn.data[0].z, again.lens.overlap.numpy())
    assert len(drawn.data[1].x) == int((~again.lens.same).sum())
    assert "speech slots" in lens_sentence(again.lens)


def test_other_weights_are_found_out(made: Path) -> None:
    found = experiment.read(made, "tries/first")
    other = replay(tiny_lm(3), found, found.rows[1])
    for now, then in zip(other.replies, found.rows[1].replies, strict=True):
        assert now.same is (now.text == then.text)
    assert not all(reply.same for reply in other.replies)
    shown = page(made)
    shown.shelf.add(tiny_lm(3))
    told = shown.hear("tries/first", "i1")[shown.players]
    assert "Not the evaluation's words." in told


def test_folders_are_found_by_name_below_the_root_only(root: Path, tmp_path: Path) -> None:
    outside = Path(shutil.copytree(root / "tries" / "first", tmp_path / "outside"))
    (root / "link").symlink_to(outside)
    (root / "calibration").mkdir()
    (root / "calibration" / "run.json").write_text("{}")
    assert experiment.folders(root) == ["tries/first"]
    for name in ("link", "../outside", str(outside), "", "calibration", "none"):
        with pytest.raises(ValueError, match="no evaluation"):
            experiment.read(root, name)
    assert experiment.folders(tmp_path / "nowhere") == []


def test_damage_is_told_in_a_sentence(root: Path) -> None:
    folder = root / "tries" / "first"
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    damages = (
        (summary.SUMMARY, None, "not finished"),
        (summary.ASKED, None, "not finished"),
        (summary.SUMMARY, b"{", "damaged"),
        (summary.SUMMARY, b"[]", "damaged"),
        (summary.ASKED, b"{}", "damaged"),
        (summary.ASKED, b"\xff", "damaged"),
        (runner.ITEMS, None, "damaged"),
        (runner.ITEMS, b"", "damaged"),
        (runner.ITEMS, b"{}\n", "damaged"),
        (runner.ITEMS, b"nonsense\n", "damaged"),
        (runner.ITEMS, b'{"item_id": "i0", "policy": "full"}\n', "damaged"),
    )
    shown = page(root)
    for name, content, says in damages:
        for file, whole in kept.items():
            (folder / file).write_bytes(whole)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"first is {says}.*run its command again"):
            experiment.read(root, "tries/first")
        told = shown.choose("tries/first")
        assert says in told[shown.note]
        assert told[shown.shown]["visible"] is False


def test_a_running_evaluation_is_not_touched(root: Path) -> None:
    path = root / "tries" / "first" / runner.ITEMS
    torn = path.read_bytes() + b'{"item_id": "i9", "pol'
    path.write_bytes(torn)
    assert len(experiment.read(root, "tries/first").rows) == 5
    assert path.read_bytes() == torn


def test_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    row = Row("<b>", evil, "s", evil, evil, (Reply("full", evil, evil), Reply(evil, refused=evil)))
    assert "<script" not in items_table([row])
    assert "<b>" not in items_table([row])


def test_the_page_says_how_to_make_an_evaluation(tmp_path: Path) -> None:
    shown = page(tmp_path)
    told = shown.opened()
    assert f"python -m spark.evaluation --suite builtin --limit 60 --out {tmp_path}" in (
        told[shown.note]
    )
    assert told[shown.shown]["visible"] is False


def test_what_cannot_be_heard_says_why(root: Path) -> None:
    shown = page(root)
    assert "Choose an item" in shown.hear("tries/first", None)[shown.told]
    assert "no item none" in shown.hear("tries/first", "none")[shown.told]
    assert "cannot read /" in shown.hear("tries/first", "i4")[shown.told]
    path = root / "tries" / "first" / summary.ASKED
    told = json.loads(path.read_text())
    for change, says in (
        ({"spoken": True}, "asked aloud"),
        ({"settings": {**told["settings"], "new": 1}}, "another version"),
        ({"model": "big", "title": "Big"}, "python app.py --model big"),
    ):
        path.write_text(json.dumps({**told, **change}))
        assert says in shown.hear("tries/first", "i0")[shown.told]
