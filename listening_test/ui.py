"""The Gradio pages around the listening test: Listen introduces it, Results shows its outcome.

    listen_page(studies)      inside `with demo.route("Listen", "/listen"):`
    results_page(studies)     inside `with demo.route("Results", "/results"):`

The test itself is the plain page /listen/<study> (`server.py`). Nothing here names a system
until someone gives the secret of `LISTENING_TEST_SECRET`.
"""

from __future__ import annotations

import base64
import hmac
import html
import os
from typing import TypeAlias

import gradio as gr
import pandas as pd

from listening_test import plots
from listening_test.analysis import Plan, analyse, counted
from listening_test.columns import SCORED_TRIALS
from listening_test.export import exported_csv, exported_frame, incomplete_sessions
from listening_test.hosting import Studies, StudyState
from listening_test.tables import (
    notes,
    pair_rows,
    preference_rows,
    strength_rows,
    system_rows,
    verdicts,
)
from spark.download import save_script

SECRET_VARIABLE = "LISTENING_TEST_SECRET"
# Set by the platform, where the disk does not outlive a restart.
SPACE_VARIABLE = "SPACE_ID"
SPACE_NOTE = (
    "**This lab runs on a Space: its disk is emptied at every restart, and the ratings with it.** "
    "They are kept nowhere else. Whoever runs the study: set `LISTENING_TEST_COPY` (the guide of "
    "the listening test tells how), or download the CSV on the Results page before every restart."
)


def listen_page(studies: Studies) -> None:
    """Components of the Listen page: what the study is, how far it is, the way in."""
    gr.Markdown(
        "# Listen\n"
        "How natural does the speech of each decoding policy sound to people? You hear short "
        "clips, blind and in random order, and rate each from 5 (Excellent) to 1 (Bad). "
        "Each rating is on disk before the page says “saved”; you may stop at any "
        "time and go on later in the same browser."
    )
    if os.environ.get(SPACE_VARIABLE) and not studies.copied:
        gr.Markdown(SPACE_NOTE)
    gr.HTML(value=lambda: _cards(studies.states()), every=10, elem_id="listen-studies")
    gr.Markdown(
        "Kept: your scores and comments, when and how long you listened, under a random number. "
        "Not kept: your name or network address. The key that tells which clip came from which "
        "policy lies apart from the ratings."
    )


def _cards(states: list[StudyState]) -> str:
    if not states:
        return "<p>No study is offered here at the moment.</p>"
    return "\n".join(_card(state) for state in states)


def _card(state: StudyState) -> str:
    title = html.escape(state.title)
    if state.status == "preparing":
        why = html.escape(state.message) or "The clips are being prepared."
        body = f'<p role="status">{why} This page looks again by itself.</p>'
    elif state.status == "failed":
        body = f'<p role="alert">Not available: {html.escape(state.message)}</p>'
    else:
        minutes = max(1, round((state.trials_per_rater or 0) * 10 / 60))
        body = (
            f"<p>{state.trials_per_rater} clips, about {minutes} minutes. "
            f"{state.sessions_complete} of {state.planned_sessions} planned sessions complete, "
            f"{state.ratings} ratings so far.</p>"
            f'<p><a class="lt-start" href="{html.escape(state.path)}" target="_blank" '
            'rel="noopener">Take the test</a> (opens a page of its own)</p>'
        )
    return f'<section class="lt-card"><h2>{title}</h2>{body}</section>'


def results_page(studies: Studies) -> None:
    """Components of the Results page: closed to everyone who does not hold the secret."""
    gr.Markdown("# Results\nRunning results would bias those still listening, so they are closed.")
    if not os.environ.get(SECRET_VARIABLE):
        gr.Markdown(
            f"This page is off: no secret is set. Start the app with `{SECRET_VARIABLE}` in its "
            "environment, or use `python -m listening_test.export` and `analyse`."
        )
        return
    with gr.Row(equal_height=True):
        secret = gr.Textbox(label="Secret", type="password", max_lines=1, scale=4)
        show = gr.Button("Show results", variant="primary", scale=1, min_width=160)
    note = gr.Markdown()
    systems = gr.Dataframe(label="Systems", interactive=False)
    means = gr.Plot(show_label=False, elem_classes="sk-plot")
    pairs = gr.Dataframe(label="Differences", interactive=False)
    gaps = gr.Plot(show_label=False, elem_classes="sk-plot")
    gr.Markdown(
        "Dots are means or shares, whiskers their 95 % intervals; the tables say the same in "
        "numbers. Below, each rater's own means: who uses the scale differently stands apart."
    )
    raters = gr.Plot(show_label=False, elem_classes="sk-plot")
    download = gr.Button("Download the ratings (CSV)")
    data = gr.Textbox(visible=False)
    show.click(
        lambda given: show_results(studies, given),
        inputs=secret,
        outputs=[note, systems, means, pairs, gaps, raters],
        api_visibility="private",
    )
    download.click(
        lambda given: ratings_csv(studies, given),
        inputs=secret,
        outputs=[note, data],
        api_visibility="private",
    ).then(None, data, None, js=save_script("text/csv", "ratings.csv"), api_visibility="private")


def _opened(studies: Studies, given: str) -> StudyState | str:
    """The study whose results are asked for, or why there is nothing to see."""
    expected = os.environ.get(SECRET_VARIABLE, "")
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        return "That is not the secret."
    opened = [state for state in studies.states() if state.study_dir is not None]
    return opened[0] if opened else "No study is open."


def ratings_csv(studies: Studies, given: str) -> tuple[str, str]:
    """A note, and all ratings with their systems as CSV in base64; empty without the secret."""
    state = _opened(studies, given)
    if isinstance(state, str):
        return state, ""
    assert state.study_dir is not None
    frame, _ = exported_frame(state.study_dir)
    note = f"{len(frame)} rows of **{html.escape(state.title)}**, practice included."
    return note, base64.b64encode(exported_csv(frame).encode()).decode()


Plot: TypeAlias = plots.Figure | None
Shown = tuple[str, pd.DataFrame, Plot, pd.DataFrame, Plot, Plot]


def show_results(studies: Studies, given: str) -> Shown:
    """A note, the systems' table and plot, the pairs' table and plot, and the raters' plot.

    Tables are empty and plots absent without the secret, and where a method has none.
    """
    state = _opened(studies, given)
    if isinstance(state, str):
        return state, pd.DataFrame(), None, pd.DataFrame(), None, None
    assert state.study_dir is not None
    frame, study = exported_frame(state.study_dir)
    if not frame["trial_type"].isin(SCORED_TRIALS).any():
        empty = f"No ratings yet.{_warning(state)}"
        return empty, pd.DataFrame(), None, pd.DataFrame(), None, None
    plan, incomplete = Plan.of(study), incomplete_sessions(state.study_dir)
    result = analyse(frame, plan, incomplete)
    note = (
        f"**{html.escape(state.title)}**: {state.ratings} ratings, {state.sessions_complete} of "
        f"{state.planned_sessions} sessions complete. Intervals: 95 %, two-way clustered "
        "(rater and text)."
    )
    note = "\n\n".join([note, *verdicts(result), *notes(result)]) + _warning(state)
    if "preferences" in result:
        tables = strength_rows(result), preference_rows(result)
        figures = None, plots.preferences_figure(result)
    else:
        tables = system_rows(result), pair_rows(result)
        figures = (
            plots.systems_figure(result) if result["systems"] else None,
            plots.pairs_figure(result) if result["pairs"] else None,
        )
    raters = None
    if result["systems"]:
        raters = plots.raters_figure(counted(frame, plan, incomplete)[0], list(result["systems"]))
    first, second = (pd.DataFrame(rows) for rows in tables)
    return note, first, figures[0], second, figures[1], raters


def _warning(state: StudyState) -> str:
    """What is wrong with the study's CSV, where something is."""
    return f"\n\n**Warning:** {html.escape(state.message)}" if state.message else ""
