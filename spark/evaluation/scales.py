"""The published scales by which a language model judges replies: what it is asked, what counts.

Scales, samples and temperatures are those of the frameworks named; the wording is this project's,
so figures stand beside each other here and not beside other people's. Knows words only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """How a judge scores.

    Attributes:
        name: on command lines and in tables.
        source: whose scale it is.
        instruction: to the judge; the question, the reply and the answers follow.
        shows_answers: whether the judge sees the right answers.
        read: a judge's reply -> points, None where it cannot be read.
        best: points of the best reply.
        binary: right or wrong.
        samples: replies of the judge, whose mean counts.
        temperature, top_p: of the judge.
        longest: tokens of a judge's reply.
    """

    name: str
    source: str
    instruction: str
    shows_answers: bool
    read: Callable[[str], float | None]
    best: float
    binary: bool = False
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    longest: int = 200


def _marked(reply: str) -> float | None:
    """[Correct] or [Incorrect], not both."""
    found = {mark.lower() for mark in re.findall(r"\[(correct|incorrect)\]", reply, re.IGNORECASE)}
    return float(found == {"correct"}) if len(found) == 1 else None


def _plain_number(reply: str) -> float | None:
    """A reply that is a number from 1 to 5 and nothing else."""
    found = re.fullmatch(r"\s*([1-5](?:\.\d+)?)\s*\.?\s*", reply)
    return _within(found[1], 1, 5) if found else None


def _bracketed(low: float, high: float, brackets: int) -> Callable[[str], float | None]:
    """The last number in so many square brackets."""
    pattern = re.compile(r"\[" * brackets + r"\s*(\d+(?:\.\d+)?)\s*" + r"\]" * brackets)

    def read(reply: str) -> float | None:
        found = pattern.findall(reply)
        return _within(found[-1], low, high) if found else None

    return read


def _within(text: str, low: float, high: float) -> float | None:
    return float(text) if low <= float(text) <= high else None


_ANSWER = "A voice assistant was asked a question. You see what it said, written down."
_SCALES = (
    Scale(
        "right",
        "OpenAudioBench through the Kimi kit: right or wrong",
        f"{_ANSWER} Decide whether the reply gives the right answer. It is enough that it means "
        "one of the answers listed; other words, spellings and number words are no fault. Give a "
        "reason in a sentence, then end with [Correct] or [Incorrect].",
        True, _marked, 1, binary=True,
    ),
    Scale(
        "chat-10",
        "OpenAudioBench through the Kimi kit, UltraEval-Audio: 1 to 10, times 10",
        f"{_ANSWER} Judge without favour how good the reply is: whether it helps, keeps to the "
        "question, is true, deep enough, inventive and detailed. Give a short reason, then end "
        "with a number from 1 to 10 in double square brackets, such as [[5]].",
        False, _bracketed(1, 10, 2), 10,
    ),
    Scale(
        "chat-5",
        "VoiceBench: 1 to 5, mean of three samples",
        f"{_ANSWER} Rate the reply from 1 to 5 by how well it keeps to the question, whether it is "
        "true, and whether it is as short as it can be. 1: of no use. 2: touches the question. 3: "
        "answers it in part, or with faults. 4: good, with something left out or too much. 5: "
        "answers it fully and briefly. Reply with the number alone.",
        False, _plain_number, 5, samples=3, temperature=0.5, top_p=0.95, longest=10,
    ),
    Scale(
        "reasoning-5",
        "OpenAudioBench's Reasoning QA: 0 to 5 against a reference, times 20",
        f"{_ANSWER} Compare it with the reference: whether it comes to the same result, and by "
        "sound steps. 0: wrong altogether. 5: as right and as well reasoned as the reference. "
        "Give a short reason, then end with a number from 0 to 5 in square brackets, such as [3].",
        True, _bracketed(0, 5, 1), 5, longest=400,
    ),
    Scale(
        "chat-100",
        "SPAR-K (arXiv 2603.09215): 0 to 100",
        f"{_ANSWER} Score how good the reply is, from 0 (of no use) to 100 (nothing to be "
        "bettered). Give a short reason, then end with the number in double square brackets, such "
        "as [[50]].",
        False, _bracketed(0, 100, 2), 100,
    ),
)  # fmt: skip
SCALES: Mapping[str, Scale] = {scale.name: scale for scale in _SCALES}


def usual(line: Mapping[str, Any]) -> Scale:
    """The scale a line's set is published with, as the Kimi kit follows OpenAudioBench."""
    if line["family"].startswith("alpaca_eval"):
        return SCALES["chat-10"]
    return SCALES["reasoning-5" if line["family"] == "reasoning_qa" else "right"]


def messages(scale: Scale, line: Mapping[str, Any], channel: str) -> list[dict[str, str]]:
    """What the judge is sent about a line.

    Args:
        scale: of the judge.
        line: of items.jsonl.
        channel: "heard" for the transcript of the sound, "text" for the model's own words.
    """
    parts = [f"Question: {line['prompt']}", f"Reply: {line[channel]}"]
    if scale.shows_answers:
        answers = line.get("aliases") or [line["expected"]]
        parts.insert(1, "Right answers: " + "; ".join(answers))
    return [
        {"role": "system", "content": scale.instruction},
        {"role": "user", "content": "\n".join(parts)},
    ]
