"""`minitron report`: one page that shows what was done."""

from pathlib import Path
from typing import Annotated

from typer import Option

from minitron_cli import io
from minitron_cli.cli import console, copy_out, session
from minitron_cli.cli.options import BuildOptions


def report(
    how: BuildOptions,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Copy the page to this new file too.")
    ] = None,
) -> None:
    """Write one HTML page about the workspace: what was cut where, and what it cost and brought."""
    copy_out.check_new(output)
    with session.opened(how, "report") as at:
        from minitron_cli.stages import report as stage

        artifact = stage.run(at.context)
    if output is not None:
        io.make_dirs(output.parent)
        io.write_new(output, artifact.file(stage.PAGE).read_bytes())
    console.artifact(artifact, how)
