"""Public sets of spoken questions: what they are called, where they are, what their fields mean.

AlpacaEval, Llama Questions, TriviaQA, Web Questions and Reasoning QA, from the hub or from a local
folder in OpenAudioBench's, VoiceBench's or UltraEval-Audio's layout (`layouts` finds and reads
those). Every row is checked; what is wrong is named by file and row. Runs no model.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark.evaluation import layouts
from spark.evaluation.layouts import DataError, Table
from spark.evaluation.suite import Item, Rule
from spark.models import hub


@dataclass(frozen=True)
class DataSet:
    """A set of questions as it is published.

    Attributes:
        name: as OpenAudioBench calls it; the items' family.
        title: for people.
        rule: how a reply is judged.
        question: names of the question's column, one of which must be there.
        answer: names of the right answer's column.
        needs_answer: whether a set without that column is refused.
        folder: its folder in VoiceBench or UltraEval-Audio: the config, or the repository's name.
        repo: OWNER/NAME of the hub.
        files: patterns of its files there.
    """

    name: str
    title: str
    rule: Rule
    question: tuple[str, ...]
    answer: tuple[str, ...]
    needs_answer: bool
    folder: str
    repo: str
    files: tuple[str, ...] = ("*.parquet", "*/*.parquet")


_SETS = (
    DataSet("alpaca_eval", "AlpacaEval", "judge", ("instruction", "prompt"), ("output",), False,
            "alpacaeval", "hlt-lab/voicebench", ("alpacaeval/*.parquet",)),
    DataSet("alpaca_eval_full", "AlpacaEval, all of it", "judge", ("instruction", "prompt"),
            ("output",), False, "alpacaeval_full", "hlt-lab/voicebench",
            ("alpacaeval_full/*.parquet",)),
    DataSet("llama_questions", "Llama Questions", "alias", ("Questions", "question"),
            ("Answer", "answer"), True, "llama-questions", "TwinkStart/llama-questions"),
    DataSet("web_questions", "Web Questions", "alias", ("question",), ("answers",), True,
            "speech-web-questions", "TwinkStart/speech-web-questions"),
    # The hub's name is spelled like this.
    DataSet("trivia_qa", "TriviaQA", "alias", ("question",),
            ("answer_normalized_aliases", "answer"), True,
            "speech-triavia-qa", "TwinkStart/speech-triavia-qa"),
    DataSet("reasoning_qa", "Reasoning QA", "judge", ("Prompt", "prompt"), ("参考答案",), True,
            "reasoning_qa", "baichuan-inc/OpenAudioBench", ("eval_datas/reasoning_qa/*",)),
)  # fmt: skip
SETS = {one.name: one for one in _SETS}


def load(names: Sequence[str], source: str | None, spoken: bool, scratch: Path) -> list[Item]:
    """The items of some sets, one set after the other.

    Args:
        names: of `SETS`.
        source: a folder that holds them, OWNER/NAME of the hub, or None for each set's own place
            on the hub.
        spoken: whether items come with the recording of their question.
        scratch: folder where recordings go that are no files of their own.

    Raises:
        DataError: no such set or place, a column or a recording missing, a row that says nothing.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise DataError(f"there is no suite {', '.join(unknown)}: use builtin or {', '.join(SETS)}")
    items: list[Item] = []
    for name in names:
        wanted = SETS[name]
        root = _place(wanted, source)
        table = layouts.find(root, wanted.name, wanted.folder, alone=len(names) == 1)
        items += _items(wanted, table, spoken, scratch)
    return items


def _place(wanted: DataSet, source: str | None) -> Path:
    """The folder with the set's files, fetched where it is a repository."""
    if source is not None and Path(source).is_dir():
        return Path(source)
    if source is not None and not hub.is_repo(source):
        raise DataError(
            f"there is no folder {source}: give --data a folder in OpenAudioBench's, VoiceBench's "
            "or UltraEval-Audio's layout, or OWNER/NAME of the hub"
        )
    if source is None or source == wanted.repo:
        return hub.download(wanted.repo, wanted.files, kind="dataset")
    files = (f"eval_datas/{wanted.name}/*", f"{wanted.folder}/*", "*.parquet", "data/*.parquet")
    return hub.download(source, files, kind="dataset")


def _items(wanted: DataSet, table: Table, spoken: bool, scratch: Path) -> Iterator[Item]:
    question = _column(wanted, table, wanted.question, "question")
    answer = _column(wanted, table, wanted.answer, "answer", wanted.needs_answer)
    columns = [name for name in (question, answer) if name]
    number = -1
    for number, row in enumerate(table.rows(columns, spoken)):
        place = f"{table.name}, row {number + 1}"
        name = f"{wanted.name}-{number:05d}"
        right = aliases(row.get(answer), place) if answer else ()
        yield Item(
            item_id=name,
            family=wanted.name,
            split="test",
            prompt=_words(row.get(question), place, "question"),
            expected=right[0] if right else "",
            key="",
            rule=wanted.rule,
            aliases=right,
            audio=str(layouts.recording(row, table, scratch / name, place)) if spoken else None,
        )
    if number < 0:
        raise DataError(f"{table.name} holds no rows: fetch it again")


def _column(
    wanted: DataSet, table: Table, names: Sequence[str], what: str, needed: bool = True
) -> str:
    """The first of these columns that is there; empty where none has to be."""
    found = [name for name in names if name in table.columns]
    if not found and needed:
        raise DataError(
            f"{table.name} has no column for the {what} of {wanted.title}: expected "
            f"{' or '.join(names)}, found {', '.join(table.columns)}"
        )
    return found[0] if found else ""


def _words(value: Any, place: str, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: the {what} is empty or no text")
    return value.strip()


def aliases(value: Any, place: str) -> tuple[str, ...]:
    """Right answers as a set writes them: one text, a list, or a list written as text.

    Args:
        value: of the answer's column.
        place: for messages.

    Raises:
        DataError: nothing there, or a list that cannot be read.
    """
    if isinstance(value, str) and value.strip().startswith("["):
        value = _listed(value.strip(), place)
    if isinstance(value, Mapping):
        raise DataError(f"{place}: the answer is a record with {', '.join(value)}, not texts")
    if isinstance(value, (str, int, float)):
        value = [value]
    if value is None or not len(value):
        raise DataError(f"{place}: there is no answer")
    found = (_words(str(alias), place, "answer") for alias in value)
    return tuple(dict.fromkeys(found))


def _listed(text: str, place: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, list):
            return value
    raise DataError(
        f"{place}: the answers {text[:60]!r} are no list that can be read: write them as JSON"
    )
