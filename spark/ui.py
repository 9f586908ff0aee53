"""The Compare page: Gradio components, and what happens to them.

Wires only: runs come from `spark.compare`, HTML from `spark.cards`, figures from `spark.plots`.
Handlers are plain methods that take values and give updates by component, so that tests call
them without a server.
"""

from __future__ import annotations

import base64
import logging
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, get_args

import gradio as gr

from spark import about, bundle, cards, compare, link, plots
from spark.comparison import SCHEDULES, CompareSettings, Comparison, Recording, Reply
from spark.download import save_script
from spark.heads import HeadKind
from spark.models.base import SpokenLM
from spark.schedule import MEASURES
from spark.shelf import Shelf, gpu
from spark.speech.audio import read_wav

POLICIES = ("full", "spark", "confidence")
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
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What one visitor's page shows.

    Attributes:
        comparison: finished or stopped.
        order: policy index at each card; the plain order unless blind.
        blind: whether the policies are still hidden.
    """

    comparison: Comparison
    order: tuple[int, ...] = (0, 1, 2)
    blind: bool = False


class ComparePage:
    """Components and handlers of the page; call inside a `gr.Blocks` context.

    Args:
        shelf: the models.
        example: a finished comparison to begin with; None begins empty.
        concurrency_id: shared by everything that runs a model, so that one runs at a time.
    """

    def __init__(
        self, shelf: Shelf, example: Comparison | None = None, concurrency_id: str = "model"
    ) -> None:
        self.shelf, self.example = shelf, example
        self._stops: dict[str, threading.Event] = {}
        self._lm = shelf.get(shelf.default)
        self._ask()
        self._settings()
        self._cards()
        self._results()
        self._connect(concurrency_id)

    # Components

    def _ask(self) -> None:
        gr.HTML(
            "<h1>SPAR-K Lab</h1><p>The same spoken answer three times: every layer for every "
            "token, SPAR-K's early exits, and confidence exit. Hear them, and see what each "
            "one cost.</p>",
            elem_classes="sk-top",
        )
        self.shown = gr.State(Shown(self.example) if self.example else None)
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

        with gr.Accordion("Ask aloud: microphone or file", open=False, elem_id="aloud"):
            self.deafness = gr.HTML(_deafness(self._lm), padding=False)
            self.spoken = gr.Audio(sources=["microphone", "upload"], type="filepath",
                                   label="Spoken prompt", visible=self._lm.listener is not None,
                                   elem_id="spoken")  # fmt: skip

    def _settings(self) -> None:
        plain, lm = CompareSettings(), self._lm
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

    def _cards(self) -> None:
        told = (
            f"Example, run when this app started: “{self.example.prompt}”" if self.example else ""
        )
        self.status = gr.HTML(cards.message(told), elem_id="status")
        self.heads, self.players, self.figures = [], [], []
        with gr.Row(equal_height=True):
            for policy in POLICIES:
                reply = self.example.reply(policy) if self.example else None
                head = cards.head(policy, _described(reply) if reply else "")
                with gr.Column(elem_classes="sk-card", min_width=250):
                    self.heads.append(gr.HTML(head))
                    self.players.append(gr.HTML(cards.player(reply) if reply else ""))
                    self.figures.append(gr.HTML(cards.figures(reply, True) if reply else ""))
        with gr.Column(visible=False) as self.vote:
            gr.Markdown("**Which sounds best?** The policies are revealed after your answer.")
            with gr.Row():
                self.votes = [gr.Button(name) for name in (*cards.LETTERS, "No difference")]

    def _results(self) -> None:
        first = self.example or Comparison("", "", CompareSettings())
        replies = first.replies
        with gr.Column(visible=bool(replies)) as self.results:
            self.finding = gr.Markdown(plots.finding(first), elem_classes="sk-finding")
            gr.Markdown("## Depth at each token", elem_classes="sk-section")
            self.seconds = gr.Checkbox(False, label="x axis in seconds of speech")
            self.depth = gr.Plot(self._depth_figure(replies, False), show_label=False,
                                 elem_id="depth-plot", elem_classes="sk-plot")  # fmt: skip
            gr.HTML(
                "<p class='sk-note'>A hollow mark waits for its upper layers; a triangle is a "
                "refresh, which runs them for all that wait. A click on a mark plays the sound "
                "from there; the table of tokens below does the same by keyboard.</p>"
            )
            gr.Markdown("## How many tokens ran how deep", elem_classes="sk-section")
            self.histogram = gr.Plot(plots.histogram_figure(replies), show_label=False,
                                     elem_classes="sk-plot")  # fmt: skip
            with gr.Accordion("All figures", open=False):
                self.table = gr.HTML(cards.summary_table(first))
            with gr.Accordion("Every token", open=False):
                self.tokens = gr.HTML(cards.token_tables(replies))
            with gr.Row():
                self.download = gr.Button("Download everything (zip)", elem_id="download")
                self.copy = gr.Button("Copy link", elem_id="copy-link")
            self.address = gr.Textbox(label="Link to this prompt, settings and seed",
                                      interactive=False, visible=False,
                                      elem_id="address")  # fmt: skip
        self.archive = gr.Textbox(visible=False)

    # Events

    def _connect(self, concurrency_id: str) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.asked = [
            self.prompt, self.model, self.schedule, self.exit_layer, self.head, self.measure,
            self.threshold, self.temperature, self.top_p, self.seed,
        ]  # fmt: skip
        self.outputs = [
            self.shown, self.status, self.run_button, self.stop_button, *self.heads,
            *self.players, *self.figures, self.vote, self.results, self.finding, self.depth,
            self.histogram, self.table, self.tokens, self.address,
        ]  # fmt: skip
        asked, outputs = self.asked, self.outputs
        pressed = gr.on([self.run_button.click, self.prompt.submit], self.begin, None,
                        [self.status, self.run_button, self.stop_button],
                        queue=False, **private)  # fmt: skip
        ran = pressed.then(self.run,
                           {*asked, self.spoken, self.replays, self.blind, self.seconds}, outputs,
                           concurrency_id=concurrency_id, concurrency_limit=1,
                           api_visibility="private", show_progress="minimal",
                           show_progress_on=self.status)  # fmt: skip
        # What ends a run before or outside `run`: a full queue, a value that gradio refuses.
        ran.failure(self.failed, None, [self.status, self.run_button, self.stop_button],
                    queue=False, **private)  # fmt: skip
        # The axis may have been switched while it ran.
        ran.success(self.redraw, [self.shown, self.seconds], self.depth, **private)
        self.stop_button.click(self.stop, None, self.status, queue=False, **private)
        for place, button in enumerate(self.votes):
            button.click(lambda shown, seconds, place=place: self.reveal(shown, seconds, place),
                         [self.shown, self.seconds], outputs, **private)  # fmt: skip
        self.seconds.change(self.redraw, [self.shown, self.seconds], self.depth, **private)
        # By hand only: a link that names a model brings its exit layer along.
        self.model.input(self.choose_model, self.model,
                         [self.status, self.exit_layer, *self.ears()], **private)  # fmt: skip
        for button, text in self.examples:
            button.click(None, None, self.prompt, js=f"() => {text!r}", **private)
        self.download.click(self.zipped, self.shown, self.archive, **private).then(
            None,
            self.archive,
            None,
            js=save_script("application/zip", "spar-k-comparison.zip"),
            **private,
        )
        self.copy.click(self.linked, set(asked), self.address, **private).then(
            None, self.address, self.address, js=_COPY, **private
        )

    def load(self, request: gr.Request) -> Updates:
        """A visitor opens the page, perhaps by a link: its prompt and settings are taken over."""
        updates = self._restored(link.from_query(dict(request.query_params)))
        return updates or {self.status: gr.skip()}  # gradio takes no empty dict

    def load_outputs(self) -> list[Any]:
        """Components that `load` may change."""
        return [self.status, *self.asked, *self.ears()]

    def ears(self) -> list[Any]:
        """Components of a spoken prompt, which change with the model."""
        return [self.spoken, self.deafness]

    def _restored(self, given: link.Linked) -> Updates:
        """What a link asks for, as far as the controls take it, and what they do not."""
        updates: Updates = {self.prompt: given.prompt} if given.prompt else {}
        problems, settings, lm = list(given.unread), dict(given.settings), self._lm
        if given.model and given.model != lm.name:
            try:
                lm = self._model(given.model)
                updates[self.model] = given.model
                updates[self.exit_layer] = _exits(lm)
                updates |= self._ears_of(lm)
            except ValueError as error:
                problems.append(str(error))
                settings.pop("exit_layer", None)  # of a model that is not taken
        offers = self._offers(lm)
        for name, value in settings.items():
            if problem := offers[name].refusal(value):
                problems.append(problem)
            else:
                updates[getattr(self, name)] = _exits(lm, value) if name == "exit_layer" else value
        if problems:
            text = f"The link could not be followed in full: {'; '.join(problems)}."
            updates[self.status] = cards.message(text, "alert")
        return updates

    def _offers(self, lm: SpokenLM) -> dict[str, link.Offer]:
        """What the controls that a link can set take, with this model."""
        offers = {"exit_layer": link.Offer(str(self.exit_layer.label), tuple(lm.candidate_exits)),
                  "seed": link.Offer(str(self.seed.label), low=0, high=MOST_SEED)}  # fmt: skip
        for menu in ("schedule", "measure", "head"):
            control = getattr(self, menu)
            offers[menu] = link.Offer(control.label, tuple(value for _, value in control.choices))
        for number in ("threshold", "temperature", "top_p"):
            control = getattr(self, number)
            offers[number] = link.Offer(control.label, (), control.minimum, control.maximum)
        return offers

    def begin(self, request: gr.Request) -> Updates:
        """The button was pressed: from now on Stop means this run, also while it waits."""
        if _session(request) in self._stops:  # Enter in the prompt during a run begins no other
            return {self.status: gr.skip()}
        self._stops[_session(request)] = threading.Event()
        return {self.status: cards.message("Waiting for a turn ..."), **self._busy()}

    def stop(self, request: gr.Request) -> str:
        """End this visitor's run at its next token; what is there is kept."""
        if event := self._stops.get(_session(request)):
            event.set()
        return cards.message("Stopping ...")

    def failed(self, request: gr.Request) -> Updates:
        """Gradio refused the run or lost it; its own notice names the cause."""
        self._stops.pop(_session(request), None)
        text = (
            "This run could not be made: too many are waiting, or a setting was refused. "
            "Nothing you typed is lost. Please try again in a moment."
        )
        return {self.status: cards.message(text, "alert"), **self._idle()}

    def run(self, form: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Run a comparison and show it as it comes; a message, and nothing lost, if it cannot."""
        stop = self._stops.setdefault(_session(request), threading.Event())
        try:
            settings, prompt = self._wanted(form), form[self.prompt]
            lm = self._model(form[self.model])
            # A recording for a model that cannot hear is one left over from another model.
            spoken = form[self.spoken] if lm.listener else None
            recording = Recording(*read_wav(spoken)) if spoken else None
            settings.policies(lm), settings.sampling()
            if recording is None:
                settings.prompt(lm, prompt)
            events = gpu(compare.stream, lm)(
                lm, prompt, settings, recording=recording, replays=int(form[self.replays]),
                stop=stop.is_set,
            )  # fmt: skip
            follow = self._blindly if form[self.blind] else self._openly
            yield from follow(lm, events, form[self.seconds])
        except ValueError as error:
            yield {self.status: cards.message(str(error), "alert"), **self._idle()}
        except Exception:
            log.exception("a comparison failed")
            text = (
                "This run failed through an error of the lab, which is in its log. "
                "Nothing you typed is lost. Please try again, or try other settings."
            )
            yield {self.status: cards.message(text, "alert"), **self._idle()}
        finally:
            self._stops.pop(_session(request), None)

    def _wanted(self, form: Mapping[Any, Any]) -> CompareSettings:
        """The settings as they stand in the form; raises ValueError for a seed that is none."""
        return CompareSettings(
            schedule=form[self.schedule],
            exit_layer=form[self.exit_layer],
            measure=form[self.measure],
            threshold=form[self.threshold],
            head=form[self.head],
            temperature=form[self.temperature],
            top_p=form[self.top_p],
            seed=_seed(form[self.seed]),
        )

    def _model(self, name: str) -> SpokenLM:
        """The model of that name; raises ValueError with the reason where there is none."""
        if name not in self.shelf.infos:
            raise ValueError(f"there is no model “{name}”")
        if reason := self.shelf.why_not(name):
            raise ValueError(reason)
        return self.shelf.get(name)

    def _openly(
        self, lm: SpokenLM, events: Iterator[compare.Event], seconds: bool
    ) -> Iterator[Updates]:
        """Cards fill as their tokens come."""
        yield self._cleared([cards.waiting(policy) for policy in POLICIES])
        replies: list[Reply] = []
        for event in events:
            match event:
                case compare.Progress(policy, trace):
                    words = lm.decode_text(trace.text_ids())
                    text = cards.progress(policy, trace, lm.max_tokens, words)
                    yield {
                        self.status: cards.message(f"Running: {cards.title(policy)}"),
                        self.heads[POLICIES.index(policy)]: text,
                    }
                case compare.Answered(reply, complete):
                    if not complete:
                        replies.append(reply)
                    yield self._answered(reply, complete, replies, seconds)
                case compare.Replayed(done, total):
                    text = f"Timing: replay {done} of {total}. The sounds are ready."
                    yield {self.status: cards.message(text)}
                case compare.Finished(comparison):
                    yield self._finished(Shown(comparison), seconds)

    def _blindly(
        self, lm: SpokenLM, events: Iterator[compare.Event], seconds: bool
    ) -> Iterator[Updates]:
        """Nothing is told until all are done; then three sounds in an order of their own."""
        yield {
            **self._cleared([cards.blind_head(place) for place in range(3)]),
            self.status: cards.message(
                "Running all three. They appear together when all are done."
            ),
        }
        for event in events:
            if isinstance(event, compare.Finished):
                yield self._blind_round(event.comparison, seconds)

    def _blind_round(self, comparison: Comparison, seconds: bool) -> Updates:
        cut = any(reply.trace.finish == "interrupted" for reply in comparison.replies)
        if cut or len(comparison.replies) < len(POLICIES):  # a length would tell them apart
            return self._finished(Shown(comparison), seconds, players=True)
        order = random.SystemRandom().sample(range(len(POLICIES)), len(POLICIES))
        updates: Updates = {
            self.shown: Shown(comparison, tuple(order), blind=True),
            self.status: cards.message("Ready: listen to A, B and C, then say which sounds best."),
            self.vote: gr.update(visible=True),
            **self._idle(),
        }
        for place, policy in enumerate(order):
            updates[self.players[place]] = cards.blind_player(comparison.replies[policy], place)
        return updates

    def reveal(self, shown: Shown | None, seconds: bool, place: int) -> Updates:
        """After a vote: which card was which, with everything that was hidden."""
        if shown is None or not shown.blind:
            return {self.status: gr.skip()}
        if place < len(POLICIES):
            name = cards.title(shown.comparison.replies[shown.order[place]].policy)
            text = f"You chose {cards.LETTERS[place]}, which is {name}."
        else:
            text = "You heard no difference."
        revealed = Shown(shown.comparison, shown.order)
        return {**self._finished(revealed, seconds, players=True, letters=True),
                self.status: cards.message(text)}  # fmt: skip

    # Updates

    def _busy(self) -> Updates:
        return {
            self.run_button: gr.update(interactive=False),
            self.stop_button: gr.update(interactive=True),
        }

    def _idle(self) -> Updates:
        return {
            self.run_button: gr.update(interactive=True),
            self.stop_button: gr.update(interactive=False),
        }

    def _cleared(self, heads: list[str]) -> Updates:
        """The page before a run: empty cards, nothing of an earlier run left."""
        texts = [*self.players, *self.figures, self.finding, self.table, self.tokens]
        blank = {**dict.fromkeys(texts, ""), self.depth: None, self.histogram: None}
        return {
            **dict(zip(self.heads, heads, strict=True)),
            **blank,
            self.shown: None,
            self.vote: gr.update(visible=False),
            self.results: gr.update(visible=False),
            self.address: gr.update(visible=False),
            **self._busy(),
        }

    def _answered(
        self, reply: Reply, complete: bool, replies: list[Reply], seconds: bool
    ) -> Updates:
        """A card has its sound or its figures. The player is set once: it may be playing."""
        place = POLICIES.index(reply.policy)
        updates: Updates = {
            self.heads[place]: cards.head(reply.policy, _described(reply)),
            self.figures[place]: cards.figures(reply, complete),
        }
        if not complete:
            updates[self.players[place]] = cards.player(reply)
            updates[self.results] = gr.update(visible=True)
            updates[self.depth] = self._depth_figure(replies, seconds)
        return updates

    def _finished(
        self, shown: Shown, seconds: bool, players: bool = False, letters: bool = False
    ) -> Updates:
        """The end of a run or of a blind round; `players` where the cards have none yet."""
        comparison = shown.comparison
        done = "Stopped; what was there is kept." if comparison.stopped else "Done."
        updates = self._everything(shown, seconds, players=players, letters=letters)
        if len(comparison.replies) < len(POLICIES):
            rest = POLICIES[len(comparison.replies) :]
            updates.update({self.heads[POLICIES.index(p)]: cards.head(p, "not run") for p in rest})
        return {**updates, self.status: cards.message(done), **self._idle()}

    def _everything(self, shown: Shown, seconds: bool, players: bool, letters: bool) -> Updates:
        """All that a finished comparison shows."""
        comparison = shown.comparison
        updates: Updates = {
            self.shown: shown,
            self.vote: gr.update(visible=False),
            self.results: gr.update(visible=bool(comparison.replies)),
            self.finding: plots.finding(comparison),
            self.depth: self._depth_figure(comparison.replies, seconds),
            self.histogram: plots.histogram_figure(comparison.replies),
            self.table: cards.summary_table(comparison),
            self.tokens: cards.token_tables(comparison.replies),
        }
        for place, index in enumerate(shown.order[: len(comparison.replies)]):
            reply = comparison.replies[index]
            letter = cards.LETTERS[place] if letters else ""
            updates[self.heads[place]] = cards.head(reply.policy, _described(reply), letter)
            updates[self.figures[place]] = cards.figures(reply, complete=True)
            if players:
                updates[self.players[place]] = cards.player(reply)
        return updates

    @staticmethod
    def _depth_figure(replies: list[Reply], seconds: bool) -> Any:
        return plots.depth_figure(replies, "seconds" if seconds else "tokens")

    # Small handlers

    def redraw(self, shown: Shown | None, seconds: bool) -> Any:
        """The depth plot on the other x axis."""
        if shown is None or shown.blind:
            return gr.skip()
        return self._depth_figure(shown.comparison.replies, seconds)

    def choose_model(self, name: str) -> Updates:
        """Another model: its exits, or why it cannot run here."""
        if reason := self.shelf.why_not(name):
            return {self.status: cards.message(reason, "alert")}
        try:
            lm = self.shelf.get(name)
        except ValueError as error:
            return {self.status: cards.message(str(error), "alert")}
        told = " ".join(filter(None, (f"Model: {lm.title}.", *lm.notes, lm.silence)))
        return {self.exit_layer: _exits(lm), self.status: cards.message(told)} | self._ears_of(lm)

    def _ears_of(self, lm: SpokenLM) -> Updates:
        shown = gr.update(visible=lm.listener is not None)
        return {self.spoken: shown, self.deafness: _deafness(lm)}

    def zipped(self, shown: Shown | None) -> str:
        """The comparison's zip, base64; empty while there is none to give."""
        if shown is None or shown.blind:
            return ""
        return base64.b64encode(bundle.zip_bytes(shown.comparison)).decode()

    def linked(self, form: Mapping[Any, Any]) -> Any:
        """The query string of what stands in the form."""
        try:
            query = link.to_query(form[self.model], form[self.prompt], self._wanted(form))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return gr.update(value=query, visible=True)


def _deafness(lm: SpokenLM) -> str:
    """Why a model takes no spoken prompt, or what it takes."""
    told = f"{lm.title} takes no spoken prompt: {lm.deafness}."
    if lm.listener is not None:
        told = "Up to two minutes; typed words go with it."
    return f"<p class='sk-note'>{escape(told)}</p>"


def about_page(shelf: Shelf) -> None:
    """Components of the About page."""
    with gr.Column(elem_classes="sk-about"):
        gr.Markdown("# About\n" + about.METHOD)
        gr.HTML(about.picture())
        gr.Markdown(about.MODEL + about.models_table(list(shelf.infos.values())) + about.CITE)


_COPY = """(query) => {
  const address = location.origin + location.pathname + query;
  navigator.clipboard?.writeText(address).catch(() => {});
  return address;
}"""


def _session(request: Any) -> str:
    return str(getattr(request, "session_hash", None) or "")


def _exits(lm: SpokenLM, chosen: int | None = None) -> Any:
    """The menu of exit layers for a model, set to the chosen one or to the model's own."""
    value = lm.default_exit if chosen is None else chosen
    return gr.update(choices=list(lm.candidate_exits), value=value)


def _seed(value: float | None) -> int:
    if value is None or not 0 <= value <= MOST_SEED:
        raise ValueError(
            f"The seed must be a whole number from 0 to {MOST_SEED}. Type one, for example 1."
        )
    return int(value)


def _described(reply: Reply) -> str:
    """One line on how a reply was decoded."""
    exits = sorted({step.depth for step in reply.trace.steps})
    layers = len(reply.trace.weights.layers)
    early = [str(depth) for depth in exits if depth < layers]
    if reply.policy == "full":
        return f"all {layers} layers for every token"
    if not early:
        return f"no token stopped early; {layers} layers"
    return f"{layers} layers, exits after {', '.join(early)}"
