"""`minitron show`: the workspace's results so far."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from typer import Argument, Option

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.workspace import Workspace, open_workspace
from minitron_cli.cli import console, tables
from minitron_cli.cli.options import WorkspaceOptions
from minitron_cli.errors import ArtifactError, InputError

Stage = Literal["importance", "search", "prune", "correct", "distill", "eval"]
What = Literal[Stage, "cost"]
PRODUCTS = ("distill", "prune", "search", "importance")
STAGES: dict[Stage, str] = {s: "evaluate" if s == "eval" else s for s in get_args(Stage)}
CURVES = ("block_importance", "perplexity")


def show_results(
    where: WorkspaceOptions,
    stage: Annotated[
        What | None,
        Argument(metavar="[STAGE]", help="importance, search, prune, correct, distill, eval; or cost, of all."),
    ] = None,
    plot: Annotated[
        Path | None, Option(metavar="FILE.svg", help="With importance: draw it into this new file too.")
    ] = None,
) -> None:
    """Show what STAGE found; without one, what every stage of the workspace did."""
    workspace = open_workspace(where.runs_dir, where.run)
    if stage == "cost":
        _cost(workspace, where)
        return
    wanted = [stage] if stage else list(STAGES)
    found = {name: artifact for name in wanted if (artifact := workspace.current(STAGES[name]))}
    if not found:
        command = f"minitron {stage}" if stage else "minitron importance MODEL"
        raise ArtifactError(
            f"workspace {workspace.root} has no {stage or ''} result: run `{command}` first".replace("  ", " ")
        )
    if plot and stage != "importance":
        raise InputError("--plot draws importance: write `minitron show importance --plot FILE.svg`")
    if stage == "importance":
        _importance(found[stage], where, plot)
    else:
        console.artifacts(list(found.values()), where)


def _cost(workspace: Workspace, where: WorkspaceOptions) -> None:
    product = next((artifact for stage in PRODUCTS if (artifact := workspace.current(stage))), None)
    if product is None:
        raise ArtifactError(f"workspace {workspace.root} has no result: run `minitron importance MODEL` first")
    found = tables.costs(workspace, product)
    if where.json:
        console.data(found)
    else:
        console.sheet(tables.cost_sheet(found))


def _importance(artifact: Artifact, where: WorkspaceOptions, plot: Path | None) -> None:
    ranked = tables.ranked(artifact)
    if plot:
        _draw(artifact, ranked, plot)
    if where.json:
        console.data([tables.values(artifact) | ranked])
        return
    console.artifacts([artifact], where)
    for sheet in tables.ranked_sheets(ranked):
        console.sheet(sheet)


def _draw(artifact: Artifact, ranked: dict[str, Any], path: Path) -> None:
    from minitron_cli import io
    from minitron_cli.report.importance import figure
    from minitron_cli.scores.scores import Scores

    if path.exists():
        raise InputError(f"{path} exists: name a new file, or remove it")
    scores = Scores.load(artifact.path)
    layers = {name: scores.layers(name).tolist() for name in CURVES if f"layer.{name}" in scores.by_name}
    axes = {axis: scores.by_layer(axis).numpy() for axis in tables.SCORED}
    io.write_new(path, figure(axes, layers, ranked["agreement"]).encode())
    console.note(f"open {path}")
