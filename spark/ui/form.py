"""What a visitor asks for: prompt, recording, model, schedule, exits, sampling.

Components, their values as settings of a comparison, and how they follow the model. Knows neither
how a run is made nor how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from spark import cards, schedule_file
from spark.acceptance import Sounding
from spark.comparison import CompareSettings, Comparison, Exchange
from spark.heads import HeadKind
from spark.lending import Permit
from spark.lent import LENT_TOKENS, Asked, seconds
from spark.models.base import SpokenLM
from spark.named import DIAL_END, SCHEDULES, at_dial, dial_of
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
_LOAN = (
    "<p class='sk-note'>A GPU is lent for each run. Hugging Face lends a visitor some minutes a "
    "day: two without an account, more with one. A run asks for what its longest reply and its "
    "replays can take, and says so: {first:.0f} s for a short question, as set at first. What a "
    "visitor has left Hugging Face does not tell beforehand; if it is too little, its refusal says "
    "the number.</p>"
)
MOST_SEED = 2**53 - 1  # a browser's numbers are exact up to here
Updates = dict[Any, Any]


class Form:
    """Components above the cards; made inside a `gr.Blocks` context.

    Args:
        shelf: the models.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._ask()
        self._aloud()
        self._settings()
        self.asked = [
            self.prompt, self.model, self.schedule, self.exit_layer, self.head, self.dial,
            self.nearness, self.drift_target, self.measure, self.threshold, self.temperature,
            self.top_p, self.repetition_penalty, self.max_tokens, self.seed, self.system,
        ]  # fmt: skip
        self.of_model = [
            self.exit_layer, self.head, self.nearness, self.temperature, self.top_p,
            self.repetition_penalty, self.max_tokens, self.replays, self.system, self.spoken,
            self.deafness, self.go_on, self.credit, self.choice, self.facts,
        ]  # fmt: skip
        self.buttons = [self.run_button, self.stop_button]

    @property
    def lm(self) -> SpokenLM:
        """The model that the page begins with; not held, so that the shelf can let it go."""
        return self.shelf.get(self.shelf.default)

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
                self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop")
        with gr.Row(elem_classes="sk-examples"):
            gr.HTML("<span class='sk-note'>Try:</span>")
            self.examples = [
                (gr.Button(text, size="sm", variant="secondary"), text) for text, _ in EXAMPLES
            ]
        self.live = gr.Checkbox(
            True, elem_id="hear-live",
            label="Play each reply while it is made; the complete clip takes over",
        )  # fmt: skip
        self.credit = gr.HTML(cards.credit(self.lm), padding=False)
        self.go_on = gr.Checkbox(
            False, visible=self.lm.dialogue is not None, elem_id="go-on",
            label="Go on: full depth's answer and all before it stand before the next question",
        )  # fmt: skip

    def _aloud(self) -> None:
        with gr.Accordion("Ask aloud: microphone or file", open=False, elem_id="aloud"):
            self.deafness = gr.HTML(_deafness(self.lm), padding=False)
            self.spoken = gr.Audio(sources=["microphone", "upload"], type="filepath",
                                   label="Spoken prompt", visible=self.lm.listener is not None,
                                   elem_id="spoken")  # fmt: skip

    def _settings(self) -> None:
        lm = self.lm
        plain = CompareSettings.of(lm)
        with gr.Accordion("Settings: model, schedule, exits, sampling", open=False):
            # The status line may lie far below the menu: what comes of a choice stands here too.
            self.choice = gr.HTML(padding=False, elem_id="choice")
            with gr.Row():
                self.model = gr.Dropdown(self.shelf.choices(), value=lm.name, label="Model",
                                         elem_id="model")  # fmt: skip
                self.schedule = gr.Dropdown(
                    list(SCHEDULES), value=plain.schedule, label="SPAR-K: schedule",
                    info="or each position's exit, as f-11-11-9", allow_custom_value=True,
                )  # fmt: skip
                self.schedule_file = gr.UploadButton("Schedule from a file", size="sm",
                                                     file_types=[".json"],
                                                     elem_id="schedule-file")  # fmt: skip
                self.exit_layer = gr.Dropdown(list(lm.candidate_exits), value=lm.default_exit,
                                              label="SPAR-K: exit layer")  # fmt: skip
                self.head = gr.Dropdown(_heads(lm), value=plain.head,
                                        label="Exit heads")  # fmt: skip
            self.facts = gr.HTML(cards.model_facts(lm), padding=False, elem_id="model-facts")
            with gr.Row():
                self.dial = gr.Slider(0, DIAL_END, dial_of(plain.acceptance), step=0.25, scale=2,
                                      label="Exits stand: 0 lossless … 5 fast",
                                      elem_id="dial")  # fmt: skip
                self.nearness = gr.Radio(
                    [("full depth's likelihood (nats)", "nats"), ("how the code sounds", "sound")],
                    value="nats", label="Near misses by", elem_id="nearness",
                    visible=isinstance(lm.vocoder, Sounding),
                )  # fmt: skip
                self.drift_target = gr.Slider(0, 1, plain.drift_target, step=0.01,
                                              label="Schedule drift: K grows up to")  # fmt: skip
            self.dial_words = gr.HTML(cards.dial(dial_of(plain.acceptance)), padding=False,
                                      elem_id="dial-words")  # fmt: skip
            self.system = gr.Textbox(lm.system_prompt or "", label="System prompt", lines=2,
                                     visible=lm.system_prompt is not None,
                                     elem_id="system")  # fmt: skip
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
                self.repetition_penalty = gr.Slider(1, 2, plain.repetition_penalty, step=0.01,
                                                    label="Repetition penalty")  # fmt: skip
                self.max_tokens = gr.Slider(1, lm.max_tokens, lm.max_tokens, step=1,
                                            label="Longest reply (tokens)")  # fmt: skip
                self.seed = gr.Number(plain.seed, precision=0, label="Seed", elem_id="seed")
                self.replays = gr.Slider(0, 20, 5, step=1,
                                         label="Replays that time the policies")  # fmt: skip
                self.blind = gr.Checkbox(False, label="Blind mode: hide which is which",
                                         elem_id="blind")  # fmt: skip

    # Values

    def wanted(self, values: Mapping[Any, Any]) -> CompareSettings:
        """The settings as they stand in the form; raises ValueError for a seed that is none."""
        lm = self.shelf.loaded(values[self.model])
        own = lm.system_prompt if lm else None
        system = values[self.system]
        return CompareSettings(
            schedule=values[self.schedule],
            exit_layer=values[self.exit_layer],
            drift_target=values[self.drift_target],
            acceptance=at_dial(values[self.dial], values[self.nearness]),
            measure=values[self.measure],
            threshold=values[self.threshold],
            head=values[self.head],
            temperature=values[self.temperature],
            top_p=values[self.top_p],
            repetition_penalty=values[self.repetition_penalty],
            max_tokens=int(values[self.max_tokens]),
            seed=_seed(values[self.seed]),
            # A text for a model that takes none is one left over from another model.
            system=None if own is None or system == own else system,
        )

    def earlier(
        self, values: Mapping[Any, Any], lm: SpokenLM, last: Comparison | None
    ) -> tuple[Exchange, ...]:
        """The conversation that the next question follows: none unless it was asked for."""
        if not values[self.go_on] or lm.dialogue is None or last is None or last.model != lm.name:
            return ()
        return last.continued()

    def model_of(self, name: str, fetch: bool = False) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where there is none.

        With `fetch`, its files are fetched first where that may be done here.
        """
        if name not in self.shelf.infos:
            raise ValueError(f"there is no model “{name}”")
        if reason := self.shelf.why_not(name):
            raise ValueError(reason)
        return self.shelf.get(name, fetch)

    # Updates

    def scheduled(self, path: str, lm: SpokenLM) -> Updates:
        """The schedule of an uploaded file; raises ValueError where it is none for this model."""
        return {self.schedule: schedule_file.read(Path(path)).schedule(lm).notation}

    def follow(self, lm: SpokenLM) -> Updates:
        """The controls that change with the model, set as its makers set them."""
        own, lent = CompareSettings.of(lm), self.shelf.lent(lm.name)
        longest = min(lm.max_tokens, LENT_TOKENS) if lent else lm.max_tokens
        updates: Updates = {
            self.exit_layer: self.placed("exit_layer", lm.default_exit, lm),
            self.head: self.placed("head", own.head, lm),
            self.nearness: self.placed("nearness", "nats", lm),
            self.temperature: own.temperature,
            self.top_p: own.top_p,
            self.repetition_penalty: own.repetition_penalty,
            self.max_tokens: self.placed("max_tokens", longest, lm),
            self.system: self.placed("system", lm.system_prompt or "", lm),
            self.spoken: gr.update(visible=bool(lm.listener)),
            self.deafness: _deafness(lm),
            self.go_on: gr.update(visible=lm.dialogue is not None, value=False),
            self.credit: cards.credit(lm),
            self.choice: "",
            self.facts: cards.model_facts(lm) + (_loan(lm) if lent else ""),
        }
        if lent:  # each replay costs as much of the visitor's time as the replies did
            updates[self.replays] = 0
        return updates

    @staticmethod
    def placed(name: str, value: Any, lm: SpokenLM) -> Any:
        """The control of that name set to a value, its bounds as the model has them."""
        match name:
            case "exit_layer":
                return gr.update(choices=list(lm.candidate_exits), value=value)
            case "head":
                return gr.update(choices=_heads(lm), value=value)
            case "nearness":
                return gr.update(visible=isinstance(lm.vocoder, Sounding), value=value)
            case "max_tokens":
                return gr.update(maximum=lm.max_tokens, value=value)
            case "system":
                return gr.update(visible=lm.system_prompt is not None, value=value)
        return value

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


def _heads(lm: SpokenLM) -> list[tuple[str, str]]:
    """The menu of exit heads: it does not offer fitted ones where a model has none."""
    titles = {} if lm.exit_heads else {"fitted": "fitted (none yet: untrained)"}
    return [(titles.get(kind, kind), kind) for kind in get_args(HeadKind)]


def _loan(lm: SpokenLM) -> str:
    """What a lent GPU means for a visitor, and what a run asks for as `follow` sets it."""
    settings = CompareSettings(max_tokens=min(lm.max_tokens, LENT_TOKENS))
    asked = Asked(0, lm.name, EXAMPLES[0][0], settings, Permit(""), live=True)
    return _LOAN.format(first=seconds(lm, asked))


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
