"""`minitron verify`: compare every file of a workspace with what was written."""

from typing import TYPE_CHECKING, Annotated

from typer import Argument

from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import InputError, RunFailed

if TYPE_CHECKING:
    from minitron_cli.results.verification import Verification


def verify(
    where: WorkspaceOptions,
    name: Annotated[
        str | None,
        Argument(metavar="RUN", help="Workspace name, as with --run.", show_default="the one used last"),
    ] = None,
) -> None:
    """Compare every file of the workspace with what was written, and list what is damaged.

    Reads every byte, whatever is known from earlier runs. Exits with 1 if anything is damaged, and names the command
    that makes it again. An input that is gone is listed too, but is no damage.
    """
    from minitron_cli.artifacts.workspace import open_workspace
    from minitron_cli.cli import console

    if name and where.run and name != where.run:
        raise InputError(f"two workspaces are named, {name} and {where.run}: give one")
    workspace = open_workspace(where.runs_dir, name or where.run)
    from minitron_cli import api

    found = api.verify(workspace.root)
    if where.json:
        console.data(found.model_dump(mode="json"))
    else:
        _print(found)
    if found.damaged:
        raise RunFailed(
            f"{len(found.damaged)} damaged in {found.workspace}: run the commands listed, oldest stage first"
        )


def _print(found: "Verification") -> None:
    from minitron_cli.cli import console

    for finding in found.findings:
        console.note(f"{'damaged' if finding.is_damaged else 'note'}: {finding.path}")
        for problem in finding.problems:
            console.note(f"  {problem}")
        if finding.is_damaged:
            console.note(f"  make it again: {finding.command}")
    console.note(f"read {found.size_bytes:,} bytes of {found.artifacts} artifacts, {len(found.damaged)} damaged")
