"""What a user says about a training run. Importable without torch."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from minitron_cli.distill.losses import KDLoss
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.errors import RecipeError
from minitron_cli.spec import Quantity, Spec

Objective = Literal["kl", "ce"]
OBJECTIVES: dict[Objective, tuple[KDLoss, ...]] = {"kl": (ForwardKL(),), "ce": (CrossEntropy(),)}
"""Names for the two usual choices of `losses`: distillation, and conventional training as its control."""

State = Literal["embedding", "attention_relation", "mlp_input", "block_output"]


class HiddenLosses(Spec):
    """Losses between the two models' hidden states, always as their norms leave them.

    Worth it when depth was cut by much; for width, the loss on logits alone does as well (Muralidharan et al. 2024,
    sec. 3 and table 18). Narrower student states pass through one shared linear layer, learned along and not saved
    with the student.
    """

    states: Annotated[tuple[State, ...], Field(min_length=1)] = ("block_output", "embedding")
    """Which states: the embeddings; of each mapped layer its MLP's input, its output, and its attention relations, that
    is which tokens its queries, keys and values find alike (MiniLMv2: Wang et al. 2021), which need no projection."""
    layers: tuple[tuple[int, int], ...] | None = None
    """(teacher, student) pairs of layers from 0; not given: the last but two of both if depth was cut, else none."""
    distance: Literal["cosine", "mse"] = "cosine"
    """1 - cosine, the best of those tried (Muralidharan et al. 2024, sec. 3), or the mean squared difference. Attention
    relations are compared by KL(teacher || student), averaged over relation heads."""
    weight: float | Literal["dynamic"] = "dynamic"
    """alpha in L_logits + alpha * L_hidden. "dynamic", better than a constant (Muralidharan et al. 2024, sec. 3), makes
    both count alike: L_logits / L_hidden, a number without gradient. It is of the step before, and 0 in the first:
    that of a micro-batch would make the result depend on `micro_batch_size`, and that of the whole step is known only
    when its gradients are."""

    @model_validator(mode="after")
    def _weight_is_positive(self) -> "HiddenLosses":
        if self.weight != "dynamic" and self.weight <= 0:
            raise ValueError("weight must be above 0, or 'dynamic'")
        return self


def _one_of_each_kind(losses: tuple[KDLoss, ...]) -> tuple[KDLoss, ...]:
    kinds = [loss.kind for loss in losses]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is given twice; keep one of them")
    return losses


class DistillConfig(Spec):
    """One training run: teacher to student, or to the text alone with `cross_entropy` as the only loss.

    Where not said otherwise, defaults are those of Llama-3.1-Minitron-4B (Sreenivas et al. 2024, table 4).
    """

    section: ClassVar[str] = "distill"
    """Where a recipe has these settings, for what is said of them."""

    tokens: Quantity | None = None
    """Length of the run in tokens, rounded up to whole steps; give this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps; give this or `tokens`."""
    batch_size: int = Field(1152, ge=1)
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: int = Field(1, ge=1)
    """Sequences that one process runs at a time; changes memory and speed, and the result by rounding only."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak of the schedule: linear warm-up, then cosine."""
    min_learning_rate: float = Field(1e-5, ge=0)
    """Where the cosine ends, in the last step."""
    warmup_steps: int = Field(40, ge=0)
    """Steps until the peak."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates (Nemotron-4 15B's: Parmar et al. 2024)."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's, on matrices only, not on norms and biases (Parmar et al. 2024)."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient (Parmar et al. 2024)."""
    losses: Annotated[tuple[KDLoss, ...], Field(min_length=1), AfterValidator(_one_of_each_kind)] = (ForwardKL(),)
    """Losses on the next token's distribution, added up with their weights."""
    low_memory: bool = False
    """Hold logits of a part of the vocabulary at a time, and make them twice: some megabytes instead of some hundred,
    for a step that is longer by each model's product with its head. For forward_kl, reverse_kl and cross_entropy."""
    hidden: HiddenLosses | None = None
    """Losses on hidden states, in addition."""
    init: Literal["student", "random"] = "student"
    """Start from the pruned student, or from random weights in its shape: the control for what pruning is worth."""
    eval_every: int = Field(100, ge=1)
    """Steps between two evaluations on held-out blocks; there is one before the first step and after the last, too."""
    eval_blocks: int | None = Field(64, ge=1)
    """Held-out blocks per evaluation, spread evenly over all of them; none: all."""
    save_every: int = Field(100, ge=1)
    """Steps between two checkpoints."""
    keep_last: int = Field(2, ge=2)
    """Checkpoints that stay; two, so that a damaged one has an heir."""
    export: Literal["last", "best"] = "last"
    """Whose weights the result has: the last step's, where the schedule was to end, or those of the evaluation with the
    lowest held-out loss, which are then kept too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast over fp32 weights, teacher in bf16. auto: bf16 where the hardware multiplies it natively."""
    seed: int = 0
    """Of the data order, dropout and the projection."""
    sharding: Literal["auto", "none", "full"] = Field("auto", exclude=True)
    """full: several processes hold one copy of weights, gradients, moments and teacher between them, instead of one
    each. auto: if one each does not fit. Changes memory and speed, and the result by rounding only."""
    activation_checkpointing: bool = Field(False, exclude=True)
    """Compute each layer's activations a second time instead of keeping them: less memory, a third more work."""
    trackers: tuple[str, ...] = Field((), exclude=True)
    """Where the curves are shown too, such as tensorboard or wandb: accelerate's trackers, each with a package of its
    own."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "DistillConfig":
        if self.tokens is not None and self.steps is not None:
            raise ValueError("tokens and steps both say how long to train; keep one of them")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.low_memory and (whole := [loss.kind for loss in self.losses if not isinstance(loss, TwoPassLoss)]):
            raise ValueError(f"low_memory is not for {whole[0]}, which needs a token's whole logits; drop one of them")
        return self

    @property
    def needs_teacher(self) -> bool:
        return self.hidden is not None or any(loss.needs_teacher for loss in self.losses)

    def total_steps(self, sequence_length: int) -> int:
        """Length of the run in optimizer steps. RecipeError if the config does not say."""
        if self.steps is not None:
            return self.steps
        if self.tokens is None:
            raise RecipeError(
                f"{self.section}: how long to train is not said; set {self.section}.tokens or {self.section}.steps"
            )
        return math.ceil(self.tokens / (self.batch_size * sequence_length))


class CorrectConfig(DistillConfig):
    """Teacher correction: the teacher itself is trained on the text, before it teaches.

    Published with about 127B tokens and a fifth of the peak rate that the model was trained with, the rest as it was
    trained (Sreenivas et al. 2024, sec. 2.2).
    """

    section: ClassVar[str] = "correct"

    learning_rate: float = Field(2e-5, gt=0)
    """Peak of the schedule: a fifth of the model's own in pre-training, where that is known."""
    min_learning_rate: float = Field(2e-6, ge=0)
    """Where the cosine ends, in the last step."""
    warmup_steps: int = Field(120, ge=0)
    """Steps until the peak (Sreenivas et al. 2024, sec. 2.2)."""
    losses: Annotated[tuple[KDLoss, ...], Field(min_length=1), AfterValidator(_one_of_each_kind)] = (CrossEntropy(),)
    """Losses on the next token's distribution; those that need no teacher."""

    @model_validator(mode="after")
    def _has_no_teacher(self) -> "CorrectConfig":
        if self.needs_teacher:
            raise ValueError("the teacher has no teacher: take cross_entropy as the only loss, and no hidden")
        if self.init != "student":
            raise ValueError("init is the model to correct: leave it out")
        return self
