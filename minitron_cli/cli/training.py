"""Options of every command that trains, and the stage settings that they change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

if TYPE_CHECKING:
    from minitron_cli.cli.sessions import Session
    from minitron_cli.inputs.source_model import SourceModel
    from minitron_cli.yaml_document import KeyPath

TRAINING = "Training"
ORIGINAL = "original"
OF_THE_RUN = (ORIGINAL, "parent")  # names a recipe may use for the teacher instead of a model


@dataclass(frozen=True)
class Training:
    """Options on length, learning rate, batches and processes of a training."""

    tokens: Annotated[
        str | None, Option(metavar="COUNT", help="Number of training tokens, e.g. 50M.", rich_help_panel=TRAINING)
    ] = None
    steps: Annotated[
        int | None, Option(min=1, help="Number of optimizer steps, instead of --tokens.", rich_help_panel=TRAINING)
    ] = None
    learning_rate: Annotated[float | None, Option("--lr", help="Peak learning rate.", rich_help_panel=TRAINING)] = None
    batch_size: Annotated[
        int | None,
        Option(min=1, help="Sequences per optimizer step.", show_default="1152", rich_help_panel=TRAINING),
    ] = None
    micro_batch_size: Annotated[
        int | None, Option(min=1, help="Sequences per forward pass.", show_default="1", rich_help_panel=TRAINING)
    ] = None
    warmup_steps: Annotated[int | None, Option(min=0, help="Steps of linear warmup.", rich_help_panel=TRAINING)] = None
    export: Annotated[
        Literal["last", "best"] | None,
        Option(
            help="Weights to keep: those of the last step, or those with the lowest validation loss.",
            show_default="last",
            rich_help_panel=TRAINING,
        ),
    ] = None
    gpus: Annotated[
        int, Option(min=1, help="Number of training processes, one accelerator each.", rich_help_panel=TRAINING)
    ] = 1
    sharding: Annotated[
        Literal["auto", "none", "full"] | None,
        Option(
            help="full: shard the models across processes; auto: only if a copy per process does not fit.",
            show_default="auto",
            rich_help_panel=TRAINING,
        ),
    ] = None
    tracker: Annotated[
        list[str] | None,
        Option(help="Also log to tensorboard, wandb, ... Repeat for several.", rich_help_panel=TRAINING),
    ] = None


FailIfWorse = Annotated[
    bool,
    Option(
        "--fail-if-worse",
        help="Exit with 1 if training made its objective worse on held-out text. The result is kept.",
        rich_help_panel=TRAINING,
    ),
]


Teacher = Annotated[
    str | None,
    Option(
        metavar="MODEL",
        help="Teacher: a model, or `original`. Default: the corrected parent if there is one, else the parent.",
    ),
]


def flags(given: Training, seed: int | None) -> "dict[KeyPath, Any]":
    """Changes to the settings of a training stage. A length in tokens replaces one in steps, and the reverse."""
    from minitron_cli.cli.sessions import NULL

    return {
        ("tokens",): given.tokens or (NULL if given.steps else None),
        ("steps",): given.steps or (NULL if given.tokens else None),
        ("learning_rate",): given.learning_rate,
        ("batch_size",): given.batch_size,
        ("micro_batch_size",): given.micro_batch_size,
        ("warmup_steps",): given.warmup_steps,
        ("export",): given.export,
        ("sharding",): given.sharding,
        ("trackers",): _list(given.tracker),
        ("seed",): seed,
    }


def _list(names: Sequence[str] | None) -> list[str] | None:
    return [name for some in names for name in some.split(",")] if names else None


def teacher(session: "Session", named: str | None) -> "SourceModel":
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
    progress.say(f"the teacher is the corrected parent, {corrected.path}")
    return open_source_model(corrected.path, offline=session.context.offline)
