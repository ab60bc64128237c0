"""`minitron run`: a whole recipe, or what it would come to."""

from typing import Annotated

from typer import Argument, Option

from minitron_cli import recipe as recipes
from minitron_cli.artifacts import workspace as workspaces
from minitron_cli.cli import console, session, torchrun
from minitron_cli.cli.options import Changes, ComputeOptions, Seed
from minitron_cli.errors import InputError


def run(
    how: ComputeOptions,
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.")],
    changes: Changes = None,
    seed: Seed = None,
    gpus: Annotated[int, Option(min=1, help="Processes that calibrate and train, one accelerator each.")] = 1,
) -> None:
    """Run every stage of RECIPE, and every step of a chain; stages that are up to date are not run again.

    With --dry-run: the shapes, counts and steps it comes to, computed without a download.

    For example: minitron run llama-3.1-minitron-4b-width prune.shape.ffn=9472 --dry-run
    """
    if recipe == "demo" and not any(change.startswith("model=") for change in changes or ()):
        raise InputError("the demo trains its own model: run `minitron demo`, or name one with model=DIRECTORY")
    asked = session.located(recipes.load(recipe, changes or ()))
    if seed is not None:
        asked = asked.seeded(seed)
    if how.dry_run:
        from minitron_cli import dry_run

        console.plan(dry_run.plan(asked), how)
        return
    torchrun.if_asked(gpus)
    from minitron_cli import pipeline

    default = workspaces.slug(recipes.find(recipe).stem)
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default=default)
    with session.at_work(how, workspace) as context:
        results = pipeline.run(asked, context)
    console.artifacts([artifact for step in results for artifact in step.artifacts()], how)
    pipeline.check_gates(results[-1], asked)
