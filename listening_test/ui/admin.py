"""The page for whoever runs a study; it opens to the secret of `LISTENING_TEST_SECRET` only.

What it shows and does is `listening_test.admin`'s; every event asks for the secret again.
"""

from __future__ import annotations

import base64
import html
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import pandas as pd
from gradio.components import Component

from listening_test import enrolment
from listening_test.addresses import root_of
from listening_test.admin import Overview, overview, server_alarms
from listening_test.analyse import RatingsError
from listening_test.crowd import Invitation, invitation
from listening_test.decisions import DECISIONS, MAX_REASON, BadDecision, decide
from listening_test.export import ExportError, export_zip
from listening_test.gate import Gate
from listening_test.hosting import Studies, StudyState
from listening_test.report import write_report
from listening_test.store import NotSaved
from spark.download import save_script


def admin_page(studies: Studies, gate: Gate | None = None) -> None:
    """Components of the Admin page; every event asks for the secret again."""
    gate = gate or Gate()
    gr.Markdown(
        "# Admin\nProgress, raters and alarms of the study. Scores stay shut until it is closed."
    )
    with gr.Row(equal_height=True):
        secret = gr.Textbox(label="Secret", type="password", max_lines=1, scale=4)
        show = gr.Button("Show", variant="primary", scale=1, min_width=160)
    note = gr.Markdown(elem_id="admin-note")
    with gr.Column(visible=False) as shown:
        standing = _standing()
        deciding = _deciding()
        with gr.Row():
            download = gr.Button("Download the export (zip)")
            report = gr.Button("Download report and bundle (zip)")
        closing = _closing()
    data = gr.Textbox(visible=False)
    outputs = [note, *standing, deciding.decided, deciding.rater, shown]

    def seen(given: str, request: gr.Request) -> tuple[object, ...]:
        return show_overview(studies, gate, given, Asker.of(request))

    def exported(given: str, request: gr.Request) -> tuple[str, str]:
        return bundle(studies, gate, given, Asker.of(request))

    def reported(given: str, request: gr.Request) -> tuple[str, str]:
        return report_zip(studies, gate, given, Asker.of(request))

    def decided_now(
        given: str, whom: str | None, name: str | None, why: str, request: gr.Request
    ) -> tuple[object, ...]:
        return decide_on(studies, gate, given, whom, name, why, Asker.of(request))

    def closed(given: str, meant: bool, request: gr.Request) -> tuple[object, ...]:
        return close_study(studies, gate, given, meant, Asker.of(request))

    asked = [secret, deciding.rater, deciding.what, deciding.reason]
    gr.on([show.click, secret.submit], seen, secret, outputs, api_visibility="private")
    deciding.save.click(decided_now, asked, outputs, api_visibility="private")
    closing.close.click(closed, [secret, closing.sure], outputs, api_visibility="private")
    for button, made, name in ((download, exported, "study.zip"), (report, reported, "bundle.zip")):
        button.click(made, secret, [note, data], api_visibility="private").then(
            None, data, None, js=save_script("application/zip", name), api_visibility="private"
        )


def _standing() -> tuple[Component, ...]:
    """Alarms, the address for raters, and the tables of cells, raters and exclusions."""
    return (
        gr.Markdown(elem_id="admin-alarms"),
        gr.Markdown(elem_id="admin-address"),
        gr.Dataframe(label="Ratings of each text", interactive=False),
        gr.Dataframe(label="Raters", interactive=False),
        gr.Dataframe(label="Left out by rule", interactive=False),
    )


@dataclass(frozen=True)
class _Deciding:
    """Where somebody is left out by hand, or marked as internal."""

    rater: gr.Dropdown
    what: gr.Dropdown
    reason: gr.Textbox
    save: gr.Button
    decided: gr.Dataframe


def _deciding() -> _Deciding:
    with gr.Accordion("Leave a rater out, or mark a test run", open=False):
        gr.Markdown(
            "Whom you leave out by hand is counted apart in the results, with your reason, and "
            "whether the results were open by then. An internal session is your team's own: it "
            "is in no result. Neither counts towards the wanted ratings, and its place is free "
            "for somebody else. Both can be taken back; the list below keeps each decision."
        )
        return _Deciding(
            gr.Dropdown(label="Rater", choices=[], value=None),
            gr.Dropdown(label="Decision", choices=list(DECISIONS), value=None),
            gr.Textbox(
                label="Reason (printed with the results: no names)",
                max_lines=1,
                max_length=MAX_REASON,
            ),
            gr.Button("Save the decision"),
            gr.Dataframe(label="Decisions so far", interactive=False, visible=False),
        )


@dataclass(frozen=True)
class _Closing:
    """Where the study is closed."""

    sure: gr.Checkbox
    close: gr.Button


def _closing() -> _Closing:
    with gr.Accordion("Close the study", open=False):
        gr.Markdown(
            "No new sessions from then on; who has begun may finish. The results become "
            "public. It cannot be undone."
        )
        return _Closing(
            gr.Checkbox(label="I want to close it for good", value=False),
            gr.Button("Close the study", variant="stop"),
        )


@dataclass(frozen=True)
class Asker:
    """Who uses the page: from which address, and by which address of this server."""

    host: str
    root: str

    @classmethod
    def of(cls, request: gr.Request) -> Asker:
        """Of a Gradio event."""
        host = request.client.host if request.client else "unknown"
        return cls(host, root_of(os.environ, str(request.base_url)))


Admin = tuple[object, ...]


def _opened(studies: Studies, gate: Gate, given: str, asker: Asker) -> StudyState | str:
    """The study that is run, for who knows the secret; or why there is nothing to see."""
    return gate.refusal(given, asker.host) or studies.shown() or "No study is open."


def _told(note: str, found: Overview | None = None, invited: Invitation | None = None) -> Admin:
    if found is None or invited is None:
        tables = [pd.DataFrame()] * 4
        return note, "", "", *tables, gr.update(choices=[], value=None), gr.update(visible=False)
    alarms = "\n".join(f"- **Alarm:** {html.escape(alarm)}" for alarm in found.alarms)
    return (
        note,
        alarms or "No alarms.",
        f"{invited.what}:\n\n```text\n{invited.text}\n```",
        gr.update(
            value=pd.DataFrame(found.cells), label=f"Ratings of each text, {found.wanted} wanted"
        ),
        pd.DataFrame(found.raters),
        pd.DataFrame(found.excluded),
        gr.update(value=pd.DataFrame(found.decisions), visible=bool(found.decisions)),
        gr.update(choices=[_choice(row) for row in found.raters], value=None),
        gr.update(visible=True),
    )


def _choice(rater: dict[str, str]) -> tuple[str, str]:
    """A rater as the list to choose from shows them, and their id."""
    left_out = f", left out: {rater['left out by']}" if rater["left out by"] else ""
    began = rater["began (UTC)"]
    return f"{rater['rater']} ({rater['state']}, began {began} UTC{left_out})", rater["rater"]


def show_overview(studies: Studies, gate: Gate, given: str, asker: Asker) -> Admin:
    """A note, the alarms, the address, the tables, whom to decide about, and whether they show.

    The tables are those of cells, raters, exclusions and decisions.
    """
    state = _opened(studies, gate, given, asker)
    if isinstance(state, str):
        return _told(state)
    assert state.study_dir is not None
    hosted = studies.get(state.study_id)
    problems = server_alarms(hosted, gate, studies.limiter) if hosted else ()
    try:
        found = overview(state.study_dir, time.time(), problems)
    except ExportError as error:
        return _told(html.escape(str(error)))
    invited = invitation(hosted.study.platform if hosted else None, f"{asker.root}{state.path}")
    return _told(f"**{html.escape(found.title)}**: {found.summary}", found, invited)


def decide_on(
    studies: Studies,
    gate: Gate,
    given: str,
    whom: str | None,
    name: str | None,
    reason: str,
    asker: Asker,
) -> Admin:
    """Take the decision of that name about a rater, and show the study as it then is."""
    state = _opened(studies, gate, given, asker)
    if isinstance(state, str):
        return _told(state)
    hosted = studies.get(state.study_id)
    note = "Choose a rater and a decision first."
    if whom and name in DECISIONS and hosted is not None:
        decision = DECISIONS[name]
        try:
            hosted.store.run(lambda db: decide(db, whom, decision, reason, time.time())).result()
            if hosted.copy:
                hosted.copy.wake()
            note = f"Saved: {name}, rater {html.escape(whom)}."
        except (BadDecision, NotSaved) as error:
            note = f"Not saved. {html.escape(str(error))}"
    told, *rest = show_overview(studies, gate, given, asker)
    return (f"{note}\n\n{told}", *rest)


def close_study(studies: Studies, gate: Gate, given: str, meant: bool, asker: Asker) -> Admin:
    """Close the study if it is `meant`, and show it as it then is."""
    state = _opened(studies, gate, given, asker)
    if isinstance(state, str):
        return _told(state)
    hosted = studies.get(state.study_id)
    note = "Tick the box first: closing cannot be undone."
    if meant and hosted is not None:
        try:
            hosted.store.run(lambda db: enrolment.close_study(db, time.time())).result()
            if hosted.copy:
                hosted.copy.wake()  # it stays closed, whatever becomes of this disk
            note = "The study is closed, and its results are public."
        except NotSaved as error:
            note = f"Not closed: {html.escape(str(error))}. Try again."
    told, *rest = show_overview(studies, gate, given, asker)
    return (f"{note}\n\n{told}", *rest)


def bundle(studies: Studies, gate: Gate, given: str, asker: Asker) -> tuple[str, str]:
    """A note, and the export as a zip in base64, blinded while the study is open.

    Empty without the secret.
    """
    state = _opened(studies, gate, given, asker)
    if isinstance(state, str):
        return state, ""
    assert state.study_dir is not None
    try:
        data, n = export_zip(state.study_dir, blinded=state.closed_utc is None)
    except ExportError as error:
        return html.escape(str(error)), ""
    note = f"{n} rows of **{html.escape(state.title)}** "
    if state.closed_utc is None:
        note += "with their comments. Their systems are told when you have closed the study."
    else:
        note += "with their systems and comments."
    return note, base64.b64encode(data).decode()


def report_zip(studies: Studies, gate: Gate, given: str, asker: Asker) -> tuple[str, str]:
    """A note on what the report lacks, and its bundle in base64; empty before the study closes."""
    state = _opened(studies, gate, given, asker)
    if isinstance(state, str):
        return state, ""
    assert state.study_dir is not None
    if state.closed_utc is None:
        return "The report holds results, which are shut until you close the study.", ""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            missing = write_report(state.study_dir, Path(scratch))
        except (RatingsError, ExportError) as error:
            return f"No report: {html.escape(str(error))}", ""
        data = (Path(scratch) / "bundle.zip").read_bytes()
    note = f"The report of **{html.escape(state.title)}**. Missing in it: "
    return note + (", ".join(missing) or "nothing") + ".", base64.b64encode(data).decode()
