"""The Compare page filled in and run without a browser."""

from types import SimpleNamespace

from spark.comparison import CompareSettings

REQUEST = SimpleNamespace(session_hash="visitor", query_params={})


def form(page, **changes):
    """What stands in the form, by component."""
    plain = CompareSettings()
    values = {
        "prompt": "hello there", "model": "tiny", "schedule": plain.schedule, "exit_layer": 3,
        "head": plain.head, "measure": plain.measure, "threshold": plain.threshold,
        "temperature": plain.temperature, "top_p": plain.top_p, "seed": 1, "replays": 0,
        "repetition_penalty": 1.0, "max_tokens": 120, "system": "", "go_on": False,
        "blind": False,
    }  # fmt: skip
    shown = changes.pop("shown", None)
    asked = {getattr(page.form, name): value for name, value in {**values, **changes}.items()}
    return {**asked, page.board.seconds: False, page.board.shown: shown}


def run(page, **changes):
    """All updates of a run, and the page's last state of each component."""
    page.runs.begin(REQUEST)
    updates = list(page.runs.run(form(page, **changes), REQUEST))
    last = {}
    for update in updates:
        last.update(update)
    return updates, last
