"""`minitron teach`: store what a teacher says of the training text, so that it runs once for all students."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from minitron_cli.cli import torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, RecipeOption, Seed
from minitron_cli.cli.training import Teacher
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath, YamlDocument


def teach(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    teacher: Teacher = None,
    kind: Annotated[
        Literal["sampled", "top_k"] | None,
        Option(
            help="sampled: ids drawn from the teacher's distribution; top_k: its most probable ids.",
            show_default="sampled",
        ),
    ] = None,
    draws: Annotated[
        int | None, Option(min=1, help="Ids drawn at each position, with --kind sampled.", show_default="50")
    ] = None,
    tokens: Annotated[
        str | None,
        Option(
            metavar="COUNT",
            help="Length of the training that the signals are for, e.g. 50M.",
            show_default="all of the text, once",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        Option(
            min=1,
            help="Passes over the text that get draws of their own.",
            show_default="as many as --tokens make",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, Option(min=1, help="Blocks that the teacher reads at a time.", show_default="8")
    ] = None,
    gpus: Annotated[int, Option(min=1, help="Number of processes, one accelerator each.")] = 1,
    seed: Seed = None,
) -> None:
    """Store the teacher's predictions of the training text; `minitron distill` then reads them in its place.

    They serve any number of students, learning rates and passes over the same text. `--dry-run` says how large they
    are, how long it takes, and from which pass on it pays.

    For example: minitron teach llama-3.1-8b --data 'corpus/*.jsonl' --tokens 2B
    """
    from minitron_cli import yaml_document
    from minitron_cli.cli import printing, sessions

    torchrun.if_requested(gpus)
    flags: dict[KeyPath, Any] = {
        ("tokens",): tokens,
        ("epochs",): epochs,
        ("batch_size",): batch_size,
        ("seed",): seed,
    }
    with sessions.opened(how, "teach", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.signals.config import TeachConfig

        requested = _with_signals(session.requested, kind, draws)
        config = yaml_document.check(TeachConfig, requested, ("teach",))
        trains = session.section(DistillConfig, "distill") if session.requested.values.get("distill") else None
        source = training.teacher(session, teacher)
        artifact = api.teach(session.context, source, session.data(), config, training=trains)
    printing.artifact(artifact, how)


def _with_signals(requested: "YamlDocument", kind: str | None, draws: int | None) -> "YamlDocument":
    """The settings with the options on what is stored, which leave the others of that kind as they are.

    InputError if draws are given for signals that are not drawn.
    """
    if kind is None and draws is None:
        return requested
    given = (requested.values.get("teach") or {}).get("signals")
    given = given if isinstance(given, dict) else {}
    chosen = kind or given.get("kind") or "sampled"
    if draws and chosen != "sampled":
        raise InputError(f"--draws is about --kind sampled, and the signals are {chosen}: leave one of them out")
    same = given if given.get("kind", chosen) == chosen else {}
    return requested.with_value(("teach", "signals"), {**same, "kind": chosen} | ({"draws": draws} if draws else {}))
