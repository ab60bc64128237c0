"""`minitron demo`: the whole chain on a small model, from nothing."""

from minitron_cli import recipe as recipes
from minitron_cli.artifacts import workspace as workspaces
from minitron_cli.cli import console, session
from minitron_cli.cli.options import Changes, ComputeOptions


def demo(how: ComputeOptions, changes: Changes = None) -> None:
    """Train a small model on Python's own source, compress it, and show what came of it.

    Needs no download and no accelerator. The steps are those of `minitron recipes show demo`.
    """
    from minitron_cli import pipeline
    from minitron_cli.stages import teacher

    asked = recipes.load("demo", changes or ())
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default="demo")
    with session.at_work(how, workspace) as context:
        trained = teacher.run(context, asked.data, teacher.DEMO)
        asked = asked.model_copy(update={"model": str(trained.path)})
        results = pipeline.run(session.located(asked), context)
    console.artifacts(results[-1].artifacts(), how)
