"""The report on a listening test as blocks: methods, results, figures, what is missing.

Every figure in it comes from the analysis, every sentence of the methods from a factor. A p-value
stands only beside an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from listening_test.bundle import versions
from listening_test.document import (
    Block,
    Figure,
    Heading,
    Listing,
    Missing,
    Paragraph,
    Table,
    markdown,
)
from listening_test.figures import figures
from listening_test.report_factors import Evidence, Factor
from listening_test.tables import (
    means,
    notes,
    pair_rows,
    preference_rows,
    strength_rows,
    system_rows,
    verdicts,
)
from listening_test.texts import texts
from spark.plots.standalone import markup


def title(evidence: Evidence) -> str:
    """The report's heading."""
    return f"Listening test: {evidence.study.title}" if evidence.study else "Listening test"


def report_blocks(evidence: Evidence, found: Sequence[Factor]) -> list[Block]:
    """The whole report."""
    missing = [factor for factor in found if factor.text is None]
    told = (
        f"{len(found) - len(missing)} of {len(found)} factors of Chiang, Huang & Lee (2023) are "
        "told below."
    )
    if missing:
        told += f" {len(missing)} are marked MISSING: fill them in before this is published."
    return [
        Heading(title(evidence), 1),
        Paragraph(told),
        *_progress(evidence),
        Heading("Methods"),
        *_methods(found),
        Heading("Results"),
        *_results(evidence),
        Heading("Checklist"),
        Table([{"section": f.section, "factor": f.name, "told": _state(f)} for f in found]),
        Heading("Texts of the page"),
        *_texts(evidence),
        Heading("Software"),
        Listing(tuple(f"{name} {value}" for name, value in versions().items())),
    ]


def _state(factor: Factor) -> str:
    return "MISSING" if factor.text is None else "yes"


def _progress(evidence: Evidence) -> list[Block]:
    """A warning where the test is not at its planned end."""
    study, sessions = evidence.study, evidence.sessions
    if study is None or sessions is None or "state" not in sessions:
        return []
    counting = sessions["status"] == "use" if "status" in sessions else True
    done = int(((sessions["state"] == "complete") & counting).sum())
    if done >= study.planned_sessions:
        return []
    told = (
        f"{done} of {study.planned_sessions} planned sessions are complete. A test that is stopped "
        "when its results please is no evidence"
    )
    if study.stop_rule is not None and (day := study.stop_rule.until) is not None:
        end = f"the study file has it close at the end of {day} (UTC), however many there are then"
    else:
        end = "wait for the end that was planned, or tell why it came before"
    return [Paragraph(f"{told}: {end}.")]


def _methods(found: Sequence[Factor]) -> list[Block]:
    blocks: list[Block] = []
    for section in dict.fromkeys(factor.section for factor in found):
        own = [factor for factor in found if factor.section == section]
        blocks.append(Heading(section, 3))
        if text := " ".join(factor.text for factor in own if factor.text):
            blocks.append(Paragraph(text))
        blocks += [Missing(factor.name, factor.remedy) for factor in own if factor.text is None]
    return blocks


def paper(evidence: Evidence, found: Sequence[Factor]) -> str:
    """Methods and results as Markdown, ready to paste; figures are left to the report."""
    blocks = [Heading("Methods"), *_methods(found), Heading("Results"), *_results(evidence)]
    return markdown([block for block in blocks if not isinstance(block, Figure)])


def first_question(evidence: Evidence) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """The ratings of a test's first question, and their analysis with what holds for all."""
    return _questions(evidence)[0][1:]


def _questions(evidence: Evidence) -> list[tuple[str, pd.DataFrame, Mapping[str, Any]]]:
    """Each question's name (empty where there is one), ratings that count, and analysis."""
    result, used = evidence.result, evidence.used
    each = result.get("dimensions")
    if not each:
        return [("", used, result)]
    # What holds for the whole test, such as exclusions, is told once, with the first.
    common = {"margin": result["margin"], "raters": result["raters"], "excluded": {}}
    parts = [
        (name, used[used["dimension"].fillna("") == name], {**common, **one})
        for name, one in each.items()
    ]
    name, own, one = parts[0]
    return [(name, own, {**one, "excluded": result["excluded"]}), *parts[1:]]


def _results(evidence: Evidence) -> list[Block]:
    blocks: list[Block] = []
    for number, (name, used, result) in enumerate(_questions(evidence)):
        if name:
            blocks.append(Heading(f"Question: {name}", 3))
        blocks += _tables(result)
        if said := [*verdicts(result), *notes(result)]:
            blocks.append(Listing(tuple(said)))
        blocks += [
            Figure(markup(one.figure, f"figure-{number}-{one.name}"), one.sentence)
            for one in figures(used, result)
        ]
    return blocks


def _tables(result: Mapping[str, Any]) -> list[Block]:
    systems = system_rows(result)
    for row, values in zip(systems, means(result).values(), strict=True):
        row["SD"] = None if values["sd"] is None else round(values["sd"], 2)
    rows = (systems, pair_rows(result), preference_rows(result), strength_rows(result))
    return [Table(part) for part in rows if part]


def _texts(evidence: Evidence) -> list[Block]:
    if evidence.study is None:
        return [Missing("Texts of the page", "They are in the study file, which is not here.")]
    read = texts(evidence.study)
    several = len(read) > 1
    return [
        Paragraph(f"{what}{f' ({one.language})' * several}: {words}")
        for one in read
        for what, words in (("Consent", one.consent), ("Instructions", one.instructions))
    ]
