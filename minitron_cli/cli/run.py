"""`minitron run`: run all stages of a recipe, or plan them."""

from typing import Annotated

from typer import Argument, Option

from minitron_cli import progress
from minitron_cli.cli import torchrun
from minitron_cli.cli.options import Changes, ComputeOptions, Seed
from minitron_cli.cli.training import FailIfWorse


def run(
    how: ComputeOptions,
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    changes: Changes = None,
    seed: Seed = None,
    gpus: Annotated[
        int, Option(min=1, help="Number of processes for calibration and training, one accelerator each.")
    ] = 1,
    fail_if_worse: FailIfWorse = False,
) -> None:
    """Run every stage of RECIPE. Stages whose result is up to date are skipped.

    --dry-run prints the resulting shapes, parameter counts, steps and prices without downloading anything. Times come
    from a probe of the model's speed on this device, which takes seconds and is kept.

    For example: minitron run llama-3.1-minitron-4b-width prune.shape.ffn=9472 --dry-run
    """
    from minitron_cli import recipe as recipes
    from minitron_cli.artifacts import workspace as workspaces
    from minitron_cli.cli import printing, sessions

    requested = sessions.located(recipes.load(recipe, changes or ()))
    if seed is not None:
        requested = requested.seeded(seed)
    if how.dry_run:
        with progress.announced(f"minitron run {recipe} --dry-run: {requested.model}"):
            from minitron_cli import device, dry_run

            planned = dry_run.plan(requested)
            prices = dry_run.prices(planned, device.resolve(how.device), how.runs_dir)
        printing.plan(planned, prices, how)
        return
    torchrun.if_requested(gpus)
    default = workspaces.slug(recipes.find(recipe).stem)
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default=default)
    work, asked = f"run {recipe}: {requested.model}", requested.model_dump(mode="json")
    with sessions.running(how, workspace, work, asked) as context, sessions.remembered(how, workspace):
        from minitron_cli import api, pipeline
        from minitron_cli.evaluate import gate

        results = api.run(context, requested, fail_if_worse=fail_if_worse)
        found = pipeline.gate_outcomes(results[-1], requested)
    printing.artifacts([artifact for step in results for artifact in step.artifacts()], how, gates=found)
    gate.require(found)
