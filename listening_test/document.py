"""A document as blocks, written as Markdown or as one HTML page that needs nothing from outside.

Text is plain: whatever raters or other tools' files wrote is escaped in both, so that none of it
becomes markup. Knows nothing of studies.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from listening_test.columns import clean_text


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Missing:
    """A gap that a person has to fill: what is missing, and what to write."""

    name: str
    remedy: str


@dataclass(frozen=True)
class Listing:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of one shape; a value of None is an empty cell."""

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A figure as HTML made by code, never by people, and the sentence that tells what it shows."""

    markup: str
    caption: str


Block: TypeAlias = Heading | Paragraph | Missing | Listing | Table | Figure

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
# At the start of a line these would begin a list or a heading.
_OPENING = re.compile(r"^(\s*)([-+]|\d+[.)])(?=\s)")
_STYLE = """
:root { color-scheme: light dark; --line: #7c8593; --gap: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --gap: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
.missing { border-left: .3rem solid var(--gap); padding-left: .7rem; }
.missing strong { color: var(--gap); }
img { max-width: 100%; }
"""


def markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown; a figure is its caption, its picture is in the HTML."""
    return "\n\n".join(_as_markdown(block) for block in blocks) + "\n"


def page(title: str, blocks: Sequence[Block], head: str = "") -> str:
    """The document as one HTML page; `head` is markup of code, such as a plotting script."""
    body = "\n".join(_as_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n{head}\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _plain(text: str) -> str:
    """Markdown that reads as just this text, on one line."""
    escaped = _MARKDOWN.sub(r"\\\1", _ENTITY.sub("&amp;", clean_text(text)))
    return _OPENING.sub(lambda m: f"{m[1]}{m[2][:-1]}\\{m[2][-1]}", escaped)


def _cell(value: Any) -> str:
    return "" if value is None else clean_text(str(value))


def _as_markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Missing(name, remedy):
            return f"**MISSING: {_plain(name)}.** {_plain(remedy)}"
        case Listing(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Figure(caption=caption):
            return f"*Figure (in report.html): {_plain(caption)}*"
    rows = block.rows
    lines = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    lines = [[_plain(name) if name != "---" else name for name in line] for line in lines]
    lines += [[_plain(_cell(value)) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Missing(name, remedy):
            told = f"<strong>MISSING: {html.escape(name)}.</strong> {html.escape(remedy)}"
            return f'<p class="missing">{told}</p>'
        case Listing(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Figure(markup, caption):
            text = html.escape(caption)
            return f"<figure>\n{markup}\n<figcaption>{text}</figcaption>\n</figure>"
    rows = block.rows
    names = "".join(
        f'<th scope="col">{html.escape(name)}</th>' for name in (rows[0] if rows else ())
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table>\n<thead><tr>{names}</tr></thead>\n<tbody>{body}</tbody>\n</table>"
