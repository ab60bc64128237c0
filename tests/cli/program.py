"""The program, called as its user would, in this process."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import typer.main
import typer.testing
from typer.testing import CliRunner, Result

from minitron_cli.cli.app import app

Run = Callable[..., Result]

# The parser of all commands takes longer to build than most of the commands that tests give take to fail.
vars(typer.testing)["_get_command"] = cache(typer.main.get_command)


def invoke(*arguments: str | Path) -> Result:
    """What `minitron ARGUMENTS...` prints and returns."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
