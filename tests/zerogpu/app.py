"""What a page does where a GPU is lent for each run; test_lending.py runs it as a process.

Prints one JSON object. The model is the tests' tiny one on the CPU; the shelf is told that it waits
for a lent GPU, which only a CUDA device would say by itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import spaces

from spark import compare, lent
from spark.comparison import CompareSettings, Recording
from spark.lending import Permit, lends
from spark.shelf import Shelf
from spark.ui import EXAMPLES, ComparePage
from tests.forms import Ears, chosen, form
from tests.tiny import tiny_lm

REQUEST = SimpleNamespace(session_hash="visitor", query_params={})
TOLD = "hello there"


def pages():
    """A page on a lent GPU and one at home, of equal models."""
    made = []
    for on_loan in (True, False):
        lm = tiny_lm()
        lm.dialogue = Ears(lm)
        shelf = Shelf(lm, [])
        if on_loan:
            shelf._lent.add(lm.name)
        with gr.Blocks():
            made.append(ComparePage(shelf))
    return made


def run(page, stop_when=None, **changes):
    """The page's last state, and every status line."""
    page.runs.begin(REQUEST)
    last, said = {}, []
    for update in page.runs.run(form(page, seed=4, **changes), REQUEST):
        last.update(update)
        said.append(update.get(page.board.status, ""))
        if stop_when and stop_when(page, update):
            page.runs.stop(REQUEST)
    return last, said


def outcome(page, last):
    """What was made; a reply that was stopped before its first code has no sound."""
    done = last[page.board.shown].comparison
    return {
        "ids": [reply.trace.ids() for reply in done.replies],
        "pcm": [None if reply.pcm is None else int(abs(reply.pcm.astype(int)).sum())
                for reply in done.replies],
        "heard": [reply.heard for reply in done.replies],
        "mos": [reply.mos_predicted for reply in done.replies],
        "stopped": done.stopped,
    }


def told(page, **changes):
    """What the page's model would be asked, straight."""
    asked = lent.Asked(page.form.shelf.number, "tiny", TOLD, CompareSettings(seed=4),
                       Permit.given())  # fmt: skip
    return replace(asked, **{"seconds": 60.0, **changes})


def seen_in_child(page):
    """Where the events come from, and that the parent's model stays as it was."""
    places = []
    real = compare.stream

    def spy(lm, *given, **more):
        lm.title = f"changed by {os.getpid()}"
        yield compare.Progress(lm.title, None)
        yield from real(lm, *given, **more)

    compare.stream = spy
    try:
        places = [event.policy for event in lent.run_on_loan(told(page))
                  if isinstance(event, compare.Progress) and event.trace is None]  # fmt: skip
    finally:
        compare.stream = real
    return {"places": places, "here": os.getpid(), "title": page.form.lm.title}


def main():
    away, home = pages()
    found = {"lends": lends()}
    last, said = run(away)
    found["away"], found["said"] = outcome(away, last), said
    found["asked"] = list(spaces.ASKED)
    found["home"] = outcome(home, run(home)[0])
    found["asked_at_home"] = len(spaces.ASKED) - len(found["asked"])
    found["child"] = seen_in_child(away)

    last, said = run(away, lambda page, update: update.get(page.board.players[0]),
                     replays=20)  # fmt: skip
    found["stop"] = {**outcome(away, last), "status": last[away.board.status]}

    permit = Permit.given()
    left = away.runs.run(form(away, replays=20), SimpleNamespace(session_hash="leaves"))
    for number, _ in enumerate(left):
        if number == 3:
            begun = time.monotonic()
            left.close()  # the visitor closed the page; the fake joins the process
            found["closed_after_s"] = time.monotonic() - begun
    permit.withdraw()

    found["refused"] = [str(event) for event in lent.run_on_loan(told(away, prompt="x" * 300))]
    late = list(lent.run_on_loan(told(away, replays=5000, seconds=4.0)))
    found["late"] = [type(event).__name__ for event in late[-2:]]
    recording = Recording(tiny_lm().vocoder.decode([1, 2, 3]), 8000)
    found["spoken"] = [str(event) for event in lent.run_on_loan(told(away, recording=recording))]

    spaces.REFUSE.append("You have 7s left. <b>Try</b> in 2:00:00.")
    last, _ = run(away)
    found["quota"] = last[away.board.status]
    found["button"] = last[away.form.run_button]["interactive"]
    spaces.REFUSE.clear()
    found["threads"] = threading.active_count()
    updates = chosen(away, "tiny")
    found["replays"] = updates[away.form.replays]
    found["loan"] = updates[away.form.facts]
    run(away, prompt=EXAMPLES[0][0], replays=updates[away.form.replays],
        max_tokens=updates[away.form.max_tokens]["value"])  # fmt: skip
    found["first"] = spaces.ASKED[-1]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
