"""What the pages say, without a browser: figures, escaping, findings, links, handlers."""

import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from spark import about, cards, compare, link, plots
from spark.comparison import CompareSettings, Exchange
from spark.modality import Modality
from spark.models import ModelInfo
from spark.models.base import Heard, Prompt
from spark.sampling import SamplingSettings
from spark.shelf import Shelf
from spark.timing import Timing
from spark.ui import ComparePage
from tests.tiny import tiny_lm

REQUEST = SimpleNamespace(session_hash="visitor", query_params={})


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def comparison(lm):
    return compare.compare(lm, "hello there", listen=False)


@pytest.fixture(scope="module")
def page(lm):
    barred = ModelInfo("big", "Big model", False, "it needs a GPU; run the lab on one")
    with gr.Blocks():
        return ComparePage(Shelf(lm, [barred]))


def form(page, **changes):
    """What stands in the form, by component."""
    plain = CompareSettings()
    values = {
        "prompt": "hello there", "model": "tiny", "schedule": plain.schedule, "exit_layer": 3,
        "head": plain.head, "measure": plain.measure, "threshold": plain.threshold,
        "temperature": plain.temperature, "top_p": plain.top_p, "seed": 1, "replays": 0,
        "repetition_penalty": 1.0, "max_tokens": 120, "system": "", "go_on": False,
        "blind": False,
    }  # fmt: skip
    shown = changes.pop("shown", None)
    asked = {getattr(page.form, name): value for name, value in {**values, **changes}.items()}
    return {**asked, page.board.seconds: False, page.board.shown: shown}


def run(page, **changes):
    """All updates of a run, and the page's last state of each component."""
    page.runs.begin(REQUEST)
    updates = list(page.runs.run(form(page, **changes), REQUEST))
    last = {}
    for update in updates:
        last.update(update)
    return updates, last


def test_a_timing_difference_is_shown_only_with_its_spread(comparison):
    full, spark = comparison.replies[:2]
    assert "replays" not in cards.figures(full, complete=True)
    assert "not distinguishable here" in cards.figures(spark, complete=True)
    spark.timing = Timing(5, -0.08, 0.02)
    spark.replayed_ms = 7.25
    assert "7.2 ms <small>−8 ± 2 %, 5 replays" in cards.figures(spark, complete=True)
    spark.timing = Timing(5, -0.08, 0.09)
    text = cards.figures(spark, complete=True)
    assert "not distinguishable here (5 replays)" in text
    assert "±" not in text
    assert "7.2 ms" not in text
    spark.timing = spark.replayed_ms = None


def test_times_of_one_run_stand_on_full_depths_card_only(comparison):
    for reply in comparison.replies:
        reply.first_audio_ms, reply.vocoder_ms = 123.0, 1000.0
        text = cards.figures(reply, complete=True)
        plain = f"{reply.real_time_factor():.2f}"
        assert ("123 ms" in text) == (f"<dd>{plain}</dd>" in text) == (reply.policy == "full")
        reply.first_audio_ms = reply.vocoder_ms = None


def test_what_was_not_measured_is_not_shown(comparison):
    text = cards.figures(comparison.replies[0], complete=True)
    assert "word errors" not in text
    assert "predicted MOS" not in text
    table = cards.summary_table(comparison)
    assert re.search(r"wer_vs_text</th><td>–</td><td>–</td><td>–</td>", table)


def test_what_a_model_or_a_recogniser_says_is_escaped(comparison):
    reply = comparison.replies[0]
    kept = reply.text, reply.heard
    reply.text, reply.heard = "<script>alert(1)</script>", "script"
    assert "<script" not in cards.figures(reply, complete=True)
    reply.text, reply.heard = kept
    assert "<b>" not in cards.message("<b>hello</b>", "alert")
    step = compare.compare(tiny_lm(), "x", listen=False).replies[0].trace.steps[0]
    object.__setattr__(step, "text", "<img>")
    assert "<img>" not in plots.hover(step, 4)


def test_heard_words_are_marked_where_they_differ(comparison):
    reply = comparison.replies[0]
    kept = reply.text, reply.heard
    reply.text, reply.heard = "nineteen minus eight is eleven", "nineteen minus late is"
    shown = cards.figures(reply, complete=True)
    reply.text, reply.heard = kept
    assert "nineteen minus <del>eight</del> <ins>late</ins> is <del>eleven</del>" in shown


def test_blind_players_name_no_policy(comparison):
    for place, reply in enumerate(comparison.replies):
        html = cards.blind_player(reply, place) + cards.blind_head(place)
        without_sound = re.sub(r"src='[^']*'", "", html).lower()
        assert not any(
            name in without_sound for name in ("full", "spark", "confidence", "controls")
        )


def test_the_depth_plot_shows_every_token_once_with_its_depth(comparison):
    figure = plots.depth_figure(comparison.replies)
    for row, reply in enumerate(comparison.replies):
        axis = "y" if row == 0 else f"y{row + 1}"
        seen = {}
        for trace in figure.data:
            if trace.yaxis == axis and trace.customdata is not None:
                for x, y, (policy, index, _) in zip(
                    trace.x, trace.y, trace.customdata, strict=True
                ):
                    assert (policy, index) == (reply.policy, x)
                    assert x not in seen
                    seen[x] = y
        assert seen == {step.index: step.depth for step in reply.trace.steps}
    looks = {(look.colour, look.symbol) for look in plots.LOOKS.values()}
    assert len(looks) == len({look.symbol for look in plots.LOOKS.values()}) == len(Modality)


def test_the_histogram_counts_every_token(comparison):
    figure = plots.histogram_figure(comparison.replies)
    total = sum(sum(bar.y) for bar in figure.data)
    assert total == sum(len(reply.trace.steps) for reply in comparison.replies)


def test_the_finding_says_what_the_traces_say(comparison):
    text = plots.finding(comparison)
    spark = comparison.reply("spark")
    speech = [s for s in spark.trace.steps if s.modality is Modality.SPEECH]
    shallow = sum(step.depth < 4 for step in speech)
    assert f"SPAR-K ran {shallow} of {len(speech)} speech tokens shallow" in text
    saved = round(100 * (1 - spark.trace.summary()["traffic_ratio"]))
    assert f"read {saved} % fewer weights" in text
    assert "Confidence exit" in text


SETTINGS = st.builds(
    CompareSettings,
    schedule=st.sampled_from(["triple", "even", "odd", "k5"]),
    exit_layer=st.none() | st.integers(1, 40),
    measure=st.sampled_from(["max_prob", "entropy"]),
    threshold=st.floats(0, 1),
    head=st.sampled_from(["fitted", "untrained"]),
    temperature=st.floats(0, 2),
    top_p=st.floats(0.05, 1),
    repetition_penalty=st.floats(1, 2),
    max_tokens=st.none() | st.integers(1, 4096),
    system=st.none() | st.text(max_size=40),
    seed=st.integers(0, 2**60),
)


@given(st.text(min_size=1, max_size=60), SETTINGS)
def test_a_link_gives_back_what_was_put_in(prompt, settings):
    from urllib.parse import parse_qsl

    query = link.to_query("embedded", prompt, settings)
    back = link.from_query(dict(parse_qsl(query[1:], keep_blank_values=True)))
    assert back.prompt == prompt
    assert back.model == "embedded"
    assert CompareSettings(**back.settings) == settings
    assert back.unread == ()


def test_a_broken_link_keeps_what_can_be_read(page):
    request = SimpleNamespace(
        session_hash="v", query_params={"prompt": "hi", "seed": "many", "threshold": "7"}
    )
    updates = page.share.load(request)
    assert updates[page.form.prompt] == "hi"
    assert page.form.seed not in updates
    assert "seed" in updates[page.board.status]
    assert "between 0 and 1" in updates[page.board.status]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("schedule", "k5", "SPAR-K: schedule: k5 is none of triple, even, odd, k4, k6"),
        ("exit_layer", "9", "SPAR-K: exit layer: 9 is none of 1, 2, 3"),
        ("head", "x", "x is none of fitted, untrained"),
        ("measure", "luck", "luck is none of max_prob"),
        ("temperature", "5", "5 is not between 0 and 2"),
        ("top_p", "0.01", "0.01 is not between 0.05 and 1"),
        ("repetition_penalty", "3", "3 is not between 1 and 2"),
        ("max_tokens", "121", "Longest reply (tokens): 121 is not between 1 and 120"),
        ("system", "be brief", "Tiny (random weights) takes no system prompt"),
        ("threshold", "nan", "nan is not between 0 and 1"),
        ("seed", "-3", "Seed: -3 is not between 0"),
    ],
)
def test_a_link_gives_no_control_a_value_it_rejects(page, name, value, says):
    query = {name: value, "prompt": "hi"}
    if name != "seed":
        query["seed"] = "7"
    updates = page.share.load(SimpleNamespace(session_hash="v", query_params=query))
    assert says in updates[page.board.status]
    assert getattr(page.form, name) not in updates
    assert updates[page.form.prompt] == "hi"
    assert updates.get(page.form.seed) == (None if name == "seed" else 7)  # the rest is taken over


def test_a_link_to_another_model_is_checked_against_that_model(lm):
    deep = replace(tiny_lm(layers=6), name="deep")
    barred = ModelInfo("big", "Big model", False, "it needs a GPU")
    shelf = Shelf(lm, [barred])
    shelf.add(deep)
    with gr.Blocks():
        page = ComparePage(shelf)

    def opened(**query):
        return page.share.load(SimpleNamespace(session_hash="v", query_params=query))

    updates = opened(model="deep", exit_layer="5")
    assert page.board.status not in updates
    assert updates[page.form.model] == "deep"
    assert updates[page.form.exit_layer]["value"] == 5
    assert updates[page.form.exit_layer]["choices"] == list(deep.candidate_exits)
    updates = opened(model="deep", exit_layer="6")
    assert "6 is none of 1, 2, 3, 4, 5" in updates[page.board.status]
    assert updates[page.form.exit_layer]["value"] == deep.default_exit
    updates = opened(model="big", exit_layer="3", seed="4")
    assert "Big model cannot run here: it needs a GPU" in updates[page.board.status]
    assert updates[page.form.seed] == 4
    assert page.form.model not in updates
    assert page.form.exit_layer not in updates
    assert "there is no model “none”" in opened(model="none")[page.board.status]


def test_an_example_is_in_the_page_from_its_first_byte(lm, comparison):
    with gr.Blocks() as demo:
        page = ComparePage(Shelf(lm, []), comparison)
    values = {c["id"]: c["props"].get("value") for c in demo.get_config_file()["components"]}
    for place, reply in enumerate(comparison.replies):
        assert cards.player(reply) == values[page.board.players[place]._id]
    assert values[page.board.depth._id]["type"] == "plotly"
    assert comparison.prompt in values[page.board.status._id]


def test_a_page_opened_without_a_link_is_left_alone(page):
    assert list(page.share.load(REQUEST)) == [page.board.status]
    assert page.share.load(REQUEST)[page.board.status] == gr.skip()


def test_a_run_fills_the_cards_one_after_the_other(page):
    updates, last = run(page)
    players = [i for i, u in enumerate(updates) for p in page.board.players if u.get(p)]
    assert players == sorted(players)
    assert len(players) == 3  # each set once: a sound that plays is not torn away
    assert "Done" in last[page.board.status]
    assert last[page.board.shown].comparison.prompt == "hello there"
    assert last[page.form.run_button]["interactive"] is True


def test_nothing_of_an_earlier_run_stands_under_a_new_one(page):
    updates, _ = run(page)
    state, between = {}, 0
    for update in updates:
        state |= update
        shown, board = state.get(page.board.results), page.board
        if shown and shown["visible"] and board.shown in state and state[board.shown] is None:
            assert not any(state[part] for part in (board.table, board.tokens, board.histogram))
            assert state[board.finding] == ""
            between += 1
    assert between


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": "x" * 201}, "too long"),
        ({"prompt": "你好"}, "cannot read"),
        ({"seed": None}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"model": "big"}, "Big model cannot run here: it needs a GPU"),
    ],
)
def test_what_cannot_be_run_is_answered_and_the_form_left_alone(page, changes, message):
    updates, last = run(page, **changes)
    assert len(updates) == 1
    assert message in last[page.board.status]
    assert "role='alert'" in last[page.board.status]
    assert page.form.prompt not in last
    assert last[page.form.run_button]["interactive"] is True


def test_a_model_that_cannot_run_stays_in_the_menu_with_its_reason(page):
    assert ("Big model (cannot run here)", "big") in page.form.shelf.choices()
    assert "run the lab on one" in page.choose_model("big")[page.board.status]


def test_stop_keeps_what_is_there(page):
    page.runs.begin(REQUEST)
    last = {}
    for update in page.runs.run(form(page, prompt="hello there", seed=4), REQUEST):
        last.update(update)
        if update.get(page.board.players[0]):
            page.runs.stop(REQUEST)
    assert "Stopped" in last[page.board.status]
    assert "<audio" in last[page.board.players[0]]
    assert "not run" in last[page.board.heads[2]]
    assert last[page.board.shown].comparison.stopped


def test_enter_during_a_run_takes_nothing_from_stop(page):
    page.runs.begin(REQUEST)
    last = {}
    for number, update in enumerate(page.runs.run(form(page, seed=4), REQUEST)):
        last.update(update)
        if number == 0:
            assert page.runs.begin(REQUEST) == {page.board.status: gr.skip()}
            page.runs.stop(REQUEST)
    assert last[page.board.shown].comparison.stopped
    assert len(last[page.board.shown].comparison.replies) < 3
    updates, last = run(page)  # the next run has a Stop of its own
    assert updates[0][page.form.stop_button]["interactive"] is True
    assert not last[page.board.shown].comparison.stopped


def test_an_error_nobody_expected_leaves_a_page_that_works(page, monkeypatch, caplog):
    def broken(*given, **more):
        yield compare.Progress("full", None)

    with monkeypatch.context() as patched:
        patched.setattr(compare, "stream", broken)
        _, last = run(page)
    assert "role='alert'" in last[page.board.status]
    assert "Nothing you typed is lost" in last[page.board.status]
    assert last[page.form.run_button]["interactive"] is True
    assert last[page.form.stop_button]["interactive"] is False
    assert "Traceback" in caplog.text
    assert "Done" in run(page)[1][page.board.status]


def test_a_run_that_gradio_refuses_leaves_a_page_that_works(page):
    page.runs.begin(REQUEST)
    page.runs.stop(REQUEST)
    updates = page.runs.failed(REQUEST)
    assert "try again" in updates[page.board.status]
    assert updates[page.form.run_button]["interactive"] is True
    assert not run(page)[1][page.board.shown].comparison.stopped  # its Stop went with it


def test_a_blind_run_stopped_within_a_reply_opens_no_vote(page, monkeypatch):
    real = compare.stream

    def stopped_in_the_third(*given, stop, **more):
        for event in real(*given, stop=stop, **more):
            yield event
            if isinstance(event, compare.Progress) and event.policy == "confidence":
                page.runs.stop(REQUEST)

    monkeypatch.setattr(compare, "stream", stopped_in_the_third)
    _, last = run(page, blind=True, seed=4)
    shown = last[page.board.shown]
    assert len(shown.comparison.replies) == 3
    assert shown.comparison.replies[2].trace.finish == "interrupted"
    assert not shown.blind
    assert last[page.board.vote]["visible"] is False
    assert "Stopped" in last[page.board.status]
    for place, name in enumerate(("full", "spark")):
        assert f"data-policy='{name}'" in last[page.board.players[place]]  # kept, as it says


def test_a_stop_while_waiting_runs_nothing(page):
    page.runs.begin(REQUEST)
    page.runs.stop(REQUEST)
    last = {}
    for update in page.runs.run(form(page), REQUEST):
        last.update(update)
    assert last[page.board.shown].comparison.replies == []
    assert "Stopped" in last[page.board.status]


def test_blind_tells_nothing_before_the_answer_and_all_after(page):
    updates, last = run(page, blind=True)
    shown = last[page.board.shown]
    assert shown.blind
    assert sorted(shown.order) == [0, 1, 2]
    told = " ".join(str(value) for update in updates for key, value in update.items()
                    if key is not page.board.shown).lower()  # fmt: skip
    told = re.sub(r"src='[^']*'", "", told)
    for secret in ("spar-k", "full depth", "confidence exit", "weights read", "data-policy"):
        assert secret not in told
    assert not any(update.get(page.board.depth) for update in updates)
    assert page.share.zipped(shown) == ""
    revealed = page.runs.blind.reveal(shown, False, place=1)
    chosen = cards.title(shown.comparison.replies[shown.order[1]].policy)
    assert f"You chose B, which is {chosen}." in revealed[page.board.status]
    for place, index in enumerate(shown.order):
        reply = shown.comparison.replies[index]
        assert cards.title(reply.policy) in revealed[page.board.heads[place]]
        assert f"data-policy='{reply.policy}'" in revealed[page.board.players[place]]
    assert not revealed[page.board.shown].blind


def test_the_order_of_a_blind_round_varies(page, comparison):
    orders = {page.runs.blind.opened(comparison, False)[page.board.shown].order for _ in range(60)}
    assert len(orders) == 6


def test_the_picture_is_the_schedules_own():
    picture = about.picture()
    assert picture.count("url(#waits)") == 4  # F S S F, twice: four tokens wait
    assert picture.count(">refresh<") == 2
    assert "big" in about.models_table([ModelInfo("b", "big", False, "why")])


# Spoken prompts


class Ears:
    """Hears any recording as the same two words."""

    def __init__(self, lm):
        self.ids, self.lengths = lm.encode_prompt("hello there"), []

    def hear(self, pcm, rate):
        self.lengths.append(len(pcm) / rate)
        return (Heard(tuple(self.ids)),)

    def encode(self, turns, system=None, speak=True):
        self.turns, self.system = turns, system
        heard = turns[-1].heard
        return Prompt.of(heard[0]) if heard else Prompt(list(self.ids))


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
    updates = page.choose_model("tiny")
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
    form, updates = two.form, two.choose_model("other")
    assert (updates[form.temperature], updates[form.top_p]) == (0.8, 0.6)
    assert updates[form.repetition_penalty] == 1.05
    assert (updates[form.max_tokens]["value"], updates[form.max_tokens]["maximum"]) == (80, 80)
    assert (updates[form.system]["visible"], updates[form.system]["value"]) == (True, "Be kind.")
    assert updates[form.go_on]["visible"] is True
    back = two.choose_model("tiny")
    assert back[form.temperature] == CompareSettings().temperature
    assert back[form.system]["visible"] is back[form.go_on]["visible"] is False
    assert set(updates) == {*form.of_model, two.board.status} - {form.replays}


def test_a_model_is_told_with_its_size_licence_and_what_it_needs(two):
    updates = two.choose_model("other")
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
