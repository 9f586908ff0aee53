"""What the rater's page says of a study, in each of its languages.

A study's own words come from its file, standard ones from `wording.py`.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from listening_test.prepared import Texts
from listening_test.study import DEFAULT_CONSENT, DEFAULT_INSTRUCTIONS, Study
from listening_test.study_parts import PersonalQuestion, Words
from listening_test.wording import CONSENT, INSTRUCTIONS, base


def texts(study: Study) -> list[Texts]:
    """The study's words, its first language first."""
    first = Words(
        title=study.title, question=study.question, labels=study.labels,
        payment=study.payment,
        consent=None if study.consent == DEFAULT_CONSENT else study.consent,
        instructions=None if study.instructions == DEFAULT_INSTRUCTIONS else study.instructions,
    )  # fmt: skip
    further = [_texts(study, name, words) for name, words in study.languages.items()]
    return [_texts(study, study.language, first), *further]


def _texts(study: Study, language: str, words: Words) -> Texts:
    name = base(language)
    return Texts(
        language, words.title, words.consent or CONSENT.get(name, DEFAULT_CONSENT),
        words.instructions or INSTRUCTIONS.get(name, DEFAULT_INSTRUCTIONS),
        study.questions_in(language, words.question, words.labels),
        tuple(_translated(question, words) for question in study.questionnaire),
        words.payment,
    )  # fmt: skip


def _translated(question: PersonalQuestion, words: Words) -> PersonalQuestion:
    if (given := words.questionnaire.get(question.id)) is None:
        return question
    return PersonalQuestion(id=question.id, question=given.question, choices=given.choices)


def end_of_day(day: date) -> float:
    """The first second after a day (UTC), in seconds since 1970."""
    return datetime.combine(day + timedelta(days=1), time(), UTC).timestamp()
