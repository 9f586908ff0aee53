"""What a visitor asks for: prompt, recording, model, schedule, exits, sampling.

Components, their values as settings of a comparison, and how they follow the model. Knows neither
how a run is made nor how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, get_args

import gradio as gr

from spark.comparison import SCHEDULES, CompareSettings
from spark.heads import HeadKind
from spark.models.base import SpokenLM
from spark.schedule import MEASURES
from spark.shelf import Shelf

EXAMPLES = (
    ("Tell me the capital of Peru.", "a fact"),
    ("What is nineteen minus eight?", "a sum"),
    ("Which is larger, seven or twelve?", "a comparison"),
    ("Hello, what can you do?", "small talk"),
    ("Say: the tide turns at noon.", "read aloud"),
)
MEASURE_TITLES = {
    "max_prob": "largest probability",
    "margin": "top two apart by",
    "entropy": "1 − entropy",
    "state_similarity": "state similarity",
}
MOST_SEED = 2**53 - 1  # a browser's numbers are exact up to here
Updates = dict[Any, Any]


class Form:
    """Components above the cards; made inside a `gr.Blocks` context.

    Args:
        shelf: the models.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.lm = shelf.get(shelf.default)
        self._ask()
        self._aloud()
        self._settings()
        self.asked = [
            self.prompt, self.model, self.schedule, self.exit_layer, self.head, self.measure,
            self.threshold, self.temperature, self.top_p, self.seed,
        ]  # fmt: skip
        self.of_model = [self.exit_layer, self.spoken, self.deafness]
        self.buttons = [self.run_button, self.stop_button]

    # Components

    def _ask(self) -> None:
        gr.HTML(
            "<h1>SPAR-K Lab</h1><p>The same spoken answer three times: every layer for every "
            "token, SPAR-K's early exits, and confidence exit. Hear them, and see what each "
            "one cost.</p>",
            elem_classes="sk-top",
        )
        with gr.Row(equal_height=False):
            self.prompt = gr.Textbox(
                label="Ask, or give it a sentence to read aloud",
                placeholder="What is nineteen minus eight?",
                lines=2,
                max_lines=4,
                scale=5,
                elem_id="prompt",
            )
            with gr.Column(scale=1, min_width=180, elem_classes="sk-actions"):
                self.run_button = gr.Button("Generate all three", variant="primary")
                self.stop_button = gr.Button("Stop", interactive=False)
        with gr.Row(elem_classes="sk-examples"):
            gr.HTML("<span class='sk-note'>Try:</span>")
            self.examples = [
                (gr.Button(text, size="sm", variant="secondary"), text) for text, _ in EXAMPLES
            ]

    def _aloud(self) -> None:
        with gr.Accordion("Ask aloud: microphone or file", open=False, elem_id="aloud"):
            self.deafness = gr.HTML(_deafness(self.lm), padding=False)
            self.spoken = gr.Audio(sources=["microphone", "upload"], type="filepath",
                                   label="Spoken prompt", visible=self.lm.listener is not None,
                                   elem_id="spoken")  # fmt: skip

    def _settings(self) -> None:
        plain, lm = CompareSettings(), self.lm
        with gr.Accordion("Settings: model, schedule, exits, sampling", open=False):
            with gr.Row():
                self.model = gr.Dropdown(self.shelf.choices(), value=lm.name, label="Model",
                                         elem_id="model")  # fmt: skip
                self.schedule = gr.Dropdown([*SCHEDULES, "k4", "k6"], value=plain.schedule,
                                            label="SPAR-K: schedule")  # fmt: skip
                self.exit_layer = gr.Dropdown(list(lm.candidate_exits), value=lm.default_exit,
                                              label="SPAR-K: exit layer")  # fmt: skip
                self.head = gr.Dropdown(list(get_args(HeadKind)), value=plain.head,
                                        label="Exit heads")  # fmt: skip
            with gr.Row():
                titles = [(MEASURE_TITLES[measure], measure) for measure in MEASURES]
                self.measure = gr.Dropdown(titles, value=plain.measure,
                                           label="Confidence: measure")  # fmt: skip
                self.threshold = gr.Slider(0, 1, plain.threshold, step=0.01,
                                           label="Confidence: threshold")  # fmt: skip
                self.temperature = gr.Slider(0, 2, plain.temperature, step=0.05,
                                             label="Temperature (0 is greedy)")  # fmt: skip
                self.top_p = gr.Slider(0.05, 1, plain.top_p, step=0.05, label="Top-p")
            with gr.Row():
                self.seed = gr.Number(plain.seed, precision=0, label="Seed", elem_id="seed")
                self.replays = gr.Slider(0, 20, 5, step=1,
                                         label="Replays that time the policies")  # fmt: skip
                self.blind = gr.Checkbox(False, label="Blind mode: hide which is which",
                                         elem_id="blind")  # fmt: skip

    # Values

    def wanted(self, values: Mapping[Any, Any]) -> CompareSettings:
        """The settings as they stand in the form; raises ValueError for a seed that is none."""
        return CompareSettings(
            schedule=values[self.schedule],
            exit_layer=values[self.exit_layer],
            measure=values[self.measure],
            threshold=values[self.threshold],
            head=values[self.head],
            temperature=values[self.temperature],
            top_p=values[self.top_p],
            seed=_seed(values[self.seed]),
        )

    def model_of(self, name: str) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where there is none."""
        if name not in self.shelf.infos:
            raise ValueError(f"there is no model “{name}”")
        if reason := self.shelf.why_not(name):
            raise ValueError(reason)
        return self.shelf.get(name)

    # Updates

    def follow(self, lm: SpokenLM) -> Updates:
        """The controls that change with the model, as it has them."""
        return {
            self.exit_layer: self.exits(lm),
            self.spoken: gr.update(visible=bool(lm.listener)),
            self.deafness: _deafness(lm),
        }

    @staticmethod
    def exits(lm: SpokenLM, chosen: int | None = None) -> Any:
        """The menu of exit layers for a model, set to the chosen one or to the model's own."""
        value = lm.default_exit if chosen is None else chosen
        return gr.update(choices=list(lm.candidate_exits), value=value)

    def busy(self) -> Updates:
        """While a run is made."""
        return {
            self.run_button: gr.update(interactive=False),
            self.stop_button: gr.update(interactive=True),
        }

    def idle(self) -> Updates:
        """While none is."""
        return {
            self.run_button: gr.update(interactive=True),
            self.stop_button: gr.update(interactive=False),
        }


def _deafness(lm: SpokenLM) -> str:
    """Why a model takes no spoken prompt, or what it takes."""
    why = f"{lm.title} takes no spoken prompt: {lm.deafness}."
    told = why if lm.listener is None else "Up to two minutes; typed words go with it."
    return f"<p class='sk-note'>{escape(told)}</p>"


def _seed(value: float | None) -> int:
    if value is None or not 0 <= value <= MOST_SEED:
        raise ValueError(
            f"The seed must be a whole number from 0 to {MOST_SEED}. Type one, for example 1."
        )
    return int(value)
