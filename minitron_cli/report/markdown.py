"""Markdown back end: text, tables and code that no string of a user can break out of."""

import re
from collections.abc import Iterator, Sequence

from minitron_cli.figures import NOTHING
from minitron_cli.report.text import clean
from minitron_cli.report.view import Section, Table

MARKUP = r"[\\`*_\[\]<>|#&~$@]"
LINK = r":(?=//)|(?<=www)\."  # GitHub turns bare addresses into links
BULLET = r"^[-+=](?=[-+= ]|$)"
NUMBER = r"^(\d+)([.)])(?= |$)"


def inline(text: str) -> str:
    """Text escaped for one line or cell: neither markup nor a link."""
    flat = " ".join(clean(text).split())
    escaped = re.sub(f"({MARKUP}|{LINK}|{BULLET})", r"\\\1", flat, flags=re.IGNORECASE)
    return re.sub(NUMBER, r"\1\\\2", escaped) or NOTHING


def table(shown: Table) -> str:
    """Table with words aligned to the left and numbers to the right."""
    rule = [":--" if shown.is_words(i) else "--:" for i in range(len(shown.columns))]
    lines = [list(map(inline, shown.header)), rule, *(list(map(inline, row)) for row in shown.text())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(shown: Section) -> str:
    """Section with its text, tables and commands; plots are left out."""
    parts = [f"## {inline(shown.title)}", inline(shown.text), *tables(shown.tables, shown.title)]
    return "\n\n".join([*parts, code("sh", shown.code)] if shown.code else parts)


def tables(shown: Sequence[Table], title: str = "") -> Iterator[str]:
    """Tables that have rows, each under its title if that is not `title`."""
    for one in shown:
        if one.rows and one.title != title:
            yield f"{inline(one.title)}:"
        if one.rows:
            yield table(one)


def code(language: str, text: str) -> str:
    """Fenced block that its content cannot close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
