"""Transfer stage: tickets that were found on one text, trained on another beside their controls.

A ticket keeps its mask and the weights that it was rewound to; the dense training, the controls and the tickets of the
new text begin with the same weights, but for `reinit`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.choices import TicketStart
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import InputError
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.results.ticket import StartResult, TicketResult, TransferResult
from minitron_cli.stages import ticket
from minitron_cli.stages.ticket_rounds import ROUND, START, Pricing, Round, Tickets, collected, fitted, texts
from minitron_cli.ticket.config import NO_REINIT, RoundConfig, StartConfig, TicketConfig, TransferConfig

STAGE = "transfer"


def run(context: Context, directories: Sequence[Path], data: DataConfig, config: TransferConfig) -> Artifact:
    """Train the tickets of directories on a text, with all controls; the artifact is the table (TransferResult).

    Each directory is a result of the ticket stage, with all its tickets, or one of its rounds. InputError unless all
    are tickets of one shape that were rewound to the same step.
    """
    found = sorted((one for path in directories for one in tickets_in(path)), key=lambda one: (one.seed, one.number))
    _require_alike(found)
    if found[0].begins == "model" and "reinit" in config.controls:
        raise InputError(f"ticket.controls: {NO_REINIT}")
    train_blocks, held_out = texts(context, found[0].start, data)
    config = config.model_copy(update={"training": fitted(config.training, train_blocks)})
    steps = config.training.total_steps(train_blocks.sequence_length)
    by_seed = {seed: list(some) for seed, some in groupby(found, key=lambda one: one.seed)}
    total = sum(_trainings(some, config) for some in by_seed.values())
    pricing = Pricing(context, found[0].start, config.training, train_blocks, held_out, total)
    transfers = _Transfers(replace(context, is_between=True), train_blocks, held_out, config, pricing)
    rounds = collected(chain.from_iterable(map(transfers.rounds, by_seed.values())), pricing)
    result = ticket.table(TransferResult, found[0].settings, found[0].rewind, steps, rounds, context.workspace.root)
    return ticket.written(context, STAGE, config, rounds, result)


@dataclass(frozen=True)
class FoundTicket:
    """A ticket that was found before, and the weights that it was rewound to."""

    round: Round
    start: SourceModel
    step: int
    """Step of the dense training that these are from."""
    begins: TicketStart
    """What the dense training began with."""

    @property
    def seed(self) -> int:
        return self.round.seed

    @property
    def number(self) -> int:
        """Rounds of pruning behind it."""
        return self.round.result.round

    @property
    def rewind(self) -> str:
        """Where it was rewound to, as the ticket stage says it."""
        return f"step:{self.step}" if self.step else "init"

    @property
    def settings(self) -> TicketConfig:
        """How it was pruned."""
        config = RoundConfig.model_validate(self.round.artifact.manifest.config)
        return TicketConfig(rate=config.rate, scope=config.scope, rewind=self.rewind, start=self.begins)


def tickets_in(directory: Path) -> Iterator[FoundTicket]:
    """The tickets of a result of the ticket stage, dense training and controls aside, or the one of a round."""
    artifact = Artifact.open(directory)
    if artifact.stage == ticket.STAGE:
        rows = [row for row in artifact.result(TicketResult).rows if row.arm == "ticket" and row.round]
        yield from (_found(Artifact.open(directory.parent.parent / row.path)) for row in rows)
    elif artifact.stage == ROUND and (one := Round.of(artifact)).result.arm == "ticket" and one.result.round:
        yield _found(artifact)
    else:
        raise InputError(f"{directory} is no ticket: give what `minitron ticket train` wrote, or a round of a ticket")


def _found(artifact: Artifact) -> FoundTicket:
    one = Round.of(artifact)
    for path in sorted((artifact.path.parent.parent / START).glob(f"step-*-seed-{one.seed}-*")):
        source = open_source_model(path)
        if source.fingerprint == artifact.manifest.inputs["start"]:
            start = Artifact.open(path)
            begins = StartConfig.model_validate(start.manifest.config).start
            return FoundTicket(one, source, start.result(StartResult).step, begins)
    raise InputError(
        f"{artifact.path}: the weights that it was rewound to are not beside it: give a ticket in its own workspace, "
        "found with --rewind init or step:K"
    )


def _require_alike(found: Sequence[FoundTicket]) -> None:
    first = found[0]
    for one in found[1:]:
        if one.start.shape.tensors() != first.start.shape.tensors():
            raise InputError(f"{first.start.path} and {one.start.path} are of unlike shape: give tickets of one shape")
        is_other_start = one.seed == first.seed and one.start.fingerprint != first.start.fingerprint
        if one.settings != first.settings or is_other_start:
            raise InputError("--mask: tickets of unlike rate, scope or rewinding: give those of one training")
    if len({(one.seed, one.number) for one in found}) < len(found):
        raise InputError("--mask: two tickets of one round and seed: give each ticket once")


def _trainings(found: Sequence[FoundTicket], config: TransferConfig) -> int:
    """Number of trainings for the tickets of one seed."""
    others = len(set(config.controls) - {"own"})
    return 1 + len(found) * (1 + others) + found[-1].number * ("own" in config.controls)


@dataclass(frozen=True)
class _Transfers:
    """The trainings on the new text."""

    context: Context
    train_blocks: Blocks
    held_out: Blocks
    config: TransferConfig
    pricing: Pricing

    def rounds(self, found: Sequence[FoundTicket]) -> Iterator[Round]:
        """The dense training, then every ticket of one seed with its controls."""
        start, tickets = found[0].start, self._tickets(found)
        dense = tickets.whole(start, self.config.training.model_copy(update={"seed": found[0].seed}))
        yield dense
        for one in found:
            yield tickets.control("transferred", start, one.round)
            for control in self.config.controls:
                if control != "own":
                    yield tickets.control(control, start, one.round)
        if "own" in self.config.controls:
            yield from (one for _, one in tickets.pruned(start, dense, start))

    def _tickets(self, found: Sequence[FoundTicket]) -> Tickets:
        config = found[0].settings.model_copy(update={"rounds": found[-1].number, "training": self.config.training})
        return Tickets(self.context, found[0].start, self.train_blocks, self.held_out, config, self.pricing)
