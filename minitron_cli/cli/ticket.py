"""`minitron ticket`: sparse networks that are trained from an early state."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minitron_cli.choices import TicketScope, TicketStart
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Seed
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minitron_cli.yaml_document import KeyPath

HELP = "Find sparse networks that train as well as the whole one (lottery tickets)."
LearningRate = Annotated[
    float | None, Option("--lr", help="Peak learning rate of each training.", show_default="0.002")
]
BatchSize = Annotated[
    int | None, Option(min=1, help="Sequences per optimizer step.", show_default="16, less for little text")
]
Start = Annotated[
    TicketStart | None,
    Option(help="Initial weights: random ones in MODEL's shape, or MODEL's own.", show_default="random"),
]
Seeds = Annotated[
    int | None, Option(min=1, help="Repetitions with other weights and order of the text.", show_default="1")
]


def train(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    rounds: Annotated[
        int | None, Option(min=1, help="Rounds of pruning after the dense training.", show_default="10")
    ] = None,
    rate: Annotated[
        float | None,
        Option(help="Share of the weights that are left that each round prunes.", show_default="0.2"),
    ] = None,
    rewind: Annotated[
        str | None,
        Option(
            metavar="init|step:K|none",
            help="Weights that the survivors return to: the initial ones, those after K steps, or none.",
            show_default="init",
        ),
    ] = None,
    scope: Annotated[
        TicketScope | None,
        Option(
            help="Choose the smallest weights of all matrices, or of each alike; layer_half_last: in the last decoder "
            "layer at half the rate.",
            show_default="global",
        ),
    ] = None,
    start: Start = None,
    mask: Annotated[
        list[str] | None,
        Option(
            metavar="DIR",
            help="Train tickets that were found on another text, instead of finding some: a result of this command, or "
            "a round of it. Repeat for several.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        Option(
            metavar="reinit|shuffled|random_mask|own",
            help="Train a control at each sparsity, too: reinit, the mask on other random weights; shuffled, the mask "
            "permuted within each matrix; random_mask, a random mask of the same density; own, with --mask, tickets of "
            "this text. Repeat for several.",
        ),
    ] = None,
    seeds: Seeds = None,
    tokens: Annotated[str | None, Option(metavar="COUNT", help="Length of each training, e.g. 1M.")] = None,
    steps: Annotated[
        int | None, Option(min=1, help="Length of each training in optimizer steps, instead of --tokens.")
    ] = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
) -> None:
    """Train a model of MODEL's shape, prune its smallest weights, return the others to an early state, train again.

    Iterative magnitude pruning with rewinding. Every training is an artifact: a killed run goes on in the training
    where it was, and one with more rounds, seeds or controls reuses those that are there.

    With --mask, tickets that were found on another text are trained on this one, from the weights that they were
    rewound to.

    For example: minitron ticket train demo-teacher --data 'corpus/*.jsonl' --tokens 2M --rewind step:50
    """
    from minitron_cli.cli import printing, sessions

    if mask:
        of_ticket = {"--rounds": rounds, "--rate": rate, "--rewind": rewind, "--scope": scope, "--start": start}
        _require_none({**of_ticket, "--seeds": seeds, "--seed": seed, "MODEL": sessions.split(words or ())[0] or None})
    flags: dict[KeyPath, Any] = {
        ("rounds",): rounds,
        ("rate",): rate,
        ("rewind",): rewind,
        ("scope",): scope,
        ("start",): start,
        ("controls",): [name for some in control for name in some.split(",")] if control else None,
        ("seeds",): seeds,
        ("seed",): seed,
        **_training(tokens, steps, learning_rate, batch_size),
    }
    with sessions.opened(how, "ticket", words, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.ticket.config import TicketConfig, TransferConfig

        if mask:
            settings = session.section(TransferConfig, "ticket")
            artifact = api.transfer(session.context, mask, session.data(), settings)
        else:
            config = session.section(TicketConfig, "ticket")
            artifact = api.tickets(session.context, session.parent(), session.data(), config)
    printing.artifact(artifact, how)


def _require_none(given: "Mapping[str, Any]") -> None:
    """InputError for options that tickets of --mask decide."""
    if named := [name for name, value in given.items() if value is not None]:
        raise InputError(
            f"{', '.join(named)}: the tickets of --mask say this: leave {'it' if len(named) == 1 else 'them'} out"
        )


def supermask(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    criteria: Annotated[
        list[str] | None,
        Option(
            "--criterion",
            metavar="large_final|large_final_same_sign|magnitude_increase|random|edge_popup",
            help="Criterion by which weights are kept. Repeat for several.",
            show_default="all",
        ),
    ] = None,
    keep: Annotated[
        float | None, Option(help="Share of the weights of each matrix that is kept.", show_default="0.5")
    ] = None,
    signed_constant: Annotated[
        bool | None,
        Option(
            "--signed-constant",
            help="Give a kept weight its initial sign and the standard deviation of its matrix.",
            show_default="its initial value",
        ),
    ] = None,
    start: Start = None,
    seeds: Seeds = None,
    tokens: Annotated[
        str | None, Option(metavar="COUNT", help="Length of the training that criteria look at, and of the scores'.")
    ] = None,
    steps: Annotated[int | None, Option(min=1, help="The same in optimizer steps, instead of --tokens.")] = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
) -> None:
    """Measure weights that were never trained, under masks that a training or learned scores have found.

    For comparison, the table has the loss of equal probabilities and that of the frequencies of tokens in the training
    text. The dense training that criteria look at is that of `minitron ticket train` with the same settings, and is
    made once for both.

    For example: minitron ticket supermask demo-teacher --data 'corpus/*.jsonl' --tokens 2M --seeds 3
    """
    from minitron_cli.cli import printing, sessions

    flags: dict[KeyPath, Any] = {
        ("criteria",): [name for some in criteria for name in some.split(",")] if criteria else None,
        ("keep",): keep,
        ("signed_constant",): signed_constant,
        ("start",): start,
        ("seeds",): seeds,
        ("seed",): seed,
        **_training(tokens, steps, learning_rate, batch_size),
    }
    with sessions.opened(how, "supermask", words, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.ticket.config import SupermaskConfig

        config = session.section(SupermaskConfig, "supermask")
        artifact = api.supermasks(session.context, session.parent(), session.data(), config)
    printing.artifact(artifact, how)


def _training(
    tokens: str | None, steps: int | None, learning_rate: float | None, batch_size: int | None
) -> "dict[KeyPath, Any]":
    """Changes to the settings of every training. A length in tokens replaces one in steps, and the reverse."""
    from minitron_cli.cli.sessions import NULL

    return {
        ("training", "tokens"): tokens or (NULL if steps else None),
        ("training", "steps"): steps or (NULL if tokens else None),
        ("training", "learning_rate"): learning_rate,
        ("training", "batch_size"): batch_size,
    }
