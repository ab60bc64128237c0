"""Settings of `minitron ticket`. Importable without torch."""

import re
from fractions import Fraction
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, model_validator

from minitron_cli.choices import MaskCriterion, TicketControl, TicketScope, TicketStart, TransferControl
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses import KDLoss
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.spec import Quantity, Spec

Arm = Literal["ticket", "transferred"] | TicketControl


NO_REINIT = "reinit is no control for a model's own weights: drop it, or start from random ones"

T = TypeVar("T")


def _once_each(names: tuple[T, ...]) -> tuple[T, ...]:
    """Names without those that were given before: a second one would count as another run."""
    return tuple(dict.fromkeys(names))


OnceEach = AfterValidator(_once_each)


def _own_seed(training: "TicketTraining") -> "TicketTraining":
    if training.seed != TicketTraining.model_fields["seed"].default:
        raise ValueError("a training has the seed of its repetition: set seed beside training, not in it")
    return training


class TicketTraining(DistillConfig):
    """Every training of a ticket and of its controls: cross-entropy on the text, without a teacher."""

    section: ClassVar[str] = "ticket.training"

    tokens: Quantity | None = None
    """Length of each training in tokens; give this or `steps`."""
    batch_size: int = Field(16, ge=1)
    """Sequences per optimizer step."""
    micro_batch_size: int = Field(16, ge=1)
    """Sequences that are run at a time."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate, that of a small model from random weights."""
    min_learning_rate: float = Field(1e-4, ge=0)
    """Learning rate of the last step."""
    losses: Annotated[tuple[KDLoss, ...], Field(min_length=1)] = (CrossEntropy(),)
    """Only losses that need no teacher."""
    eval_every: int = Field(25, ge=1)
    """Steps between evaluations; the step that reaches the dense model's loss is one of them."""

    @property
    def starts_trained(self) -> bool:
        """The learning rates are those of a training from random weights, also where it starts elsewhere."""
        return False

    @model_validator(mode="after")
    def _has_no_teacher(self) -> "TicketTraining":
        is_taught = self.needs_teacher or self.teacher_device != "auto"
        if is_taught or self.init != "student" or self.mask != "frozen" or self.export != "last":
            raise ValueError(
                "a ticket is trained on the text with its mask: drop hidden, init, mask, export, losses and "
                "teacher_device"
            )
        return self


def _rewind(text: str) -> str:
    if not re.fullmatch(r"init|none|step:\d{1,9}", text):
        raise ValueError(f"{text!r} is no place to rewind to: write init, step:K or none")
    return text


class TicketConfig(Spec):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020)."""

    section: ClassVar[str] = "ticket"

    rounds: int = Field(10, ge=1)
    """Rounds of pruning after the dense training."""
    rate: float = Field(0.2, gt=0, lt=1)
    """Share of the weights that are left that each round prunes."""
    rewind: Annotated[str, AfterValidator(_rewind)] = "init"
    """Weights that the survivors return to: init, the initial ones; step:K, those after K steps of the dense training
    (late resetting, which larger models need); none, they stay as they are trained."""
    scope: TicketScope = "global"
    """Whether the smallest weights are chosen among those of all matrices, or in each matrix alike. layer_half_last: in
    each matrix, and in those of the last decoder layer at half of the rate."""
    start: TicketStart = "random"
    """Initial weights: random ones in the model's shape, or the model's own."""
    controls: Annotated[tuple[TicketControl, ...], OnceEach] = ()
    """Controls at each sparsity. reinit: the ticket's mask on other random weights. shuffled: the mask permuted within
    each matrix. random_mask: a random mask of the same density over all matrices together."""
    seeds: int = Field(1, ge=1)
    """Repetitions, each with initial weights and an order of the text of its own."""
    seed: int = Field(0, ge=0)
    """Seed of the first repetition."""
    training: Annotated[TicketTraining, AfterValidator(_own_seed)] = TicketTraining()
    """Every training."""

    @property
    def rewind_step(self) -> int | None:
        """Step of the dense training that is returned to; None if survivors stay as they are."""
        if self.rewind == "none":
            return None
        return 0 if self.rewind == "init" else int(self.rewind.partition(":")[2])

    @model_validator(mode="after")
    def _has_other_weights(self) -> "TicketConfig":
        if self.start == "model" and "reinit" in self.controls:
            raise ValueError(NO_REINIT)
        return self


class TransferConfig(Spec):
    """Trainings of tickets that were found on another text (Morcos et al. 2019)."""

    section: ClassVar[str] = "ticket"

    controls: Annotated[tuple[TransferControl, ...], OnceEach] = ()
    """Controls at each sparsity. reinit: the ticket's mask on other random weights. shuffled: the mask permuted within
    each matrix. random_mask: a random mask of the same density over all matrices together. own: tickets that are found
    on this text, by as many rounds from the same weights."""
    training: Annotated[TicketTraining, AfterValidator(_own_seed)] = TicketTraining()
    """Every training."""


class SupermaskConfig(Spec):
    """Masks of weights that are never trained (Zhou et al. 2019; Ramanujan et al. 2020)."""

    section: ClassVar[str] = "supermask"

    criteria: Annotated[tuple[MaskCriterion, ...], Field(min_length=1), OnceEach] = get_args(MaskCriterion)
    """Criteria by which weights are kept. large_final: large after training. large_final_same_sign: the same, and of
    the sign that they began with. magnitude_increase: grown in training. edge_popup: by scores that are learned."""
    keep: float = Field(0.5, gt=0, lt=1)
    """Share of the weights of each matrix that is kept."""
    signed_constant: bool = False
    """Whether a weight that is kept has the standard deviation of its matrix and the sign that it began with, rather
    than its initial value."""
    popup_rate: float = Field(0.01, gt=0)
    """Peak learning rate of the scores of edge_popup, which begin between -1 and 1."""
    start: TicketStart = "random"
    """Initial weights: random ones in the model's shape, or the model's own."""
    seeds: int = Field(1, ge=1)
    """Repetitions, each with initial weights and an order of the text of its own."""
    seed: int = Field(0, ge=0)
    """Seed of the first repetition."""
    training: Annotated[TicketTraining, AfterValidator(_own_seed)] = TicketTraining()
    """The training that criteria look at, and the length and batches of the one of scores."""


class StartConfig(Spec):
    """One state of the dense training."""

    start: TicketStart
    """Initial weights."""
    step: int
    """Steps after which it is taken."""
    training: TicketTraining
    """The dense training, with the seed of this repetition."""


class RoundConfig(Spec):
    """One training of one arm."""

    arm: Arm
    """The ticket, one that was found on another text, or which control."""
    round: int
    """Rounds of pruning before this training; 0 for the dense one."""
    rate: float
    """Share that a round prunes."""
    scope: TicketScope
    """Where the smallest weights are chosen."""
    training: TicketTraining
    """The training, with the seed of this repetition."""

    @property
    def lost_share(self) -> Fraction:
        """Share of the weights that are pruned after this round: 1 - (1 - rate)^round, exactly."""
        return 1 - (1 - Fraction(str(self.rate))) ** self.round

    @property
    def last_lost_share(self) -> Fraction:
        """The same of the last decoder layer's weights: 1 - (1 - rate / 2)^round with `layer_half_last`."""
        half = Fraction(str(self.rate)) / 2
        return 1 - (1 - half) ** self.round if self.scope == "layer_half_last" else self.lost_share
