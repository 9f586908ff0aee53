"""The Compare page with models that hear, converse and bring settings of their own."""

import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile

import app
from spark import cards, compare, models
from spark.comparison import CompareSettings, Exchange
from spark.models import ModelInfo
from spark.models.loading import Progress
from spark.sampling import SamplingSettings
from spark.shelf import Shelf
from spark.ui import ComparePage
from tests.forms import Ears, chosen, run
from tests.tiny import tiny_lm


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture
def page(lm):
    with gr.Blocks():
        return ComparePage(Shelf(lm, []))


# Spoken prompts


@pytest.fixture
def hearing():
    lm = tiny_lm()
    lm.listener = lm.dialogue = Ears(lm)
    lm.system_prompt = "You are tiny."
    with gr.Blocks():
        yield ComparePage(Shelf(lm, []))


def test_a_recording_is_asked_with_or_without_words(hearing, tmp_path):
    path = tmp_path / "question.flac"
    tone = np.sin(np.arange(24_000) / 20)
    soundfile.write(path, np.stack((tone, tone), axis=1) / 2, 48_000)
    _, last = run(hearing, prompt="", spoken=str(path))
    shown = last[hearing.board.shown]
    assert shown.comparison.prompt == "(a recording of 0.5 s)"
    assert shown.comparison.replies[0].trace.ids()
    assert hearing.form.lm.listener.lengths == [0.5]
    path.write_text("no sound")
    _, last = run(hearing, prompt="", spoken=str(path))
    assert "question.flac is not a sound file" in last[hearing.board.status]
    _, last = run(hearing, prompt="hello", spoken=None)
    assert last[hearing.board.shown].comparison.prompt == "hello"


def test_a_model_that_reads_says_why_it_does_not_hear(page, hearing):
    assert not page.form.spoken.visible
    assert "takes no spoken prompt: it reads text only" in page.form.deafness.value
    assert hearing.form.spoken.visible
    updates = chosen(page, "tiny")
    assert updates[page.form.spoken]["visible"] is False
    _, last = run(page, spoken="left/over/from/another/model.wav")
    assert last[page.board.shown].comparison.prompt == "hello there"


# Settings that follow the model, system prompts, conversations


@pytest.fixture
def two(lm):
    """A page with a second model that has settings, a system prompt and turns of its own."""
    other = replace(
        tiny_lm(layers=6, vocoder=False, max_tokens=80), name="other", title="Other",
        sampling=SamplingSettings(temperature=0.8, top_p=0.6, repetition_penalty=1.05),
        system_prompt="Be kind.", licence="Built with <other>.", silence="fetch its voice",
        notes=("On the CPU.",),
    )  # fmt: skip
    other.dialogue = Ears(other)
    shelf = Shelf(lm, [])
    shelf.add(other)
    with gr.Blocks():
        return ComparePage(shelf)


def test_choosing_a_model_brings_its_own_settings(two):
    form, updates = two.form, chosen(two, "other")
    assert (updates[form.temperature], updates[form.top_p]) == (0.8, 0.6)
    assert updates[form.repetition_penalty] == 1.05
    assert (updates[form.max_tokens]["value"], updates[form.max_tokens]["maximum"]) == (80, 80)
    assert (updates[form.system]["visible"], updates[form.system]["value"]) == (True, "Be kind.")
    assert updates[form.go_on]["visible"] is True
    back = chosen(two, "tiny")
    assert back[form.temperature] == CompareSettings().temperature
    assert back[form.system]["visible"] is back[form.go_on]["visible"] is False
    assert set(updates) == {*form.of_model, two.board.status} - {form.replays}


def test_a_model_that_is_loaded_first_says_so_before(lm, monkeypatch):
    shelf = Shelf(lm, [ModelInfo("large", "Large", True), ModelInfo("gone", "Gone", False, "none")])
    with gr.Blocks():
        page = ComparePage(shelf)
    found = []

    def load(name, **_):
        found.append(name)
        if len(found) == 1:
            raise ValueError("its files are damaged")
        return replace(tiny_lm(), name=name, title="Large")

    monkeypatch.setattr(models, "load", load)
    status = page.board.status
    told = page.choose_model("large")
    assert "Loading Large" in next(told)[status]
    assert found == []  # the visitor reads it while the weights are read
    assert "its files are damaged" in next(told)[status]
    assert len(list(page.choose_model("large"))) == 2
    assert [len(list(page.choose_model(name))) for name in ("large", "tiny", "gone")] == [1, 1, 1]


@pytest.fixture
def fetching(lm, monkeypatch):
    """A page that may fetch "big", whose hub and disk wait until the page has told how far."""
    big = ModelInfo("big", "Big", False, "its weights are not here", to_fetch=18 * 10**9)
    seen = threading.Event()

    def step(watch, doing):
        seen.clear()
        watch(Progress(doing, 3 * 10**9, 18 * 10**9))
        assert seen.wait(60)

    def load(name, watch, **_):
        step(watch, "Loading Big")
        return replace(tiny_lm(), name=name, title="Big")

    monkeypatch.setattr(models, "fetch", lambda name, watch: step(watch, f"Fetching {name}"))
    monkeypatch.setattr(models, "load", load)
    with gr.Blocks():
        page = ComparePage(Shelf(lm, [big], fetches=True))
    return page, seen


def test_the_page_tells_how_far_a_first_use_is(fetching):
    page, seen = fetching
    assert ("Big (fetches 18 GB first)", "big") in page.form.model.choices
    said = []
    for update in page.choose_model("big"):
        said.append(update[page.board.status])
        if "GB" in said[-1]:
            seen.set()
    assert "Fetching big: 3.00 of 18.00 GB (16 %) ..." in said[1]
    assert "Loading Big: 3.00 of 18.00 GB (16 %) ..." in said[2]
    assert "Model: Big." in said[3]
    assert page.form.shelf.progress("big") is None
    assert ("Big", "big") in page.form.shelf.choices()


def test_nothing_is_fetched_by_a_link_or_a_run(fetching, monkeypatch):
    """Tens of gigabytes are fetched where somebody chose so, and not on a server for all."""
    page, _ = fetching
    monkeypatch.setattr(models, "fetch", lambda *_: pytest.fail("was fetched"))
    linked = page.share.load(SimpleNamespace(session_hash="v", query_params={"model": "big"}))
    assert "choose it in the menu of models, which fetches its 18 GB" in linked[page.board.status]
    _, last = run(page, model="big")
    assert "choose it in the menu of models" in last[page.board.status]
    shelf = Shelf(tiny_lm(), list(page.form.shelf.infos.values()))
    assert "its weights are not here" in shelf.why_not("big")


def test_a_model_is_told_with_its_size_licence_and_what_it_needs(two):
    updates = chosen(two, "other")
    facts = updates[two.form.facts]
    assert "6 layers" in facts
    other = two.form.shelf.get("other")
    parameters = sum(tensor.numel() for tensor in other.transformer.state_dict().values())
    assert f"{parameters / 1e6:.1f} million parameters" in facts
    assert "none: fetch its voice" in facts
    assert "none: it reads text only" in facts
    assert "80 tokens" in facts
    assert "On the CPU." in facts
    assert "Built with &lt;other&gt;." in updates[two.form.credit]
    assert "fetch its voice" in updates[two.board.status]
    plain = cards.model_facts(two.form.lm)
    assert "8000 Hz" in plain
    assert "120 tokens, about 4 s of speech" in plain


def test_the_app_begins_with_the_model_it_was_given_and_offers_its_own(lm, monkeypatch):
    """`app.py --model FOLDER`: the example is the small model's, as a large one takes minutes."""
    given, shown = replace(tiny_lm(), name="my-folder", title="Large"), compare.compare(lm, "hello")
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", "my/my-folder"])
    monkeypatch.setattr(app, "load", {"embedded": lm}.__getitem__)
    monkeypatch.setattr(app, "fitting", lambda name, told: {"my/my-folder": given}[name])
    monkeypatch.setattr(app, "finished_example", lambda one: shown if one is lm else None)
    monkeypatch.setattr(app, "ensure_ready_study", lambda *_: None)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    built = []

    def launch(demo, *_):
        built.append(demo)
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        app.main()
    blocks = {block.elem_id: block for block in built[0].blocks.values() if block.elem_id}
    assert blocks["model"].value == "my-folder"
    assert {("Large", "my-folder"), (lm.title, lm.name)} <= set(blocks["model"].choices)
    assert f"Example of {lm.name}" in blocks["status"].value


def test_a_study_of_ones_own_takes_the_place_of_the_apps(lm, monkeypatch, tmp_path):
    offered = []
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setattr(app, "load", {"embedded": lm}.__getitem__)
    monkeypatch.setattr(app, "finished_example", lambda one: None)
    monkeypatch.setattr(app, "ensure_ready_study", lambda *_: offered.append("ready"))
    monkeypatch.setattr(app, "offer_study", lambda folder, studies: offered.append(folder))
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)

    def launch(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "launch", launch)
    for folder in ("", str(tmp_path)):
        monkeypatch.setenv("LISTENING_TEST_STUDY", folder)
        with pytest.raises(KeyboardInterrupt):
            app.main()
    assert offered == ["ready", tmp_path]


def test_device_and_bits_reach_the_models_that_are_loaded_later(lm, monkeypatch, capsys):
    asked = []

    def load(name, watch=None, told=None, **options):
        asked.append((name, options))
        return replace(tiny_lm(), name=name)

    monkeypatch.setattr(app, "load", {"embedded": lm}.__getitem__)
    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(app, "finished_example", lambda one: None)
    monkeypatch.setattr(app, "ensure_ready_study", lambda *_: None)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)

    def launch(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "launch", launch)
    shelves = []
    monkeypatch.setattr(app, "Shelf", lambda *given, **more: (
        shelves.append(Shelf(*given, **more)), shelves[-1])[1])  # fmt: skip
    for given in ([], ["--model", "my/folder"]):
        monkeypatch.setattr(sys, "argv", ["app.py", *given, "--device", "cpu", "--bits", "8"])
        with pytest.raises(KeyboardInterrupt):
            app.main()
    assert asked == [("my/folder", {"device": "cpu", "bits": 8})]
    monkeypatch.setattr(models, "fetch", lambda *_: None)
    shelves[0].get("glm-4-voice-9b", fetch=True)
    assert asked[1:] == [("glm-4-voice-9b", {"device": "cpu", "bits": 8})]
    refused = ((["--device", "warp"], "there is no device 'warp'"), (["--bits", "4"], "8"))
    for wrong, says in refused:
        monkeypatch.setattr(sys, "argv", ["app.py", *wrong])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


def test_a_card_without_sound_says_why(two):
    _, last = run(two, model="other")
    for player in two.board.players:
        assert "no vocoder here; its facts, under Settings, say what is missing" in last[player]
    _, last = run(two, max_tokens=1)
    assert all("the reply holds no speech" in last[player] for player in two.board.players)


def test_the_menu_of_exit_heads_says_where_none_are_fitted(two):
    form, other = two.form, two.form.shelf.get("other")
    assert [label for label, _ in form.head.choices] == ["fitted", "untrained"]
    fitted, other.exit_heads = other.exit_heads, {}
    try:
        menu = chosen(two, "other")[form.head]
    finally:
        other.exit_heads = fitted
    assert menu["choices"] == [("fitted (none yet: untrained)", "fitted"),
                               ("untrained", "untrained")]  # fmt: skip
    assert menu["value"] == "fitted"
    assert chosen(two, "tiny")[form.head]["choices"][0] == ("fitted", "fitted")


def test_a_link_restores_what_the_model_takes(two):
    query = {"model": "other", "system": "Be brief.", "max_tokens": "30", "top_p": "0.5"}
    updates = two.share.load(SimpleNamespace(session_hash="v", query_params=query))
    form = two.form
    assert two.board.status not in updates
    assert (updates[form.system]["value"], updates[form.system]["visible"]) == ("Be brief.", True)
    assert (updates[form.max_tokens]["value"], updates[form.max_tokens]["maximum"]) == (30, 80)
    assert updates[form.top_p] == 0.5
    assert updates[form.temperature] == 0.8  # not in the link: the model's own
    assert set(updates) <= set(two.share.load_outputs())


def test_settings_of_the_form_reach_the_run(two):
    asked = {"model": "other", "system": "Be brief.", "max_tokens": 10, "exit_layer": 2}
    _, last = run(two, repetition_penalty=1.05, temperature=0.8, **asked)
    done = last[two.board.shown].comparison
    assert two.form.shelf.get("other").dialogue.system == "Be brief."
    assert done.settings.system == "Be brief."
    assert [len(reply.trace.steps) for reply in done.replies] == [10, 10, 10]
    drawn = done.replies[0].trace.sampling
    assert (drawn.temperature, drawn.repetition_penalty) == (0.8, 1.05)
    _, last = run(two, **{**asked, "system": "Be kind."})
    assert last[two.board.shown].comparison.settings.system is None  # its own
    _, last = run(two, system="left over from another model")
    assert last[two.board.shown].comparison.settings.system is None


def test_a_conversation_goes_on_from_full_depths_answer(two):
    dialogue = two.form.shelf.get("other").dialogue
    asked = {"model": "other", "exit_layer": 2, "max_tokens": 20, "system": "Be kind."}
    _, last = run(two, prompt="hello", **asked)
    first = last[two.board.shown]
    _, last = run(two, prompt="good day", go_on=True, shown=first, **asked)
    second = last[two.board.shown]
    past = first.comparison.replies[0]
    assert [(turn.role, turn.text, turn.ids) for turn in dialogue.turns] == [
        ("user", "hello", ()),
        ("assistant", "", tuple(past.trace.ids())),
        ("user", "good day", ()),
    ]
    assert "<b>You:</b> hello" in last[two.board.conversation]
    assert len(second.comparison.continued()) == 2
    _, last = run(two, prompt="good day", shown=second, **asked)
    assert last[two.board.conversation] == ""
    assert last[two.board.shown].comparison.earlier == ()
    _, last = run(two, prompt="good day", go_on=True, shown=second)  # another model's answer
    assert last[two.board.shown].comparison.earlier == ()
    for past in ("<b>x</b>", "<img>"):
        text = cards.conversation([Exchange(past, None, (), past)], "<i>")
        assert past not in text


def test_a_conversation_is_not_lost_with_a_run_that_fails(two, monkeypatch):
    asked = {"model": "other", "exit_layer": 2, "max_tokens": 20, "system": "Be kind."}
    _, last = run(two, prompt="hello", **asked)
    first = last[two.board.shown]

    def broken(*given, **more):
        yield compare.Progress("full", None)

    with monkeypatch.context() as patched:
        patched.setattr(compare, "stream", broken)
        _, last = run(two, prompt="and then", go_on=True, shown=first, **asked)
    assert last[two.board.shown] is first
    two.form.shelf.get("other").dialogue.ids = [3] * 1010
    _, last = run(two, prompt="and then", go_on=True, shown=first, **asked)
    assert "1010 tokens" in last[two.board.status]
    assert "Begin a new one" in last[two.board.status]
    assert last[two.board.shown] is first


def test_a_spoken_question_stays_in_the_conversation(hearing, tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, np.sin(np.arange(12_000) / 20) / 2, 16_000)
    _, last = run(hearing, prompt="", spoken=str(path), system="You are tiny.")
    _, last = run(hearing, prompt="hello", spoken=None, go_on=True, system="You are tiny.",
                  shown=last[hearing.board.shown])  # fmt: skip
    turns = hearing.form.lm.dialogue.turns
    assert len(turns[0].heard) == 1
    assert "(a recording of 0.8 s)" in last[hearing.board.conversation]
