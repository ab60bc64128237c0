"""Markdown whose places no text can leave. Knows no model."""

import re
from collections.abc import Sequence

from minitron_cli.report.text import NOTHING, clean

MARKUP = r"[\\`*_\[\]<>|#&~$@]"
LINK = r":(?=//)|(?<=www)\."  # GitHub makes links of bare addresses
BULLET = r"^[-+=](?=[-+= ]|$)"
NUMBER = r"^(\d+)([.)])(?= |$)"


def inline(text: str) -> str:
    """Text that stays in its line and cell, and is read neither as markup nor as a link."""
    flat = " ".join(clean(text).split())
    escaped = re.sub(f"({MARKUP}|{LINK}|{BULLET})", r"\\\1", flat, flags=re.IGNORECASE)
    return re.sub(NUMBER, r"\1\\\2", escaped) or NOTHING


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names the row, the others are numbers."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(inline(cell) if i != 1 else cell for cell in line) + " |" for i, line in enumerate(lines)
    )


def code(language: str, text: str) -> str:
    """A fenced block that its content cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
