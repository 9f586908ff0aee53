"""The report on a listening test as blocks: methods, results, figures, what is missing.

Every figure in it comes from the analysis, every sentence of the methods from a factor. A p-value
stands only beside an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from listening_test import plots
from listening_test.bundle import versions
from listening_test.document import Block, Figure, Heading, Listing, Missing, Paragraph, Table
from listening_test.report_factors import Evidence, Factor
from listening_test.tables import (
    means,
    notes,
    p_text,
    pair_rows,
    preference_rows,
    strength_rows,
    system_rows,
    verdicts,
)


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
        Heading("Raters"),
        *_rater_figure(evidence),
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
    done = int((sessions["state"] == "complete").sum())
    if done >= study.planned_sessions:
        return []
    return [
        Paragraph(
            f"{done} of {study.planned_sessions} planned sessions are complete. A test that is "
            "stopped when its results please is no evidence: wait for the end that was planned."
        )
    ]


def _methods(found: Sequence[Factor]) -> list[Block]:
    blocks: list[Block] = []
    for section in dict.fromkeys(factor.section for factor in found):
        own = [factor for factor in found if factor.section == section]
        blocks.append(Heading(section, 3))
        if text := " ".join(factor.text for factor in own if factor.text):
            blocks.append(Paragraph(text))
        blocks += [Missing(factor.name, factor.remedy) for factor in own if factor.text is None]
    return blocks


def _results(evidence: Evidence) -> list[Block]:
    result = evidence.result
    each = result.get("dimensions") or {"": result}
    blocks: list[Block] = []
    for number, (name, one) in enumerate(each.items()):
        if name:
            blocks.append(Heading(f"Question: {name}", 3))
        # What holds for the whole test, such as exclusions, is told once, with the first.
        whole = {**result, **one} if number == 0 else {"excluded": {}, **one}
        blocks += _scores({**whole, "margin": result["margin"]}, f"figure-{number}")
    blocks += _choices(result)
    return blocks


def _scores(result: Mapping[str, Any], name: str) -> list[Block]:
    blocks: list[Block] = []
    if rows := system_rows(result):
        for row, values in zip(rows, means(result).values(), strict=True):
            row["SD"] = None if values["sd"] is None else round(values["sd"], 2)
        blocks.append(Table(rows))
        figure = plots.systems_figure(result)
        caption = "Means with two-way clustered 95 % intervals; thin, the naive ones."
        blocks.append(Figure(plots.markup(figure, f"{name}-systems"), caption))
    if rows := pair_rows(result):
        blocks.append(Table(rows))
        figure = plots.pairs_figure(result)
        caption = "Differences with 95 % intervals, nought, and the margin if there is one."
        blocks.append(Figure(plots.markup(figure, f"{name}-pairs"), caption))
    said = [*verdicts(result), *notes(result)]
    return [*blocks, Listing(tuple(said))] if said else blocks


def _choices(result: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if rows := preference_rows(result):
        blocks.append(Table(rows))
        figure = plots.preferences_figure(result)
        caption = "Share of the untied votes with its two-way clustered 95 % interval."
        blocks.append(Figure(plots.markup(figure, "figure-preferences"), caption))
    if rows := strength_rows(result):
        blocks.append(Table(rows))
    if told := result.get("identification"):
        blocks.append(Paragraph(_identified(told)))
    return blocks


def _identified(told: Mapping[str, Any]) -> str:
    low, high = told["share_ci95"] or told["share_ci95_naive"]
    kind = "two-way clustered" if told["share_ci95"] else "Clopper-Pearson, votes as independent"
    return (
        f"X was told right in {told['right']} of {told['n']} answers ({told['ties']} without a "
        f"choice left out): share {told['share']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        f"({kind}), guessing is 0.5; exact binomial test, p {p_text(told['p_binomial'])}."
    )


def _rater_figure(evidence: Evidence) -> list[Block]:
    if not evidence.result["systems"]:
        return [Paragraph("There are no scores of single systems to show by rater.")]
    figure = plots.raters_figure(evidence.used, evidence.result)
    caption = "Each rater's own mean of each system: who uses the scale differently stands apart."
    return [Figure(plots.markup(figure, "figure-raters"), caption)]


def _texts(evidence: Evidence) -> list[Block]:
    if evidence.study is None:
        return [Missing("Texts of the page", "They are in the study file, which is not here.")]
    return [
        Paragraph(f"Consent: {evidence.study.consent}"),
        Paragraph(f"Instructions: {evidence.study.instructions}"),
    ]
