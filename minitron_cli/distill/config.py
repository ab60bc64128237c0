"""Settings of a training run. Importable without torch."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from minitron_cli.choices import CheckpointForm
from minitron_cli.distill.losses import KDLoss
from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.from_signals import SignalLoss
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.distill.optimizer_kinds import OptimizerKind
from minitron_cli.distill.position_choice import PositionChoice
from minitron_cli.errors import RecipeError
from minitron_cli.spec import Quantity, Spec

Objective = Literal["kl", "ce"]
OBJECTIVES: dict[Objective, tuple[KDLoss, ...]] = {"kl": (ForwardKL(),), "ce": (CrossEntropy(),)}
"""Names for the two usual choices of `losses`: distillation, and conventional training as its control."""

State = Literal["embedding", "attention_relation", "mlp_input", "block_output"]


class HiddenLosses(Spec):
    """Losses between the two models' hidden states, measured after their norms.

    Useful if depth was pruned by much; if only width was, the loss on logits alone does as well (Muralidharan et al.
    2024, sec. 3 and table 18). States of a narrower student pass through one shared linear layer, which is trained too
    and is not saved with the student.
    """

    states: Annotated[tuple[State, ...], Field(min_length=1)] = ("block_output", "embedding")
    """States to compare: the embeddings; and for each pair of layers the MLP's input, the layer's output, and attention
    relations: similarities of tokens in queries, keys and values (MiniLMv2: Wang et al. 2021), without projection."""
    layers: tuple[tuple[int, int], ...] | None = None
    """(teacher, student) pairs of layers, from 0. Default: the third-last of both if depth was pruned, else none; for
    attention relations, of each model the nearest to it that has attention."""
    distance: Literal["cosine", "mse"] = "cosine"
    """1 - cosine, the best of those compared (Muralidharan et al. 2024, sec. 3), or the mean squared difference.
    Attention relations are compared by KL(teacher || student), averaged over relation heads."""
    weight: float | Literal["dynamic"] = "dynamic"
    """alpha in L_logits + alpha * L_hidden. "dynamic", better than a constant (Muralidharan et al. 2024, sec. 3), gives
    both the same share: alpha = L_logits / L_hidden, without gradient. It is taken from the previous step (0 at first):
    a per-micro-batch value would depend on `micro_batch_size`, and the full-step value is known only after its
    backward pass."""

    @model_validator(mode="after")
    def _weight_is_positive(self) -> "HiddenLosses":
        if self.weight != "dynamic" and self.weight <= 0:
            raise ValueError("weight must be above 0, or 'dynamic'")
        return self


class MaskRefresh(Spec):
    """Sparse weights whose choice is made again during training (SR-STE: Zhou et al. 2021)."""

    refresh: int = Field(ge=1)
    """Steps between two choices: the weights with the smallest magnitudes are lost, by the mask's pattern. None is made
    after the last step."""
    decay: float = Field(2e-4, ge=0)
    """Decay of lost weights, which stay in training, as a part of their gradient (Zhou et al. 2021)."""


def _one_of_each_kind(losses: tuple[KDLoss, ...]) -> tuple[KDLoss, ...]:
    kinds = [loss.kind for loss in losses]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is given twice; keep one of them")
    return losses


class DistillConfig(Spec):
    """One training run: distillation or, with `cross_entropy` as the only loss, conventional training.

    Unless noted otherwise, defaults are those of Llama-3.1-Minitron-4B (Sreenivas et al. 2024, table 4).
    """

    section: ClassVar[str] = "distill"
    """Section of the recipe with these settings, for messages."""

    tokens: Quantity | None = None
    """Length of the run in tokens, rounded up to whole steps; give this or `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps; give this or `tokens`."""
    batch_size: int = Field(1152, ge=1)
    """Sequences per optimizer step, over all processes. Unless set, at most the blocks of the text, and what leaves 100
    steps."""
    micro_batch_size: int = Field(1, ge=1)
    """Sequences that one process runs at a time. Changes memory and speed, and the result by rounding only."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate: linear warm-up, then a half cosine. Lower, unless set, for a batch below 1,152 sequences."""
    min_learning_rate: float = Field(1e-5, ge=0)
    """Learning rate of the last step. Unless set, lowered with the peak, and a tenth of a peak that is set below it."""
    warmup_steps: int = Field(40, ge=0)
    """Steps of linear warm-up. Unless set, at most a tenth of the run."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of both moments, those of Nemotron-4 15B (Parmar et al. 2024)."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's weight decay, on matrices only, not on norms, biases, convolutions and rates (Parmar et al. 2024)."""
    optimizer: OptimizerKind = Field("adamw", exclude_if=lambda kind: kind != "adamw_8bit")
    """Where AdamW's moments are. adamw: beside the weights in fp32, 16 bytes per trained parameter in all. adamw_8bit:
    in 8 bits (Dettmers et al. 2021), 10 bytes; needs `pip install 'minitron-cli[low-memory]'`. adamw_offload: in the
    host's memory, 8 bytes on the device and 16 on the host, where each step updates the weights: the same result but
    for rounding; on a CPU it takes 20. The last two cannot be sharded."""
    clip: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm (Parmar et al. 2024)."""
    losses: Annotated[tuple[KDLoss, ...], Field(min_length=1), AfterValidator(_one_of_each_kind)] = (ForwardKL(),)
    """Losses on the next token's distribution; the objective is their weighted sum."""
    low_memory: bool = False
    """Hold logits of a part of the vocabulary at a time and compute them twice: about 20 MiB instead of 256 MiB, for
    one more product of each model with its head. For forward_kl, reverse_kl and cross_entropy."""
    hidden: HiddenLosses | None = None
    """Losses on hidden states, added to those on logits."""
    positions: PositionChoice | None = Field(None, exclude_if=lambda positions: positions is None)
    """Positions that the losses are taken at; null: all that are scored. Does not go with hidden."""
    signals: str = Field("auto", exclude=True)
    """auto: in place of the teacher, read the signals of `minitron teach` if there are any of this teacher, text and
    temperature. never: the teacher runs. Or the directory of such signals, which then have to fit a loss that needs a
    teacher."""
    init: Literal["student", "random"] = "student"
    """Initial weights: the pruned student's, or random ones in its shape, the control for the benefit of pruning."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on held-out blocks. There is also one before the first step and one after the last."""
    eval_blocks: int | None = Field(64, ge=1)
    """Held-out blocks per evaluation, evenly spaced; null: all."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    keep_last: int = Field(2, ge=2)
    """Checkpoints to keep; at least 2, so that a damaged one has a predecessor."""
    export: Literal["last", "best"] = "last"
    """Weights of the result: those of the last step, or those of the evaluation with the lowest held-out loss, which
    are then saved too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast over fp32 weights, teacher in bf16. auto: bf16 if the hardware supports it natively, else fp32."""
    seed: int = 0
    """Seed of the order of blocks, of dropout and of the projection."""
    write_as: CheckpointForm | None = Field(None, exclude_if=lambda form: form is None)
    """Form in which a model in a multimodal wrapper is written: wrapper, with the vision tower and projector as they
    are, or text, the text model alone, a checkpoint like any other. Unless set, as the model is that is given."""
    mask: Literal["frozen", "none"] | MaskRefresh = Field("frozen", exclude_if=lambda mask: mask == "frozen")
    """What becomes of the zeros of a sparse model, one with masks. frozen: they stay, and only the other weights are
    trained. {refresh: K}: every K steps the pattern is chosen again. none: all weights are trained and the zeros are
    lost. Without effect on a dense model."""
    sharding: Literal["auto", "none", "full"] = Field("auto", exclude=True)
    """full: weights, gradients, moments and teacher are sharded over the processes instead of replicated. auto: full
    if a replica does not fit. Changes memory and speed, and the result by rounding only."""
    teacher_device: Literal["auto", "cpu"] = Field("auto", exclude=True)
    """cpu: the teacher stays in the host's memory and runs there; only what the losses compare moves to the device, and
    once a copy of the teacher's head. Changes memory and speed, and the result by rounding only. Cannot be sharded."""
    activation_checkpointing: bool = Field(False, exclude=True)
    """Recompute each layer's activations in the backward pass instead of keeping them: less memory, 1/3 more work."""
    trackers: tuple[str, ...] = Field((), exclude=True)
    """Experiment trackers to log the curves to, such as tensorboard or wandb. Each needs its own package."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "DistillConfig":
        if self.tokens is not None and self.steps is not None:
            raise ValueError("tokens and steps both set the length of the run; keep one of them")
        self.check_rates()
        if self.sharding == "full" and (kept_whole := self.kept_whole):
            raise ValueError(f"sharding=full does not go with {kept_whole}; drop one of them")
        if self.signals not in ("auto", "never") and not self.needs_teacher:
            raise ValueError(
                f"signals={self.signals} stand for a teacher, and no loss needs one; drop signals, or use forward_kl"
            )
        if self.positions and self.hidden:
            raise ValueError(
                "positions choose among the losses on logits, and hidden is a loss on all; drop one of them"
            )
        if self.low_memory and (whole := [loss.kind for loss in self.losses if not isinstance(loss, TwoPassLoss)]):
            raise ValueError(
                f"low_memory does not support {whole[0]}, which needs a token's whole logits; drop one of them"
            )
        return self

    def check_rates(self) -> None:
        """Raise ValueError if the learning rate was set to end above its peak."""
        if "min_learning_rate" in self.model_fields_set and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: "
                "lower min_learning_rate, or leave it out"
            )

    @property
    def starts_trained(self) -> bool:
        """Whether the weights are those of a trained model, and not random ones."""
        return self.init == "student"

    @property
    def kept_whole(self) -> str | None:
        """Setting, as the user writes it, with which a run cannot be sharded; None if it can."""
        if self.optimizer != "adamw":
            return f"optimizer={self.optimizer}"
        return "teacher_device=cpu" if self.teacher_device == "cpu" else None

    @property
    def needs_whole_teacher(self) -> str:
        """What stored signals cannot be used for, as the end of a sentence on them; empty if they can."""
        if self.hidden is not None:
            return f"hold no hidden states, which {self.section}.hidden compares"
        whole = [loss.kind for loss in self.losses if loss.needs_teacher and not isinstance(loss, SignalLoss)]
        return f"hold a part of the teacher's distribution, and {whole[0]} needs all of it" if whole else ""

    @property
    def temperatures(self) -> dict[str, float]:
        """Kind of each loss with a teacher -> its temperature."""
        return {loss.kind: loss.temperature for loss in self.losses if isinstance(loss, TeacherLoss)}

    @property
    def label(self) -> str:
        """Label of its result, unless a recipe gives one: `distilled`, or the name of the control that it is."""
        parts = ["random-init"] * (self.init == "random") + ["ce"] * (not self.needs_teacher)
        return "-".join(parts) or "distilled"

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        return self.hidden is not None or any(loss.needs_teacher for loss in self.losses)

    def mask_bytes(self, weights: int) -> int:
        """Memory of masks of so many weights: a byte of each and, if they are chosen again, a dense copy in fp32.

        With adamw_offload that copy is one of the host's.
        """
        if self.mask == "none":
            return 0
        is_copied = isinstance(self.mask, MaskRefresh) and self.optimizer != "adamw_offload"
        return weights * (1 + 4 * is_copied)

    def total_steps(self, sequence_length: int) -> int:
        """Length of the run in optimizer steps. RecipeError if neither tokens nor steps is set."""
        if self.steps is not None:
            return self.steps
        if self.tokens is None:
            raise RecipeError(
                f"{self.section}: the length of the run is unknown; set {self.section}.tokens or {self.section}.steps"
            )
        return math.ceil(self.tokens / (self.batch_size * sequence_length))


class CorrectConfig(DistillConfig):
    """Teacher correction: the teacher is trained on the text before distillation.

    Published with about 127B tokens, a fifth of the peak learning rate of pre-training and otherwise the settings of
    pre-training (Sreenivas et al. 2024, sec. 2.2).
    """

    section: ClassVar[str] = "correct"

    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate: a fifth of that of the model's pre-training, if known. Lower, unless set, for a batch below
    1,152 sequences."""
    min_learning_rate: float = Field(2e-6, ge=0)
    """Learning rate of the last step. Unless set, lowered with the peak, and a tenth of a peak that is set below it."""
    warmup_steps: int = Field(120, ge=0)
    """Steps of linear warm-up (Sreenivas et al. 2024, sec. 2.2). Unless set, at most a tenth of the run."""
    losses: Annotated[tuple[KDLoss, ...], Field(min_length=1), AfterValidator(_one_of_each_kind)] = (CrossEntropy(),)
    """Losses on the next token's distribution; only those that need no teacher."""

    @model_validator(mode="after")
    def _has_no_teacher(self) -> "CorrectConfig":
        if self.needs_teacher or self.teacher_device != "auto":
            raise ValueError(
                "correction has no teacher: use cross_entropy as the only loss, and drop hidden and teacher_device"
            )
        if self.init != "student":
            raise ValueError("correction starts from the model itself: drop init")
        return self
