"""`minitron demo`: the whole chain on a small model, from nothing."""

from typing import TYPE_CHECKING

from minitron_cli import recipe as recipes
from minitron_cli.checkpoint import workspace as workspaces
from minitron_cli.cli import session, show
from minitron_cli.cli.options import Changes, How

if TYPE_CHECKING:
    from minitron_cli.stages.teacher import TeacherConfig


def demo(how: How, changes: Changes = None) -> None:
    """Train a small model on Python's own source, compress it, and show what came of it.

    Needs no download and no accelerator. The steps are those of `minitron recipes show demo`.
    """
    from minitron_cli import pipeline
    from minitron_cli.stages import teacher

    asked = recipes.load("demo", changes or ())
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default="demo")
    with session.at_work(how, workspace) as context:
        trained = teacher.run(context, asked.data, _teacher())
        asked = asked.model_copy(update={"model": str(trained.path)})
        results = pipeline.run(session.located(asked), context)
    show.artifacts(results.artifacts(), how)


def _teacher() -> "TeacherConfig":
    """Two minutes of training on two cores: enough to show the chain, not to prove a method."""
    from minitron_cli.distill.config import OBJECTIVES, DistillConfig
    from minitron_cli.stages.teacher import TeacherConfig

    return TeacherConfig(
        training=DistillConfig(
            tokens=600_000,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=2e-3,
            min_learning_rate=2e-4,
            warmup_steps=20,
            losses=OBJECTIVES["ce"],
            eval_every=50,
            eval_blocks=32,
        )
    )
