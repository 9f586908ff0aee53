"""What the pages say, without a browser: figures, escaping, findings, links, handlers."""

import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark import about, cards, compare, findings, link
from spark.comparison import CompareSettings
from spark.modality import Modality
from spark.models import ModelInfo
from spark.plots import comparison as plots
from spark.shelf import Shelf
from spark.timing import Timing
from spark.ui import ComparePage
from spark.ui.board import View
from tests.forms import REQUEST, chosen, form, run
from tests.tiny import tiny_lm


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
    text = findings.finding(comparison)
    spark = comparison.reply("spark")
    speech = [s for s in spark.trace.steps if s.modality is Modality.SPEECH]
    shallow = sum(step.depth < 4 for step in speech)
    assert f"SPAR-K ran {shallow} of {len(speech)} speech tokens shallow" in text
    saved = round(100 * (1 - spark.trace.summary()["traffic_ratio"]))
    assert f"read {saved} % fewer weights" in text
    assert "Confidence exit" in text


SETTINGS = st.builds(
    CompareSettings,
    schedule=st.sampled_from(["triple", "even", "odd", "k5", "drift2-7", "f-3-2-1/f-2"]),
    drift_target=st.floats(0, 1),
    acceptance=st.sampled_from(["always", "exact", "0.5"]),
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
        ("schedule", "often", "SPAR-K: schedule: unknown schedule &#x27;often&#x27;"),
        ("schedule", "f-9-2-f", "SPAR-K: schedule: there is no exit at layer 9"),
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
    assert "run the lab on one" in chosen(page, "big")[page.board.status]


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
    revealed = page.runs.blind.reveal(shown, View(), place=1)
    chosen = cards.title(shown.comparison.replies[shown.order[1]].policy)
    assert f"You chose B, which is {chosen}." in revealed[page.board.status]
    for place, index in enumerate(shown.order):
        reply = shown.comparison.replies[index]
        assert cards.title(reply.policy) in revealed[page.board.heads[place]]
        assert f"data-policy='{reply.policy}'" in revealed[page.board.players[place]]
    assert not revealed[page.board.shown].blind


def test_the_order_of_a_blind_round_varies(page, comparison):
    orders = {page.runs.blind.opened(comparison, View())[page.board.shown].order for _ in range(60)}
    assert len(orders) == 6


def test_the_picture_is_the_schedules_own():
    picture = about.picture()
    assert picture.count("url(#waits)") == 4  # F S S F, twice: four tokens wait
    assert picture.count(">refresh<") == 2
    assert "big" in about.models_table([ModelInfo("b", "big", False, "why")])
