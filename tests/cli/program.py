"""The program, called as its user would, in this process."""

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from minitron_cli.cli.app import app

Run = Callable[..., Result]


def invoke(*arguments: str | Path) -> Result:
    """What `minitron ARGUMENTS...` prints and returns."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
