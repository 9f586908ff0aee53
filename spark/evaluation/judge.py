"""Lets a language model judge an evaluation's replies, through any OpenAI-compatible endpoint.

    python -m spark.evaluation.judge DIR --judge gpt-4o-mini

The endpoint is OPENAI_BASE_URL (a local server's, or OpenAI's own by default), the key
OPENAI_API_KEY. What it will take is told before it starts; every judgement is a line of
DIR/judged.jsonl as it is made, and is not asked for again. Replies in the same words are judged
once. Knows lines, scales and HTTP; runs no model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spark import jsonl
from spark.evaluation import summary
from spark.evaluation.endpoint import Endpoint, EndpointError
from spark.evaluation.runner import ITEMS, read_lines
from spark.evaluation.scales import SCALES, Scale, messages, usual
from spark.evaluation.summary import JUDGED, judged_key

_LETTERS_A_TOKEN = 4  # of English, roughly
_MARKS = 20  # tokens that a request has beside its texts, roughly


@dataclass(frozen=True)
class Question:
    """One thing to ask the judge, and the lines it is about.

    Attributes:
        scale: of the judge.
        asked: messages as they are sent.
        lines: (item, policy) of the replies in these words.
    """

    scale: Scale
    asked: list[dict[str, str]]
    lines: tuple[tuple[str, str], ...]


def questions(
    replies: Sequence[Mapping[str, Any]], scale: str | None, channel: str
) -> list[tuple[Question, str]]:
    """What there is to ask, and the digest of each; replies in the same words are one question.

    Raises:
        ValueError: the replies have no sound, and what was heard is to be judged.
    """
    found: dict[str, tuple[Scale, list[dict[str, str]], list[tuple[str, str]]]] = {}
    for line in replies:
        if "refused" in line or line[channel] is None:  # not taken, or made without a voice
            continue
        chosen = SCALES[scale] if scale else usual(line)
        asked = messages(chosen, line, channel)
        digest = hashlib.sha256(json.dumps([chosen.name, asked]).encode()).hexdigest()
        found.setdefault(digest, (chosen, asked, []))[2].append((line["item_id"], line["policy"]))
    if not found and any(line.get(channel, "") is None for line in replies):
        raise ValueError(
            "these replies were made without a voice, so nothing was heard: --channel text judges "
            "the model's own words"
        )
    return [
        (Question(chosen, asked, tuple(of)), digest)
        for digest, (chosen, asked, of) in found.items()
    ]


@dataclass(frozen=True)
class Estimate:
    """What judging will take: requests, and tokens by a rule of thumb."""

    requests: int
    tokens_in: int
    tokens_out: int

    @classmethod
    def of(cls, wanted: Sequence[Question]) -> Estimate:
        """Sum over the questions; replies of the judge at their longest."""
        samples = [question.scale.samples for question in wanted]
        letters = (sum(len(part["content"]) for part in question.asked) for question in wanted)
        sizes = [_MARKS + count // _LETTERS_A_TOKEN for count in letters]
        return cls(
            sum(samples),
            sum(size * count for size, count in zip(sizes, samples, strict=True)),
            sum(question.scale.longest * question.scale.samples for question in wanted),
        )

    def words(self, price_in: float | None, price_out: float | None) -> str:
        """For people; prices are of a million tokens."""
        told = (
            f"{self.requests} requests, about {self.tokens_in:,} tokens to the judge and at most "
            f"{self.tokens_out:,} from it"
        )
        if price_in is None or price_out is None:
            return f"{told}; --price-in and --price-out (of a million tokens) give the cost"
        cost = (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6
        return f"{told}: at most about {cost:.2f} in the prices' currency"


def judged(
    endpoint: Endpoint, wanted: Sequence[tuple[Question, str]], channel: str, parallel: int
) -> Iterator[list[dict[str, Any]]]:
    """Asks; yields the lines of each question as it is answered, in any order.

    Raises:
        EndpointError: the endpoint refuses or stays away; the other questions are given up.
    """
    with ThreadPoolExecutor(parallel) as pool:
        waiting = {pool.submit(_replies, endpoint, one): (one, digest) for one, digest in wanted}
        try:
            for future in as_completed(waiting):
                question, digest = waiting[future]
                yield _lines(endpoint.model, question, digest, channel, future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _replies(endpoint: Endpoint, question: Question) -> list[str]:
    scale = question.scale
    return [
        endpoint.reply(question.asked, scale.temperature, scale.top_p, scale.longest)
        for _ in range(scale.samples)
    ]


def _lines(
    judge: str, question: Question, digest: str, channel: str, replies: Sequence[str]
) -> list[dict[str, Any]]:
    """One line a reply that was judged; its score is the mean of what could be read."""
    scale = question.scale
    points = [value for value in map(scale.read, replies) if value is not None]
    score = sum(points) / len(points) / scale.best if points else None
    told = {
        "judge": judge, "scale": scale.name, "channel": channel, "asked": digest,
        "score": score, "invalid": len(replies) - len(points), "replies": list(replies),
    }  # fmt: skip
    return [{"item_id": item, "policy": policy, **told} for item, policy in question.lines]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m spark.evaluation.judge", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of an evaluation")
    parser.add_argument("--judge", required=True, metavar="MODEL", help="as the endpoint calls it")
    parser.add_argument("--channel", choices=("heard", "text"), default="heard",
                        help="the sound's transcript, or the model's own words")  # fmt: skip
    parser.add_argument("--scale", choices=tuple(SCALES), help="default: the set's own")
    parser.add_argument("--parallel", type=int, default=4, help="requests at a time")
    parser.add_argument("--price-in", type=float, help="of a million tokens to the judge")
    parser.add_argument("--price-out", type=float, help="of a million tokens from it")
    parser.add_argument("--yes", action="store_true", help="start without being asked")
    return parser


def _agreed(given: argparse.Namespace) -> bool:
    if given.yes:
        return True
    if not sys.stdin.isatty():
        print("nobody is there to say yes: give --yes to start", file=sys.stderr)
        return False
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges what is not judged yet and writes the summary anew; 2 after a refusal."""
    given = _arguments().parse_args(arguments)
    path = given.folder / JUDGED
    lines = read_lines(given.folder / ITEMS)
    if not lines:
        print(f"{given.folder} holds no replies: run python -m spark.evaluation", file=sys.stderr)
        return 2
    done = {judged_key(line) for line in jsonl.read(path)}
    try:
        asked = questions(lines, given.scale, given.channel)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = [one for one in asked if (one[1], given.judge, given.channel) not in done]
    estimate = Estimate.of([question for question, _ in wanted])
    print(estimate.words(given.price_in, given.price_out), file=sys.stderr)
    try:
        if wanted and not _agreed(given):
            return 2
        endpoint = Endpoint.of_environment(given.judge, os.environ)
        with tqdm(total=len(wanted), unit="reply") as bar:
            for made in judged(endpoint, wanted, given.channel, given.parallel):
                jsonl.append(path, made)
                bar.update()
        summary.write(given.folder)
    except (EndpointError, ValueError) as error:
        print(f"{error}. What was judged is kept: run the same command again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
