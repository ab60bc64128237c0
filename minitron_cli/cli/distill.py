"""`minitron distill`: retrain the pruned model on the original's predictions."""

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import export, launch, session, show
from minitron_cli.cli.options import How, Output, RecipeOption, Seed, Text, Words
from minitron_cli.document import Place

if TYPE_CHECKING:
    from minitron_cli.distill.config import DistillConfig


def distill(
    how: How,
    text: Text,
    words: Words = None,
    recipe: RecipeOption = None,
    tokens: Annotated[str | None, Option(metavar="COUNT", help="How long to train, such as 50M.")] = None,
    steps: Annotated[int | None, Option(min=1, help="The same in optimizer steps.")] = None,
    objective: Annotated[
        Literal["kl", "ce"] | None,
        Option(help="kl: learn the teacher's predictions; ce: the text alone, as a control.", show_default="kl"),
    ] = None,
    init: Annotated[
        Literal["student", "random"] | None,
        Option(help="random: fresh weights of the student's shape, as a control.", show_default="student"),
    ] = None,
    learning_rate: Annotated[float | None, Option("--lr", help="Peak of the schedule.", show_default="1e-4")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Sequences per optimizer step.", show_default="1152")] = None,
    micro_batch_size: Annotated[int | None, Option(min=1, help="Sequences at a time.", show_default="1")] = None,
    warmup_steps: Annotated[int | None, Option(min=0, help="Steps until the peak.", show_default="40")] = None,
    seed: Seed = None,
    gpus: Annotated[int, Option(min=1, help="Processes to train with, one accelerator each.")] = 1,
    output: Output = None,
) -> None:
    """Retrain the pruned model on the predictions of the original.

    The teacher is the model that was pruned. Checkpoints are kept; a run that was stopped continues.

    For example: minitron distill --tokens 50M --lr 1e-4 -o student
    """
    export.check_new(output)
    if gpus > 1 and "RANK" not in os.environ:
        launch.again(gpus)
    flags: dict[Place, Any] = {
        ("tokens",): tokens or (session.NULL if steps else None),
        ("steps",): steps or (session.NULL if tokens else None),
        ("losses",): _losses(objective) if objective else None,
        ("hidden",): session.NULL if objective == "ce" else None,
        ("init",): init,
        ("learning_rate",): learning_rate,
        ("batch_size",): batch_size,
        ("micro_batch_size",): micro_batch_size,
        ("warmup_steps",): warmup_steps,
        ("seed",): seed,
    }
    with session.opened(how, "distill", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.stages import distill as stage

        config = at.section(DistillConfig, "distill")
        pruned = at.require("prune")
        artifact = stage.run(at.context, at.parent(), pruned.path, at.data(), config, label=_label(config))
    export.copy(artifact, output)
    show.artifact(artifact, how)


def _losses(objective: Literal["kl", "ce"]) -> list[dict[str, Any]]:
    from minitron_cli.distill.config import OBJECTIVES

    return [loss.model_dump() for loss in OBJECTIVES[objective]]


def _label(config: "DistillConfig") -> str:
    """Controls go by their own names, beside the student."""
    parts = ["random-init"] if config.init == "random" else []
    parts += [] if config.needs_teacher else ["ce"]
    return "-".join(parts) or "distilled"
