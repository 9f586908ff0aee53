"""A comparison handed on: a link that restores the form, and everything as a zip.

What a link asks for is checked against the controls, so that none is given a value it rejects.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import gradio as gr

from spark import bundle, cards, link
from spark.acceptance import Sounding
from spark.comparison import CompareSettings
from spark.models.base import SpokenLM
from spark.named import DIAL_END, dial_of, nearness_of
from spark.ui.board import Board, Shown
from spark.ui.form import MOST_SEED, Form, Updates

COPY_SCRIPT = """(query) => {
  const address = location.origin + location.pathname + query;
  navigator.clipboard?.writeText(address).catch(() => {});
  return address;
}"""


class Share:
    """Buttons under the results, and what opening a link does.

    Args:
        form: what links restore.
        board: what is downloaded; the buttons go to the end of its results.
    """

    def __init__(self, form: Form, board: Board) -> None:
        self.form, self.board = form, board
        with board.results:
            with gr.Row():
                self.download = gr.Button("Download everything (zip)", elem_id="download")
                self.copy = gr.Button("Copy link", elem_id="copy-link")
            self.address = gr.Textbox(label="Link to this prompt, settings and seed",
                                      interactive=False, visible=False,
                                      elem_id="address")  # fmt: skip
        self.archive = gr.Textbox(visible=False)

    def cleared(self) -> Updates:
        """No link of an earlier run under a new one."""
        return {self.address: gr.update(visible=False)}

    def load(self, request: gr.Request) -> Updates:
        """A visitor opens the page, perhaps by a link: its prompt and settings are taken over."""
        updates = self._restored(link.from_query(dict(request.query_params)))
        return updates or {self.board.status: gr.skip()}  # gradio takes no empty dict

    def load_outputs(self) -> list[Any]:
        """Components that `load` may change."""
        form = self.form
        every = (*form.asked, *form.of_model, form.dial_words, self.board.status)
        return [*dict.fromkeys(every)]

    def _restored(self, given: link.Linked) -> Updates:
        """What a link asks for, as far as the controls take it, and what they do not."""
        form = self.form
        updates: Updates = {form.prompt: given.prompt} if given.prompt else {}
        problems, settings, lm = list(given.unread), dict(given.settings), form.lm
        if given.model and given.model != lm.name:
            try:
                lm = form.model_of(given.model)
                updates |= {form.model: given.model, **form.follow(lm)}
            except ValueError as error:
                problems.append(str(error))
                settings.pop("exit_layer", None)  # of a model that is not taken
        offers = self._offers(lm)
        for name, value in settings.items():
            if name == "system" and lm.system_prompt is None:
                problems.append(f"{lm.title} takes no system prompt")
            elif name in offers and (problem := offers[name].refusal(value)):
                problems.append(problem)
            elif name == "schedule" and (problem := _unknown_schedule(value, lm)):
                problems.append(f"{form.schedule.label}: {problem}")
            elif name == "acceptance":
                nearness = nearness_of(value)
                if nearness == "sound" and not isinstance(lm.vocoder, Sounding):
                    problems.append(f"{lm.title} does not say which of its codes sound alike")
                    continue
                updates[form.dial] = dial_of(value)
                updates[form.nearness] = form.placed("nearness", nearness, lm)
                updates[form.dial_words] = cards.dial(dial_of(value), nearness)
            else:
                updates[getattr(form, name)] = form.placed(name, value, lm)
        if problems:
            text = f"The link could not be followed in full: {'; '.join(problems)}."
            updates |= self.board.say(text, "alert")
        return updates

    def _offers(self, lm: SpokenLM) -> dict[str, link.Offer]:
        """What the controls that a link can set take, with this model."""
        form = self.form
        offers = {"exit_layer": link.Offer(str(form.exit_layer.label), tuple(lm.candidate_exits)),
                  "max_tokens": link.Offer(str(form.max_tokens.label), (), 1, lm.max_tokens),
                  "acceptance": link.Offer(str(form.dial.label), (), 0, DIAL_END, dial_of),
                  "seed": link.Offer(str(form.seed.label), (), 0, MOST_SEED)}  # fmt: skip
        for menu in ("measure", "head"):
            control = getattr(form, menu)
            offers[menu] = link.Offer(control.label, tuple(value for _, value in control.choices))
        for number in ("drift_target", "threshold", "temperature", "top_p", "repetition_penalty"):
            control = getattr(form, number)
            offers[number] = link.Offer(control.label, (), control.minimum, control.maximum)
        return offers

    def zipped(self, shown: Shown | None) -> str:
        """The comparison's zip, base64; empty while there is none to give."""
        if shown is None or shown.blind:
            return ""
        return base64.b64encode(bundle.zip_bytes(shown.comparison)).decode()

    def linked(self, values: Mapping[Any, Any]) -> Any:
        """The query string of what stands in the form."""
        form = self.form
        try:
            query = link.to_query(values[form.model], values[form.prompt], form.wanted(values))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return gr.update(value=query, visible=True)


def _unknown_schedule(schedule: str, lm: SpokenLM) -> str:
    """Why a model cannot take a schedule; empty where it can."""
    try:
        CompareSettings(schedule=schedule).policies(lm)
    except ValueError as error:
        return str(error)
    return ""
