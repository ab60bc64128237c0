"""The options of every verb that trains, and what they change in its stage's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import session
from minitron_cli.yaml_document import KeyPath

TRAINING = "Training"


@dataclass(frozen=True)
class Training:
    """How long, how fast, and in how many processes."""

    tokens: Annotated[
        str | None, Option(metavar="COUNT", help="How long to train, such as 50M.", rich_help_panel=TRAINING)
    ] = None
    steps: Annotated[int | None, Option(min=1, help="The same in optimizer steps.", rich_help_panel=TRAINING)] = None
    learning_rate: Annotated[float | None, Option("--lr", help="Peak of the schedule.", rich_help_panel=TRAINING)] = (
        None
    )
    batch_size: Annotated[
        int | None,
        Option(min=1, help="Sequences per optimizer step.", show_default="1152", rich_help_panel=TRAINING),
    ] = None
    micro_batch_size: Annotated[
        int | None, Option(min=1, help="Sequences at a time.", show_default="1", rich_help_panel=TRAINING)
    ] = None
    warmup_steps: Annotated[int | None, Option(min=0, help="Steps until the peak.", rich_help_panel=TRAINING)] = None
    export: Annotated[
        Literal["last", "best"] | None,
        Option(
            help="Whose weights to keep: the last step's, or those with the lowest held-out loss.",
            show_default="last",
            rich_help_panel=TRAINING,
        ),
    ] = None
    gpus: Annotated[
        int, Option(min=1, help="Processes to train with, one accelerator each.", rich_help_panel=TRAINING)
    ] = 1
    sharding: Annotated[
        Literal["auto", "none", "full"] | None,
        Option(
            help="full: the processes hold one copy of the models between them; auto: if one each does not fit.",
            show_default="auto",
            rich_help_panel=TRAINING,
        ),
    ] = None
    tracker: Annotated[
        list[str] | None,
        Option(help="Show the curves in tensorboard, wandb, ... too. Repeat for several.", rich_help_panel=TRAINING),
    ] = None


def flags(said: Training, seed: int | None) -> dict[KeyPath, Any]:
    """The changes to a training stage's settings; a length in tokens or steps takes the other's place."""
    return {
        ("tokens",): said.tokens or (session.NULL if said.steps else None),
        ("steps",): said.steps or (session.NULL if said.tokens else None),
        ("learning_rate",): said.learning_rate,
        ("batch_size",): said.batch_size,
        ("micro_batch_size",): said.micro_batch_size,
        ("warmup_steps",): said.warmup_steps,
        ("export",): said.export,
        ("sharding",): said.sharding,
        ("trackers",): _list(said.tracker),
        ("seed",): seed,
    }


def _list(names: Sequence[str] | None) -> list[str] | None:
    return [name for some in names for name in some.split(",")] if names else None
