"""The public Gradio pages: Listen introduces the listening test, Results shows its outcome.

    listen_page(studies)      inside `with demo.route("Listen", "/listen"):`
    results_page(studies, demo)   inside `with demo.route("Results", "/results"):`

The test itself is the plain page /listen/<study> (`server.py`), whoever runs it has the Admin page
(`admin_page.py`). Nothing here names a system until the study is closed.
"""

from __future__ import annotations

import base64
import html
import os
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import gradio as gr
import pandas as pd

from listening_test import plots
from listening_test.addresses import SPACE_VARIABLE
from listening_test.analysis import Plan, analyse, counted
from listening_test.columns import SCORED_TRIALS
from listening_test.export import (
    exported_csv,
    exported_frame,
    incomplete_sessions,
)
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

SPACE_NOTE = (
    "**This lab runs on a Space: its disk is emptied at every restart, and the ratings with it.** "
    "They are kept nowhere else. Whoever runs the study: set `LISTENING_TEST_COPY` (the guide of "
    "the listening test tells how), or download the export on the Admin page, often, and before "
    "every restart or change of the Space."
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
        "Kept: your scores and comments, when and how long you listened, what kind of device and "
        "browser you use, under a random number. Not kept: your name or network address. The key "
        "that tells which clip came from which policy lies apart from the ratings."
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
    elif state.closed_utc:
        body = (
            f"<p>Closed: it takes no new participants. {state.sessions_complete} took part; who "
            f'has begun may <a href="{html.escape(state.path)}">go on</a>. The '
            '<a href="/results">results</a> are open.</p>'
        )
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


def results_page(studies: Studies, demo: gr.Blocks) -> None:
    """Components of the Results page: shut to everyone while the study runs, then public."""
    gr.Markdown("# Results")
    note = gr.Markdown()
    with gr.Column(visible=False) as shown:
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
    demo.load(
        lambda: _with_visibility(show_results(studies)),
        outputs=[note, systems, means, pairs, gaps, raters, shown],
        show_progress="hidden",  # else the page's words fade to a fifth while they come in
        api_visibility="private",
    )
    download.click(
        lambda: ratings_csv(studies), outputs=[note, data], api_visibility="private"
    ).then(None, data, None, js=save_script("text/csv", "ratings.csv"), api_visibility="private")


Plot: TypeAlias = plots.Figure | None
Shown = tuple[str, pd.DataFrame, Plot, pd.DataFrame, Plot, Plot]


def _with_visibility(found: Shown) -> tuple[object, ...]:
    return (*found, gr.update(visible=not found[1].empty))


def _closed(studies: Studies) -> StudyState | str:
    """The study whose results are public, or why there is nothing to see."""
    state = studies.shown()
    if state is None:
        return "No study is open."
    if state.closed_utc is None:
        return (
            f"**{html.escape(state.title)}** is running: {state.sessions_complete} of "
            f"{state.planned_sessions} planned sessions complete. Its results are shut to "
            "everyone until it is closed: who has seen them does not judge blind, and who stops "
            "when they please has no honest interval. Whoever runs it closes it on the Admin "
            "page or with `python -m listening_test.admin`."
        )
    return state


def ratings_csv(studies: Studies) -> tuple[str, str]:
    """A note, and a closed study's ratings as CSV in base64; empty while it runs.

    Without comments: raters wrote them for whoever runs the study.
    """
    state = _closed(studies)
    if isinstance(state, str):
        return state, ""
    assert state.study_dir is not None
    frame, _ = exported_frame(state.study_dir)
    note = (
        f"{len(frame)} rows of **{html.escape(state.title)}**, practice included, comments left "
        "out."
    )
    return note, base64.b64encode(exported_csv(frame.assign(comment=None)).encode()).decode()


def show_results(studies: Studies) -> Shown:
    """A note, the systems' table and plot, the pairs' table and plot, and the raters' plot.

    Tables are empty and plots absent while the study runs, and where a method has none.
    """
    state = _closed(studies)
    if isinstance(state, str):
        return state, pd.DataFrame(), None, pd.DataFrame(), None, None
    assert state.study_dir is not None
    # Who has begun may still finish, or withdraw, or be left out by hand.
    stamp = (
        state.ratings, state.sessions_started, state.sessions_complete, state.withdrawn,
        state.decisions,
    )  # fmt: skip
    note, *rest = _analysed(state.study_dir, stamp)
    if not rest[0].empty:
        note = (
            f"**{html.escape(state.title)}**, closed {state.closed_utc}: {state.ratings} ratings, "
            f"{state.sessions_complete} of {state.planned_sessions} sessions complete. "
            f"Intervals: 95 %, two-way clustered (rater and text).\n\n{note}"
        )
    return (note + _warning(state), *rest)


@lru_cache(maxsize=4)  # the page is public, and an analysis takes seconds
def _analysed(study_dir: Path, stamp: tuple[int | None, ...]) -> Shown:
    frame, study = exported_frame(study_dir)
    if not frame["trial_type"].isin(SCORED_TRIALS).any():
        return "No ratings yet.", pd.DataFrame(), None, pd.DataFrame(), None, None
    plan, incomplete = Plan.of(study), incomplete_sessions(study_dir)
    result = analyse(frame, plan, incomplete)
    note = "\n\n".join([*verdicts(result), *notes(result)])
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
        raters = plots.raters_figure(counted(frame, plan, incomplete)[0], result)
    first, second = (pd.DataFrame(rows) for rows in tables)
    return note, first, figures[0], second, figures[1], raters


def _warning(state: StudyState) -> str:
    """What is wrong with the study's CSV, where something is."""
    return f"\n\n**Warning:** {html.escape(state.message)}" if state.message else ""
