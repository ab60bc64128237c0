"""`minitron distill`: train the pruned model on the predictions of a teacher."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import copy_out, torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Form, Output, RecipeOption, Seed
from minitron_cli.cli.training import FailIfWorse, Teacher, Training

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath


def distill(
    how: ComputeOptions,
    text: DataOptions,
    training_options: Training,
    words: Arguments = None,
    recipe: RecipeOption = None,
    teacher: Teacher = None,
    student: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="Train this model, which has the teacher's tokenizer, instead of the one pruned in this workspace.",
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
    form: Form = None,
    output: Output = None,
) -> None:
    """Train the pruned model (the student) on the predictions of its parent (the teacher).

    Saves training checkpoints; an interrupted run continues from the last one.

    For example: minitron distill --tokens 50M -o student
    """
    from minitron_cli.cli import printing, sessions

    copy_out.check_new(output)
    torchrun.if_requested(training_options.gpus)
    flags: dict[KeyPath, Any] = training.flags(training_options, seed) | {
        ("losses",): _losses(objective) if objective else None,
        ("hidden",): sessions.NULL if objective == "ce" else None,
        ("init",): init,
        ("write_as",): form,
    }
    with sessions.opened(how, "distill", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.distill import training_run
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.results.training import TrainingResult

        config = session.section(DistillConfig, "distill")
        artifact = api.distill(
            session.context,
            sessions.absolute(student) if student else session.student(),
            training.teacher(session, teacher),
            session.data(),
            config,
            label=config.label,
        )
    copy_out.copy(artifact, output)
    printing.artifact(artifact, how)
    if fail_if_worse:
        training_run.check_not_worse(artifact.result(TrainingResult), "distill")


def _losses(objective: Literal["kl", "ce"]) -> list[dict[str, Any]]:
    from minitron_cli.distill.config import OBJECTIVES

    return [loss.model_dump() for loss in OBJECTIVES[objective]]
