"""The public pages: Listen introduces the listening test, Results shows its outcome.

Nothing here names a system until the study is closed.
"""

from __future__ import annotations

import base64
import html
import os
from functools import partial
from typing import Any

import gradio as gr

from listening_test.addresses import SPACE_VARIABLE
from listening_test.hosting import Studies, StudyState
from listening_test.results import Results, public_files, show_results
from spark.download import save_script

SPACE_NOTE = (
    "**This lab runs on a Space: its disk is emptied at every restart, and the ratings with it.** "
    "They are kept nowhere else. Whoever runs the study: set `LISTENING_TEST_COPY` (the guide of "
    "the listening test tells how), or download the export on the Admin page, often, and before "
    "every restart or change of the Space."
)

# The Results page's figures by name, in the order of reading, and whether a table goes with them.
_SLOTS = (("means", True), ("differences", True), ("order", False), ("raters", False))
# Without a secure connection a browser has no clipboard, but the older command.
_COPY = """() => {
  const field = document.getElementById("results-text");
  field.select();
  if (navigator.clipboard) navigator.clipboard.writeText(field.value);
  else document.execCommand("copy");
  return "Copied.";
}"""
# What a visitor can take home from it.
_KINDS = {"report.html": "text/html", "bundle.zip": "application/zip", "ratings.csv": "text/csv"}


def listen_page(studies: Studies) -> None:
    """Components of the Listen page: what the study is, how far it is, the way in."""
    gr.Markdown(
        "# Listen\n"
        "How does the speech of each system sound to people? You hear short clips, blind and in "
        "random order, and say how they sound to you. "
        "Each rating is on disk before the page says “saved”; you may stop at any "
        "time and go on later in the same browser."
    )
    if os.environ.get(SPACE_VARIABLE) and not studies.copied:
        gr.Markdown(SPACE_NOTE)
    gr.HTML(value=lambda: _cards(studies.states()), every=10, elem_id="listen-studies")
    gr.Markdown(
        "Kept: your scores and comments, when and how long you listened, what kind of device and "
        "browser you use, under a random number. Not kept: your name or network address. The key "
        "that tells which clip came from which system lies apart from the ratings."
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
        clips = state.clips_per_trial or 1
        what = "clips" if clips == 1 else f"pages of {clips} clips"
        minutes = "a minute" if state.minutes == 1 else f"{state.minutes} minutes"
        body = (
            f"<p>{state.trials_per_rater} {what}, about {minutes}. "
            f"{state.sessions_complete} of {state.planned_sessions} planned sessions complete, "
            f"{state.ratings} ratings so far.</p>"
            f'<p><a class="lt-start" href="{html.escape(state.path)}" target="_blank" '
            'rel="noopener">Take the test</a> (opens a page of its own)</p>'
        )
    return f'<section class="lt-card"><h2>{title}</h2>{body}</section>'


def results_page(studies: Studies, demo: gr.Blocks) -> None:
    """Components of the Results page: shut to everyone while the study runs, then public."""
    gr.Markdown("# Results")
    note = gr.Markdown(elem_id="results-note")
    slots: list[Any] = []
    with gr.Column(visible=False) as shown:
        words = gr.Markdown(elem_id="results-words")
        for name, tabled in _SLOTS:
            with gr.Column(visible=False) as column:
                told = gr.Markdown(elem_id=f"results-{name}")
                plot = gr.Plot(show_label=False, elem_classes="lt-plot")
                table = [gr.Dataframe(interactive=False)] if tabled else []
            slots += [column, told, plot, *table]
        gr.Markdown(
            "## Methods and results, ready to paste\n"
            "Markdown, as in the report. What is marked MISSING no rating can tell: fill it in."
        )
        text = gr.HTML()
        copy = gr.Button("Copy the text")
        with gr.Row():
            buttons = {
                name: gr.Button(f"Download {what}")
                for name, what in (
                    ("report.html", "the report (HTML)"),
                    ("bundle.zip", "the bundle (zip)"),
                    ("ratings.csv", "the ratings (CSV)"),
                )
            }
        saved = gr.Markdown(elem_id="results-saved")
    data = gr.Textbox(visible=False)
    copy.click(None, None, saved, js=_COPY, api_visibility="private")
    demo.load(
        lambda: _laid_out(show_results(studies)),
        outputs=[note, shown, words, text, *slots],
        show_progress="hidden",  # else the page's words fade to a fifth while they come in
        api_visibility="private",
    )
    for name, button in buttons.items():
        button.click(
            partial(handed_out, studies, name), outputs=[saved, data], api_visibility="private"
        ).then(
            None, data, None, js=save_script(_KINDS[name], name), api_visibility="private"
        )  # fmt: skip


def _laid_out(found: Results) -> tuple[object, ...]:
    """The values of the Results page's components, in their order."""
    values: list[object] = [
        found.note, gr.update(visible=bool(found.text)),
        "\n".join(f"- {sentence}" for sentence in found.words), _to_copy(found.text),
    ]  # fmt: skip
    drawn = {"shares": "differences"}  # choices have no means; their shares take that place
    figures = {drawn.get(name, name): one for name, one in found.figures.items()}
    for name, tabled in _SLOTS:
        one, table = figures.get(name), found.tables.get(name)
        title = one.title if one else "Strengths"
        values.append(gr.update(visible=one is not None or table is not None))
        values.append(f"## {title}\n{one.sentence if one else ''}")
        values.append(gr.update(value=one and one.figure, visible=one is not None))
        if tabled:
            values.append(gr.update(value=table, label=title, visible=table is not None))
    return tuple(values)


def _to_copy(text: str) -> str:
    """A field of its own: Gradio's has no name for a screen reader, and no focus when read-only."""
    return (
        '<textarea id="results-text" class="lt-text" aria-label="Methods and results" rows="14" '
        f"readonly>{html.escape(text)}</textarea>"
    )


def handed_out(studies: Studies, name: str) -> tuple[str, str]:
    """A note, and a file of a closed study in base64; empty while it runs."""
    found = public_files(studies)
    if isinstance(found, str):
        return found, ""
    file = {
        "report.html": found.report_html, "bundle.zip": found.bundle_zip,
        "ratings.csv": found.ratings_csv,
    }[name]  # fmt: skip
    return f"{name}: comments and questionnaires are left out.", base64.b64encode(file).decode()
