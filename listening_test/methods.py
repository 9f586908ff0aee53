"""The methods of listening tests: what is asked, in which words, about how many clips.

Labels and their order are the standards' (ITU-T P.800 Annexes B, D and E, P.835, ITU-R BS.1534),
read in pages that quote them. Naturalness and listening preference are no scales of a standard:
they borrow the labels, so the question is always printed with the result. This module knows no
study, no sound and no rater.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["acr", "dcr", "ccr", "ab", "abx", "mushra", "p835"]
Dimension = Literal["naturalness", "quality", "effort"]
Value = int | str
Options = tuple[tuple[Value, str], ...]

# Scores of the reference of a MUSHRA test and of its five bands.
SLIDER = (0, 100)
BANDS = ("Excellent", "Good", "Fair", "Poor", "Bad")


@dataclass(frozen=True)
class Question:
    """One question of a trial.

    Attributes:
        dimension: what the answer is of, as in the ratings' column.
        text: as the rater reads it.
        options: value and label of each answer, in the order shown; empty for a slider a clip.
        scale_id: which wording this is, for the ratings' column.
    """

    dimension: str
    text: str
    options: Options
    scale_id: str

    def label(self, value: Value) -> str:
        """What the rater saw beside `value`."""
        if not self.options:
            return BANDS[min((SLIDER[1] - int(value)) // 20, len(BANDS) - 1)]
        return dict(self.options)[value]

    def allows(self, value: Value) -> bool:
        """Whether `value` can be an answer."""
        if not self.options:
            return isinstance(value, int) and SLIDER[0] <= value <= SLIDER[1]
        return value in dict(self.options)


def _scale(labels: tuple[str, ...], lowest: int = 1) -> Options:
    """Numbered options from the highest down to `lowest`."""
    highest = lowest + len(labels) - 1
    return tuple((highest - i, label) for i, label in enumerate(labels))


# P.800 Annex B.
QUALITY = ("Excellent", "Good", "Fair", "Poor", "Bad")
EFFORT = (
    "Complete relaxation possible; no effort required",
    "Attention necessary; no appreciable effort required",
    "Moderate effort required",
    "Considerable effort required",
    "No meaning understood with any feasible effort",
)
# P.800 Annex D: what the degradation of the second clip against the first is.
DEGRADATION = (
    "Inaudible",
    "Audible but not annoying",
    "Slightly annoying",
    "Annoying",
    "Very annoying",
)
# P.800 Annex E: the second clip compared with the first.
COMPARISON = (
    "Much better",
    "Better",
    "Slightly better",
    "About the same",
    "Slightly worse",
    "Worse",
    "Much worse",
)
# P.835, in the wording of the P.808 toolkit's template.
SIGNAL = ("Not distorted", "Slightly distorted", "Somewhat distorted", "Fairly distorted",
          "Very distorted")  # fmt: skip
BACKGROUND = ("Not noticeable", "Slightly noticeable", "Noticeable but not intrusive",
              "Somewhat intrusive", "Very intrusive")  # fmt: skip

PREFERENCE: Options = (("a", "A"), ("tie", "No difference"), ("b", "B"))
IDENTITY: Options = (("a", "A"), ("b", "B"))

_ACR: dict[str, tuple[str, tuple[str, ...], str]] = {
    "naturalness": ("How natural does the speech sound?", QUALITY, "p800-acr-5"),
    "quality": ("What is the quality of the speech?", QUALITY, "p800-acr-5"),
    "effort": (
        "What effort is required to understand the meaning of the sentence?",
        EFFORT,
        "p800-effort-5",
    ),
}
_COMPARED = {
    "naturalness": "naturalness",
    "quality": "quality",
    "effort": "ease of understanding",
}
_PREFERRED = {
    "naturalness": "Which of the two sounds more natural?",
    "quality": "Which of the two has the better quality?",
    "effort": "Which of the two is easier to understand?",
}


def questions(method: MethodName, dimension: Dimension) -> tuple[Question, ...]:
    """The questions of one trial, in the order asked."""
    if method == "acr":
        text, labels, scale = _ACR[dimension]
        return (Question(dimension, text, _scale(labels), scale),)
    if method == "dcr":
        text = "How is the degradation of the second clip against the first?"
        return (Question("degradation", text, _scale(DEGRADATION), "p800-dcr-5"),)
    if method == "ccr":
        text = f"The {_COMPARED[dimension]} of the second clip compared with the first is:"
        return (Question(dimension, text, _scale(COMPARISON, -3), "p800-ccr-7"),)
    if method == "ab":
        return (Question(dimension, _PREFERRED[dimension], PREFERENCE, "preference-3"),)
    if method == "abx":
        return (Question("identity", "Which of the two is X?", IDENTITY, "abx-2"),)
    if method == "mushra":
        text = "How is the quality of each clip, compared with the reference?"
        return (Question("quality", text, (), "bs1534-100"),)
    return (
        Question("sig", "Listen to the speech alone. How distorted is it?", _scale(SIGNAL),
                 "p835-sig-5"),
        Question("bak", "Listen to the background alone. How noticeable is it?",
                 _scale(BACKGROUND), "p835-bak-5"),
        Question("ovrl", "What is the overall quality of what you heard?", _scale(QUALITY),
                 "p835-ovrl-5"),
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a trial of a method is made of clips.

    Attributes:
        conditions: `each` system is a trial, each with the `reference` first, each `pair` of
            systems, or `all` systems together.
        names: of the clips on the page; empty where there is one, or where they are numbered.
        in_turn: played one after the other with one press, as P.800 has it.
    """

    conditions: Literal["each", "reference", "pair", "all"]
    names: tuple[str, ...] = ()
    in_turn: bool = False


LAYOUTS: dict[str, Layout] = {
    "acr": Layout("each"),
    "p835": Layout("each"),
    "dcr": Layout("reference", ("First", "Second"), in_turn=True),
    "ccr": Layout("pair", ("First", "Second"), in_turn=True),
    "ab": Layout("pair", ("A", "B")),
    "abx": Layout("pair", ("A", "B", "X")),
    "mushra": Layout("all"),
}
NEEDS_REFERENCE = ("dcr", "mushra")
# Methods whose answer is a choice of clip, not a score.
CHOICE_METHODS = ("ab", "abx")
# Low-pass cutoff of BS.1534's mid anchor, in hertz.
MID_ANCHOR = 7000


def conditions(layout: Layout, systems: int) -> int:
    """Trials of one text: one a system, one a pair of systems, or one in all."""
    n = systems
    return {"each": n, "reference": n - 1, "pair": n * (n - 1) // 2, "all": 1}[layout.conditions]
