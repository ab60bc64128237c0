"""`minitron report`: one HTML page about the current results."""

from pathlib import Path
from typing import Annotated

from typer import Option

from minitron_cli import progress
from minitron_cli.cli import output_file
from minitron_cli.cli.options import BuildOptions


def report(
    how: BuildOptions,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Also copy the page to this file.")
    ] = None,
) -> None:
    """Write one HTML page on the workspace's result: what was pruned, its quality, speed and cost."""
    from minitron_cli.cli import printing, sessions

    output_file.check(output)
    with sessions.opened(how, "report") as session:
        from minitron_cli import api
        from minitron_cli.stages import report as stage

        artifact = api.report(session.context)
    if output is not None:
        output_file.write(output, artifact.file(stage.PAGE).read_bytes())
        progress.say(f"copied to {output}")
    printing.artifact(artifact, how)
