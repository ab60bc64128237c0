"""HTML back end: one page that needs no other file. The same view gives the same bytes."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from minitron_cli.report import plots
from minitron_cli.report.text import clean
from minitron_cli.report.view import View


def render(view: View) -> str:
    """The view as an HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        view=view, series=len(plots.SERIES), svg=lambda plot: Markup(plots.svg(plot)), together=_together
    )


def _together(text: str) -> str:
    """Text in which no line ends between a number and its percent sign or its unit of memory."""
    return re.sub(r"(?<=\d) (?=%|[KMGT]iB\b)", "\N{NO-BREAK SPACE}", text)
