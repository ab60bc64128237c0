"""`minitron distill`: retrain the pruned model on the original's predictions."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import console, copy_out, session, torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Output, RecipeOption, Seed
from minitron_cli.cli.training import Training
from minitron_cli.yaml_document import KeyPath

if TYPE_CHECKING:
    from minitron_cli.cli.session import Session
    from minitron_cli.distill.config import DistillConfig
    from minitron_cli.inputs.source_model import SourceModel

ORIGINAL = "original"
OF_THE_RUN = (ORIGINAL, "parent")  # what a recipe may say instead of a model's name


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
            help="Whom to learn from: a model, or `original`; otherwise the corrected original where there is one.",
        ),
    ] = None,
    objective: Annotated[
        Literal["kl", "ce"] | None,
        Option(help="kl: learn the teacher's predictions; ce: the text alone, as a control.", show_default="kl"),
    ] = None,
    init: Annotated[
        Literal["student", "random"] | None,
        Option(help="random: fresh weights of the student's shape, as a control.", show_default="student"),
    ] = None,
    seed: Seed = None,
    output: Output = None,
) -> None:
    """Retrain the pruned model on the predictions of the original.

    The teacher is the model that was pruned. Checkpoints are kept; a run that was stopped continues.

    For example: minitron distill --tokens 50M --lr 1e-4 -o student
    """
    copy_out.check_new(output)
    torchrun.if_asked(training_options.gpus)
    flags: dict[KeyPath, Any] = training.flags(training_options, seed) | {
        ("losses",): _losses(objective) if objective else None,
        ("hidden",): session.NULL if objective == "ce" else None,
        ("init",): init,
    }
    with session.opened(how, "distill", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.stages import distill as stage

        config = at.section(DistillConfig, "distill")
        pruned = at.require("prune")
        artifact = stage.run(at.context, _teacher(at, teacher), pruned.path, at.data(), config, label=_label(config))
    copy_out.copy(artifact, output)
    console.artifact(artifact, how)


def _teacher(at: "Session", said: str | None) -> "SourceModel":
    """The one that was named, here or in the recipe; else the corrected original; else the original."""
    from minitron_cli import progress
    from minitron_cli.inputs.source_model import open_source_model
    from minitron_cli.stages import correct

    in_recipe = str(at.asked.values.get("teacher", ORIGINAL))
    named = said or (in_recipe if in_recipe not in OF_THE_RUN else None)
    if named and named != ORIGINAL:
        return open_source_model(named, offline=at.context.offline)
    original = at.parent()
    corrected = None if named else correct.of(at.context, original)
    if corrected is None:
        return original
    progress.say(f"distill: the teacher is the corrected original, {corrected.path}")
    return open_source_model(corrected.path, offline=at.context.offline)


def _losses(objective: Literal["kl", "ce"]) -> list[dict[str, Any]]:
    from minitron_cli.distill.config import OBJECTIVES

    return [loss.model_dump() for loss in OBJECTIVES[objective]]


def _label(config: "DistillConfig") -> str:
    """Controls go by their own names, beside the student."""
    parts = ["random-init"] if config.init == "random" else []
    parts += [] if config.needs_teacher else ["ce"]
    return "-".join(parts) or "distilled"
