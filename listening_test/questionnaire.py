"""What raters say about themselves, if they like: which answers can be, and their columns.

The questions are the study file's (`study_parts.PersonalQuestion`); the answers are kept with the
session (`trials.save_profile`) and go to `sessions.csv` and `raters.csv` at export. No answer is an
empty cell. This module knows neither HTTP nor the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from listening_test.columns import clean_text
from listening_test.study_parts import PersonalQuestion

MAX_TEXT = 200


def checked(questions: Iterable[PersonalQuestion], answers: Mapping[str, str]) -> dict[str, str]:
    """The answers given, safe to keep; those left empty are dropped.

    Raises:
        ValueError: an answer to no question, or one that is not among its choices.
    """
    asked = {question.id: question for question in questions}
    kept = {}
    for name, answer in answers.items():
        if name not in asked:
            raise ValueError("an answer to a question that is not asked")
        choices = asked[name].choices
        text = clean_text(answer)
        if choices and answer and answer not in choices:
            raise ValueError(f"the answer to {name} is none of its choices")
        if len(text) > MAX_TEXT:
            raise ValueError(f"the answer to {name} has more than {MAX_TEXT} characters")
        if text:
            kept[name] = answer if choices else text
    return kept


def columns(questions: Iterable[PersonalQuestion]) -> tuple[str, ...]:
    """The columns of the answers, in the order asked."""
    return tuple(f"about_{question.id}" for question in questions)
