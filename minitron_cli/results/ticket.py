"""Results of `minitron ticket`: a state of the dense training, one training, and a whole study of tickets."""

from typing import ClassVar

from minitron_cli.results.base import Result
from minitron_cli.results.training import TrainingResult
from minitron_cli.spec import Spec


class StartResult(Result):
    """A state of the dense training, to which tickets are rewound. The artifact is a checkpoint in fp32."""

    schema_name: ClassVar[str] = "ticket_start/1"
    verb: ClassVar[str] = "minitron ticket train"

    step: int
    """Steps of training; 0 for the initial weights."""
    seed: int


class RoundResult(Result):
    """One training of a ticket or a control. The artifact is a checkpoint with its masks."""

    schema_name: ClassVar[str] = "ticket_round/1"
    verb: ClassVar[str] = "minitron ticket train"

    arm: str
    round: int
    weights: int
    """Weights of the matrices that are pruned."""
    kept: int
    """Those that are left."""
    moved_kept: float | None = None
    """Root mean square of the distance that weights which this round has kept moved in the training before it."""
    moved_lost: float | None = None
    """The same of weights that it has pruned."""
    training: TrainingResult


class TicketRow(Spec):
    """One arm after one round with one seed."""

    arm: str
    round: int
    seed: int
    density: float
    """Share of the prunable weights that are left."""
    loss: float
    """Held-out loss after the training, in nats per token."""
    steps_to_dense: int | None
    """First evaluated step with at most the final loss of the dense model of the same seed; None if there is none."""
    best_step: int
    """Evaluated step with the lowest loss."""
    moved_kept: float | None = None
    moved_lost: float | None = None
    path: str
    """Directory of the trained model in the workspace."""


class TicketResult(Result):
    """Tickets and controls at every sparsity, over all seeds."""

    schema_name: ClassVar[str] = "ticket/1"
    verb: ClassVar[str] = "minitron ticket train"

    rewind: str
    scope: str
    steps: int
    """Steps of each training."""
    seeds: int
    rows: tuple[TicketRow, ...]

    def of(self, arm: str, number: int) -> list[TicketRow]:
        """Rows of an arm after a round, by seed."""
        return [row for row in self.rows if row.arm == arm and row.round == number]


class TransferResult(TicketResult):
    """Tickets that were found on another text, and their controls, over all seeds.

    The arm `transferred` is those tickets, `ticket` the dense training and, if asked for, tickets of this text.
    """

    schema_name: ClassVar[str] = "transfer/1"


class SupermaskRow(Spec):
    """Weights that were never trained, under one criterion's mask, with one seed."""

    criterion: str
    seed: int
    density: float
    """Share of the prunable weights that are kept."""
    loss: float
    """Held-out loss in nats per token."""


class SupermaskResult(Result):
    """Supermasks over all seeds, and what they are to beat."""

    schema_name: ClassVar[str] = "supermask/1"
    verb: ClassVar[str] = "minitron ticket supermask"

    keep: float
    signed_constant: bool
    uniform: float
    """Loss of equal probabilities: the logarithm of the vocabulary's size."""
    unigram: float
    """Held-out loss of the tokens' frequencies in the training text, each count raised by one."""
    seeds: int
    rows: tuple[SupermaskRow, ...]
    """Also of the criterion `none`, all initial weights, and `trained`, the dense training."""
