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


def invoke(*arguments: str | Path | int) -> Result:
    """What `minitron ARGUMENTS...` prints and returns."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def runs_with(root: Path, tiny: Path, *commands: tuple[str | Path | int, ...]) -> Path:
    """The runs directory `root`, with scores of the tiny model and what further commands make of them."""
    words = ("--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples", 4, "layer_removal=false")
    for command in (("importance", tiny / "model", *words), *commands):
        result = invoke(*command, "--runs-dir", root)
        assert result.exit_code == 0, result.stderr
    return root
