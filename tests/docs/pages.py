"""The pages of the documentation, as Markdown has them: code, links, headings."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]


class Code(NamedTuple):
    """A block of code, fenced or indented, or a piece within a line."""

    page: Path
    line: int
    language: str
    text: str
    is_block: bool


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def code(page: Path) -> Iterator[Code]:
    """Every piece of code on a page."""
    for token in tokens(page):
        line = (token.map or [0])[0] + 1
        if token.type in ("fence", "code_block"):
            yield Code(page, line, token.info.strip(), token.content, True)
        for child in token.children or ():
            if child.type == "code_inline":
                yield Code(page, line, "", child.content, False)


def links(page: Path) -> Iterator[str]:
    """Where the links and images of a page lead."""
    for token in tokens(page):
        for child in token.children or ():
            yield from (str(child.attrs[key]) for key in ("href", "src") if key in child.attrs)


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead: its headings, as GitHub names them."""
    found: list[str] = []
    stream = tokens(page)
    for opening, inline in pairwise(stream):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            place = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(place if place not in found else f"{place}-{found.count(place)}")
    return set(found)
