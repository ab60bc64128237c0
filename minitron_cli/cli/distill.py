"""`minitron distill`: train the pruned model on the predictions of a teacher."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import copy_out, torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Output, RecipeOption, Seed
from minitron_cli.cli.training import FailIfWorse, Training

if TYPE_CHECKING:
    from minitron_cli.cli.sessions import Session
    from minitron_cli.distill.config import DistillConfig
    from minitron_cli.inputs.source_model import SourceModel
    from minitron_cli.yaml_document import KeyPath

ORIGINAL = "original"
OF_THE_RUN = (ORIGINAL, "parent")  # names a recipe may use for the teacher instead of a model


def distill(
    how: ComputeOptions,
    text: DataOptions,
    training_options: Training,
    words: Arguments = None,
    recipe: RecipeOption = None,
    teacher: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="Teacher: a model, or `original`. Default: the corrected parent if there is one, else the parent.",
        ),
    ] = None,
    objective: Annotated[
        Literal["kl", "ce"] | None,
        Option(
            help="kl: match the teacher's predictions; ce: cross-entropy on the text alone, as a control.",
            show_default="kl",
        ),
    ] = None,
    init: Annotated[
        Literal["student", "random"] | None,
        Option(
            help="Initial weights: the pruned model's, or random ones of the same shape, as a control.",
            show_default="student",
        ),
    ] = None,
    seed: Seed = None,
    fail_if_worse: FailIfWorse = False,
    output: Output = None,
) -> None:
    """Train the pruned model (the student) on the predictions of its parent (the teacher).

    Saves training checkpoints; an interrupted run continues from the last one.

    For example: minitron distill --tokens 50M --lr 1e-4 -o student
    """
    from minitron_cli.cli import printing, sessions

    copy_out.check_new(output)
    torchrun.if_requested(training_options.gpus)
    flags: dict[KeyPath, Any] = training.flags(training_options, seed) | {
        ("losses",): _losses(objective) if objective else None,
        ("hidden",): sessions.NULL if objective == "ce" else None,
        ("init",): init,
    }
    with sessions.opened(how, "distill", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.distill import training_run
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.results.training import TrainingResult

        config = session.section(DistillConfig, "distill")
        artifact = api.distill(
            session.context,
            session.student(),
            teacher_of(session, teacher),
            session.data(),
            config,
            label=_label(config),
        )
    copy_out.copy(artifact, output)
    printing.artifact(artifact, how)
    if fail_if_worse:
        training_run.check_not_worse(artifact.result(TrainingResult), "distill")


def teacher_of(session: "Session", named: str | None) -> "SourceModel":
    """Teacher named on the command line or in the recipe; else the corrected parent; else the parent."""
    from minitron_cli import progress
    from minitron_cli.inputs.source_model import open_source_model
    from minitron_cli.stages import correct

    in_recipe = str(session.requested.values.get("teacher", ORIGINAL))
    named = named or (in_recipe if in_recipe not in OF_THE_RUN else None)
    if named and named != ORIGINAL:
        return open_source_model(named, offline=session.context.offline)
    original = session.parent()
    corrected = None if named else correct.of(session.context, original)
    if corrected is None:
        return original
    progress.say(f"distill: the teacher is the corrected parent, {corrected.path}")
    return open_source_model(corrected.path, offline=session.context.offline)


def _losses(objective: Literal["kl", "ce"]) -> list[dict[str, Any]]:
    from minitron_cli.distill.config import OBJECTIVES

    return [loss.model_dump() for loss in OBJECTIVES[objective]]


def _label(config: "DistillConfig") -> str:
    """Label of the result: `distilled`, or the name of the control that this configuration is."""
    parts = ["random-init"] if config.init == "random" else []
    parts += [] if config.needs_teacher else ["ce"]
    return "-".join(parts) or "distilled"
