"""`minitron demo`: the whole pipeline on a small model that it trains first."""

from minitron_cli.cli.options import Changes, ComputeOptions


def demo(how: ComputeOptions, changes: Changes = None) -> None:
    """Train a small model on the Python standard library's source, compress it, and show the results.

    Needs no download and no accelerator. `minitron recipes show demo` prints its steps.
    """
    from minitron_cli import recipe as recipes
    from minitron_cli.artifacts import workspace as workspaces
    from minitron_cli.cli import printing, sessions

    requested = recipes.load("demo", changes or ())
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default="demo")
    with sessions.running(how, workspace, "demo") as context:
        from minitron_cli import pipeline
        from minitron_cli.stages import teacher

        trained = teacher.run(context, requested.data, teacher.DEMO)
        requested = requested.model_copy(update={"model": str(trained.path)})
        results = pipeline.run(sessions.located(requested), context)
    printing.artifacts(results[-1].artifacts(), how)
