"""The report: one HTML page that needs nothing but itself. Says nothing of its own: see `headline` and `sections`.

Whatever is not in the data leaves no trace on the page. The same data is the same bytes.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minitron_cli.report import plots
from minitron_cli.report.data import ReportData
from minitron_cli.report.headline import key_figures, lead
from minitron_cli.report.sections import sections
from minitron_cli.report.text import clean

TEMPLATE = "page.html.j2"


def render(data: ReportData) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    context: dict[str, Any] = {
        "title": data.title,
        "lead": lead(data),
        "figures": list(key_figures(data)),
        "sections": sections(data),
        "series": len(plots.SERIES),
    }
    return environment.get_template(TEMPLATE).render(context)
