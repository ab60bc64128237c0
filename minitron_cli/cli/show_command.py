"""`minitron show`: the workspace's results so far."""

from typing import Annotated, Literal

from typer import Argument

from minitron_cli.checkpoint.workspace import open_workspace
from minitron_cli.cli import show
from minitron_cli.cli.options import Place
from minitron_cli.errors import ArtifactError

Stage = Literal["importance", "search", "prune", "distill", "eval"]
STAGES: dict[Stage, str] = {
    s: "evaluate" if s == "eval" else s for s in ("importance", "search", "prune", "distill", "eval")
}


def show_results(
    place: Place,
    stage: Annotated[
        Stage | None, Argument(metavar="[STAGE]", help="importance, search, prune, distill or eval.")
    ] = None,
) -> None:
    """Show what STAGE found; without one, what every stage of the workspace did."""
    workspace = open_workspace(place.runs_dir, place.run)
    wanted = [stage] if stage else list(STAGES)
    found = {name: artifact for name in wanted if (artifact := workspace.current(STAGES[name]))}
    if not found:
        command = f"minitron {stage}" if stage else "minitron importance MODEL"
        raise ArtifactError(
            f"workspace {workspace.root} has no {stage or ''} result: run `{command}` first".replace("  ", " ")
        )
    show.artifacts(list(found.values()), place)
