"""Options as the help of a command shows them: names whole at 80 columns, so what they take is said in few letters."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.core import TyperOption

from minitron_cli.cli import synonyms

WIDEST = 16
"""Letters that choices may take beside the name of an option. Longer ones follow its description."""
CHOICES = "CHOICE"
KINDS: dict[Any, str] = {bool: "", int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}


def shown(parameter: Any) -> Any:
    """Copy of a parameter as the help shows it.

    What it takes is one word or a few choices. Its description ends with its other name, the name for off, the
    choices if they are too many, and its default.
    """
    page = copy(parameter)
    if not isinstance(page, TyperOption):
        vars(page)["display_type_rich"] = lambda ctx: ""
        return page
    choices, page.metavar = _choices(page), page.metavar or _kind(page)
    if choices and len(page.metavar) > WIDEST:
        page.metavar = CHOICES
    page.help = " ".join([synonyms.also(page.help or "", (page.opts, page.metavar)), *_remarks(page, choices)])
    page.secondary_opts, page.min, page.max = [], None, None
    if isinstance(page.show_default, str):
        page.show_default = False
    return page


def _choices(option: TyperOption) -> list[str]:
    if option.metavar:
        return option.metavar.split("|") if "|" in option.metavar else []
    kind = _each(option)
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def _kind(option: TyperOption) -> str:
    least = f">={option.min}" if option.min is not None else ""
    return "|".join(_choices(option)) or KINDS.get(_each(option), "TEXT") + least


def _each(option: Any) -> Any:
    """Type of one value of an option that may be repeated."""
    kind = option.type_descriptor.annotation
    return get_args(kind)[0] if get_origin(kind) is list else kind


def _remarks(option: TyperOption, choices: list[str]) -> Iterator[str]:
    if option.secondary_opts:
        yield f"Off: `{option.secondary_opts[0]}`."
    if choices and option.metavar == CHOICES:
        yield f"One of: {', '.join(choices)}."
    if isinstance(option.show_default, str):
        yield f"[dim]\\[default: {option.show_default}][/dim]"
