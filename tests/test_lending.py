"""A GPU lent for each run, as ZeroGPU lends it: another process, everything pickled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from spark import lending, lent, models, shelf
from spark.comparison import CompareSettings
from spark.lending import Permit
from spark.models.fits import TooLarge
from spark.shelf import Shelf
from spark.ui import ComparePage
from tests.tiny import tiny_lm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def found():
    """What a page did in a process of its own, with the stand-in for `spaces`."""
    paths = os.pathsep.join([str(ROOT / "tests" / "zerogpu"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "SPACES_ZERO_GPU": "true",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "zerogpu" / "app.py")], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=500,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_lent_run_gives_what_a_run_at_home_gives(found):
    assert found["lends"]
    assert found["away"] == found["home"]
    assert None not in found["away"]["heard"] + found["away"]["mos"]  # judged here
    assert found["asked_at_home"] == 0


def test_it_runs_in_another_process_that_changes_nothing_here(found):
    (place,) = found["child"]["places"]
    assert place.startswith("changed by ")
    assert place != f"changed by {found['child']['here']}"
    assert found["child"]["title"] == "Tiny (random weights)"


def test_the_time_asked_for_is_told(found):
    (asked,) = found["asked"]
    assert any(f"Asking for a GPU for up to {asked:.0f} s" in text for text in found["said"])
    assert found["replays"] == 0


def test_what_a_run_asks_for_is_told_before_it_and_what_cannot_be_known(found):
    assert f"says so: {found['first']:.0f} s for a short question" in found["loan"]
    assert "does not tell beforehand; if it is too little, its refusal says" in found["loan"]


def test_stop_reaches_the_other_process_and_keeps_what_is_there(found):
    assert found["stop"]["stopped"]
    assert "Stopped" in found["stop"]["status"]
    ids, whole = found["stop"]["ids"], found["away"]["ids"]
    assert ids[:-1] == whole[: len(ids) - 1]
    assert ids[-1] == whole[len(ids) - 1][: len(ids[-1])]  # it may have been cut off


def test_a_page_that_is_closed_ends_the_loan(found):
    assert found["closed_after_s"] < 30  # twenty replays were to come


def test_messages_for_the_visitor_come_back_in_words(found):
    assert found["refused"] == [
        "Refused(message='The prompt is too long. Use at most 200 letters.')"
    ]
    (spoken,) = found["spoken"]
    assert "takes no spoken prompt: it reads text only" in spoken


def test_a_run_ends_before_its_loan_does(found):
    assert found["late"] == ["Finished", "TimeUp"]


def test_what_the_platform_says_is_shown(found):
    assert "ZeroGPU quota exceeded: You have 7s left. &lt;b&gt;Try" in found["quota"]
    assert found["button"] is True


def test_without_the_package_functions_are_left_alone(monkeypatch):
    def numbers(count):
        yield from range(count)

    monkeypatch.setattr(lending, "_spaces", None)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert lending.gpu(duration=lambda count: 1.0)(numbers) is numbers
    assert not lending.lends()


def test_a_permit_is_seen_by_whoever_knows_its_path():
    permit = Permit.given()
    assert Path(permit.path).parent == Path(tempfile.gettempdir())
    other = Permit(permit.path)
    assert not other.withdrawn()
    permit.withdraw()
    assert other.withdrawn()
    other.withdraw()  # twice is once


def test_seconds_grow_with_prompt_reply_and_replays():
    lm = tiny_lm()
    asked = lent.Asked(0, "tiny", "hello", CompareSettings(), Permit("nowhere"))
    plain = lent.seconds(lm, asked)

    def longer(**changes):
        return lent.seconds(lm, replace(asked, **changes)) - plain

    assert longer(prompt="hello" * 100) > 0
    assert longer(live=True) == pytest.approx(3 * 120 / 25 * 0.2)
    assert longer(replays=2) == pytest.approx(3 * 2 * 120 * 0.01, rel=0.01)
    shorter = longer(settings=CompareSettings(max_tokens=20))
    assert shorter == pytest.approx(-3 * 100 * 0.01 - 3 * 100 / 25 * 0.2, rel=0.01)


def test_a_large_models_reply_fits_into_a_visitors_minutes():
    """Step's 15.3 GB at the length that the page offers first."""
    lm = tiny_lm()
    heavy = type(lm.transformer)
    try:
        size = heavy.nbytes
        heavy.nbytes = property(lambda _: int(15.3e9))
        lm.max_tokens = 2048
        settings = CompareSettings(max_tokens=lent.LENT_TOKENS)
        assert 30 < lent.seconds(lm, lent.Asked(0, "t", "hello", settings, Permit(""))) < 90
    finally:
        heavy.nbytes = size


# The shelf


def test_everything_is_loaded_at_once_where_gpus_are_lent(monkeypatch):
    infos = [
        models.ModelInfo("good", "Good", True),
        models.ModelInfo("bad", "Bad", True),
        models.ModelInfo("absent", "Absent", False, "its weights are not here"),
    ]
    loaded = []

    def load(name, watch, **options):
        loaded.append((name, options))
        if name == "bad":
            raise ValueError("its files are damaged")
        return replace(tiny_lm(), name=name)

    monkeypatch.setattr(models, "load", load)
    made = Shelf(tiny_lm(), infos)
    assert loaded == []
    made.load_all()
    assert [name for name, _ in loaded] == ["good", "bad"]
    assert made.why_not("good") == ""
    assert "its files are damaged; models are loaded when this app starts" in made.why_not("bad")
    assert "preload_from_hub" in made.why_not("absent")
    assert shelf.numbered(made.number) is made


def test_a_model_that_fits_in_8_bits_only_is_loaded_so(monkeypatch):
    asked = []

    def load(name, watch, **options):
        asked.append(options)
        if not options:
            raise TooLarge("8-bit weights would fit: --bits 8")
        return replace(tiny_lm(), name=name)

    monkeypatch.setattr(models, "load", load)
    made = Shelf(tiny_lm(), [models.ModelInfo("large", "Large", True)])
    assert made.get("large").name == "large"
    assert asked == [{}, {"bits": 8}]


@pytest.fixture
def small_machine(monkeypatch):
    """A machine with room for one of the large models, "one" and "two"; those in its memory."""
    held = weakref.WeakValueDictionary()

    def load(name, watch, **options):
        if [other for other in held if other != name]:
            raise TooLarge("too large")
        lm = held[name] = replace(tiny_lm(), name=name, title=name.title())
        return lm

    monkeypatch.setattr(models, "load", load)
    return held


LARGE = [models.ModelInfo(name, name.title(), True) for name in ("one", "two")]


def test_a_model_makes_room_for_the_next_one(small_machine):
    made = Shelf(tiny_lm(), LARGE)
    made.get("one")
    assert list(small_machine) == ["one"]
    assert made.get("two").name == "two"
    assert list(small_machine) == ["two"]  # nothing refers to the first any more
    assert made.loaded("one") is None
    assert made.loaded("tiny") is not None  # what cannot be loaded again stays
    assert [name for _, name in made.choices()] == ["one", "two", "tiny"]
    assert made.get("one").name == "one"


def test_a_model_in_use_keeps_its_room(small_machine):
    made = Shelf(tiny_lm(), LARGE)
    with made.using("one"):
        with pytest.raises(TooLarge, match="One answers somebody just now: try again"):
            made.get("two")
        assert list(small_machine) == ["one"]
    assert made.get("two").name == "two"


def test_a_run_uses_its_model_until_it_ends(small_machine):
    made = Shelf(tiny_lm(), LARGE)
    permit = Permit.given()
    asked = lent.Asked(made.number, "one", "hello", CompareSettings(max_tokens=8), permit)
    events = lent.run(asked)
    next(events)
    with pytest.raises(TooLarge):
        made.get("two")
    events.close()  # the visitor left
    del events
    permit.withdraw()
    assert made.get("two").name == "two"


def test_the_model_to_begin_with_makes_room_where_it_can_be_loaded_again(small_machine):
    made = Shelf(models.load("one", watch=None), LARGE, source="one")
    with gr.Blocks():
        page = ComparePage(made)
    made.get("two")
    assert list(small_machine) == ["two"]
    assert page.form.lm.name == "one"


def test_where_gpus_are_lent_nothing_makes_room(small_machine, monkeypatch):
    monkeypatch.setattr(shelf, "lends", lambda: True)
    made = Shelf(tiny_lm(), LARGE)
    made.load_all()
    assert list(small_machine) == ["one"]
    assert "too large; models are loaded when" in made.why_not("two")


def test_nobody_waits_for_a_model_that_another_visitor_loads(monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()

    def load(name, **_):
        begun.set()
        assert goes_on.wait(60)
        return replace(tiny_lm(), name=name)

    monkeypatch.setattr(models, "load", load)
    made = Shelf(tiny_lm(), [models.ModelInfo("large", "Large", True)])
    with ThreadPoolExecutor(3) as pool:
        both = [pool.submit(made.get, "large") for _ in range(2)]
        assert begun.wait(60)
        assert pool.submit(made.get, "tiny").result(60).name == "tiny"
        assert not any(one.done() for one in both)
        goes_on.set()
        assert both[0].result(60) is both[1].result(60)  # loaded once


def test_only_a_model_on_a_gpu_waits_for_a_loan(monkeypatch):
    monkeypatch.setattr(shelf, "lends", lambda: True)
    lm = tiny_lm()
    assert not Shelf(lm, []).lent("tiny")
    monkeypatch.setattr(type(lm.transformer), "device", type("D", (), {"type": "cuda"})())
    assert Shelf(lm, []).lent("tiny")
    monkeypatch.setattr(shelf, "lends", lambda: False)
    assert not Shelf(lm, []).lent("tiny")  # a GPU of one's own
