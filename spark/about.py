"""What the About page says: the method in one picture, the model, citation, privacy.

Text only; the picture is drawn from the schedule itself, so that it cannot tell another story.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from spark.modality import Modality, Slot
from spark.models import ModelInfo
from spark.plots.comparison import LOOKS
from spark.schedule import Place, Spark

_LAYERS, _EXIT, _CHUNK = 14, 11, 4
_STEP, _UNIT, _LEFT, _TOP = 74, 11, 96, 34

METHOD = """
## What SPAR-K is

An interleaved spoken language model writes its answer as text tokens and speech tokens in turn.
Speech tokens are many and often easy, so **SPAR-K** lets most of them stop at an early layer and
runs every K-th one in full:

- **text tokens** always run every layer;
- **speech tokens** follow a fixed schedule, counted anew in each chunk: with *Triple*, one runs in
  full, the next two stop at the exit layer;
- a token that stopped keeps its hidden state. At the next full step, a **refresh**, the layers it
  left out run for it too, in one batch. After that the model's memory is exactly what full depth
  would have written for the same tokens.

So nothing is skipped for good: what is saved is the reading of weights, which is what decoding one
reply at a time waits for. What can change is the choice of a token made at the exit layer.

**Confidence exit**, the usual rival, asks at each candidate layer whether the model is sure enough
to stop. Every head it evaluates to find out is charged to its cost here.
"""

MODEL = """
## What the embedded model is, and is not

It is a real interleaved spoken language model in the small: 14 layers, about ten million
parameters, one text token then four speech tokens, 25 speech tokens a second, with its own neural
codec. This project trained all of it, on speech of a free synthesiser. It uses the same engine,
layout, schedules and exit heads as a model of eight billion parameters, and it takes real damage
when it stops too early.

It is taught sums up to twenty, comparisons, some hundreds of facts and small talk, to read short
English sentences aloud ("Say: ..."), and to say of anything else that it does not know. These
weights are not trained to the end: most of its answers are right as text, most sentences are copied
without an error, and more than seven in ten of its spoken words are understood; the measured
figures are in the README. It is no assistant, it understands no other language. Its model card is
in `assets/embedded`.
"""

CITE = """
## How to cite

The method is the paper's: *SPAR-K*, [arXiv:2603.09215](https://arxiv.org/abs/2603.09215). This lab
is an independent implementation; please cite the paper for the idea, and this repository with the
version you used for figures made here.

The lab's code is under Apache-2.0. Predicted MOS is DNSMOS P.808 as packaged in speechmos;
transcripts are pocketsphinx's with its default US English model.

## Privacy

Prompts and sounds stay in memory while your page is open and up to an hour after, and are not kept.
A copied link holds the prompt in its address. The listening test keeps scores, comments, times and
the kind of device and browser under a random number, and no name or network address. Nothing on
these pages asks another machine for anything.
"""


def models_table(infos: Sequence[ModelInfo]) -> str:
    """The models on offer and whether they can run here, as Markdown."""
    rows = "\n".join(
        f"| {escape(info.title)} | {'yes' if info.runnable else 'no: ' + escape(info.reason)} |"
        for info in infos
    )
    return f"## Models\n\n| model | runs here |\n|---|---|\n{rows}\n"


def picture() -> str:
    """Two chunks under SPAR-K Triple as SVG: depth of each token, waiting rows, refreshes."""
    policy = Spark(_EXIT, variant="triple")
    slots = [(Slot.TEXT, 0), *((Slot.SPEECH, place) for place in range(_CHUNK))] * 2
    width, height = _LEFT + _STEP * len(slots) + 10, _TOP + _UNIT * _LAYERS + 32
    parts = [_gridline(_LAYERS, width, "layer 14"), _gridline(_EXIT, width, "exit, 11")]
    waiting: list[int] = []
    for column, (slot, place) in enumerate(slots):
        early = policy.exits(Place(slot, place, _CHUNK))
        parts.append(_token(column, slot, place, _EXIT if early else _LAYERS))
        if early:
            waiting.append(column)
        elif waiting:
            parts += [_catch_up(column, waiting), _caption(column, "refresh")]
            waiting = []
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='Two chunks of one text and "
        "four speech tokens under SPAR-K Triple. Text and every third speech token run all 14 "
        "layers. The others stop after layer 11 and wait, hatched; the next full step runs their "
        "upper layers.' font-family='system-ui, sans-serif' font-size='13' fill='currentColor'>"
        "<defs><pattern id='waits' width='6' height='6' patternUnits='userSpaceOnUse' "
        "patternTransform='rotate(45)'><line x1='0' y1='0' x2='0' y2='6' stroke='currentColor' "
        f"stroke-width='1.5'/></pattern></defs>{''.join(parts)}</svg>"
    )


def _x(column: int) -> int:
    return _LEFT + _STEP * column


def _y(layer: int) -> int:
    return _TOP + _UNIT * (_LAYERS - layer)


def _gridline(layer: int, width: int, name: str) -> str:
    y = _y(layer)
    return (
        f"<line x1='{_LEFT - 10}' x2='{width}' y1='{y}' y2='{y}' stroke='currentColor' "
        f"stroke-opacity='0.35' stroke-dasharray='3 4'/><text x='6' y='{y + 4}'>{name}</text>"
    )


def _token(column: int, slot: Slot, place: int, depth: int) -> str:
    """A bar as high as the layers run; above an exit, the hatched part that waits."""
    x, base, colour = _x(column), _y(0), LOOKS[Modality(slot.value)].colour
    name = "text" if slot is Slot.TEXT else f"speech {place + 1}"
    bar = f"<rect x='{x}' y='{_y(depth)}' width='44' height='{base - _y(depth)}' fill='{colour}'/>"
    if depth < _LAYERS:
        bar += (
            f"<rect x='{x}' y='{_y(_LAYERS)}' width='44' height='{_y(depth) - _y(_LAYERS)}' "
            f"fill='url(#waits)' stroke='{colour}' stroke-dasharray='4 3'/>"
        )
    return f"{bar}<text x='{x + 22}' y='{base + 20}' text-anchor='middle'>{name}</text>"


def _catch_up(column: int, waiting: Sequence[int]) -> str:
    """A bracket over the rows that a refresh makes good."""
    left, right, y = _x(waiting[0]) + 22, _x(column) + 22, _y(_LAYERS) - 8
    return (
        f"<path d='M{left} {y + 6} V{y} H{right} V{y + 6}' fill='none' stroke='currentColor' "
        "stroke-width='1.5'/>"
    )


def _caption(column: int, text: str) -> str:
    y = _y(_LAYERS) - 14
    return f"<text x='{_x(column) + 22}' y='{y}' text-anchor='middle'>{text}</text>"
