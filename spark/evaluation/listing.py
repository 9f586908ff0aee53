"""Items of an evaluation as HTML: what each policy said, what was heard, what it cost.

Strings from rows, nothing else. Every text that a person, a data set or a model wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from spark import cards
from spark.evaluation.experiment import Reply, Row
from spark.evaluation.replay import Again

_NONE = "–"
_HEADER = ("item", "policy", "says", "heard", "right as heard", "word errors", "predicted MOS",
           "speech depth", "weights read")  # fmt: skip


def items_table(rows: Sequence[Row], policy: str | None = None) -> str:
    """A body of rows an item, a row a policy, or only that policy's."""
    if not rows:
        return "<p class='sk-note'>No item passes these filters.</p>"
    bodies = "".join(_item(row, policy, None) for row in rows)
    return cards.scrolling_table("Items", _HEADER, bodies, "sk-items")


def item_table(row: Row, again: Sequence[Again]) -> str:
    """One item with a player beside each reply."""
    sounds = {reply.policy: reply for reply in again}
    header = (*_HEADER[:2], "sound", *_HEADER[2:])
    return cards.scrolling_table("Item", header, _item(row, None, sounds), "sk-items")


def _item(row: Row, policy: str | None, sounds: Mapping[str, Again] | None) -> str:
    replies = [reply for reply in row.replies if policy in (None, reply.policy)]
    differ = "<br><b>policies disagree</b>" if row.disagreed else ""
    about = (
        f"<th scope='rowgroup' rowspan='{len(replies)}'>“{escape(row.prompt)}”<br>"
        f"<span class='sk-note'>expected: {escape(row.expected) or _NONE}<br>"
        f"{escape(row.family)}, {escape(row.item_id)}</span>{differ}</th>"
    )
    lines = "".join(
        f"<tr>{about if number == 0 else ''}{_cells(reply, sounds)}</tr>"
        for number, reply in enumerate(replies)
    )
    return f"<tbody>{lines}</tbody>"


def _cells(reply: Reply, sounds: Mapping[str, Again] | None) -> str:
    name = f"<th scope='row'>{escape(cards.title(reply.policy))}</th>"
    if reply.refused:
        wide = len(_HEADER) - 2 + (sounds is not None)
        return f"{name}<td colspan='{wide}'>not taken: {escape(reply.refused)}</td>"
    right = {None: _NONE, True: "right", False: "wrong"}[reply.right_heard]
    cells = [] if sounds is None else [_sound(sounds.get(reply.policy))]
    cells += [
        escape(reply.text) or "<i>no words</i>",
        _NONE if reply.heard is None else escape(reply.heard) or "<i>no words</i>",
        right,
        _number(reply.wer, lambda v: f"{100 * v:.0f} %"),
        _number(reply.mos, lambda v: f"{v:.2f}"),
        _number(reply.depth, lambda v: f"{v:.2f}"),
        _number(reply.traffic, lambda v: f"{100 * v:.0f} %"),
    ]
    return name + "".join(f"<td>{cell}</td>" for cell in cells)


def _sound(again: Again | None) -> str:
    if again is None:
        return _NONE
    player = "No sound: the reply holds no speech, or the model has no vocoder here."
    if again.pcm is not None:
        player = cards.sound(again.pcm, again.rate, again.policy, cards.title(again.policy))
    if again.same:
        return f"{player}<br><span class='sk-note'>the same words as in the evaluation</span>"
    return f"{player}<br><b>Not the evaluation's words.</b> Now: “{escape(again.text)}”"


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return _NONE if value is None else form(value)
