"""The Compare page filled in and run without a browser."""

from types import SimpleNamespace

from spark.comparison import CompareSettings
from spark.models.base import Heard, Prompt

REQUEST = SimpleNamespace(session_hash="visitor", query_params={})


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


def form(page, **changes):
    """What stands in the form, by component."""
    plain = CompareSettings()
    values = {
        "prompt": "hello there", "model": "tiny", "schedule": plain.schedule, "exit_layer": 3,
        "head": plain.head, "dial": 5, "nearness": "nats", "drift_target": plain.drift_target,
        "measure": plain.measure, "threshold": plain.threshold, "live": True,
        "temperature": plain.temperature, "top_p": plain.top_p, "seed": 1, "replays": 0,
        "repetition_penalty": 1.0, "max_tokens": 120, "system": "", "go_on": False,
        "blind": False,
    }  # fmt: skip
    shown = changes.pop("shown", None)
    asked = {getattr(page.form, name): value for name, value in {**values, **changes}.items()}
    view = {page.board.seconds: False, page.board.drift: True}
    return {**asked, **view, page.board.shown: shown}


def run(page, **changes):
    """All updates of a run, and the page's last state of each component."""
    page.runs.begin(REQUEST)
    updates = list(page.runs.run(form(page, **changes), REQUEST))
    last = {}
    for update in updates:
        last.update(update)
    return updates, last


def chosen(page, name):
    """The page's last state of each component after a model was chosen from the menu."""
    last = {}
    for update in page.choose_model(name):
        last.update(update)
    return last
