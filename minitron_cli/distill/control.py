"""Controls of a distillation: the same training, or its start, with one thing changed. Importable without torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli.distill.config import OBJECTIVES, DistillConfig, Objective
from minitron_cli.results.training import Equal
from minitron_cli.spec import Quantity, Spec

TAKEN = ("original", "parent", "pruned", "sparse", "corrected", "distilled")
LENGTHS = ("tokens", "steps", "equal")
STARTS = ("prune", "prune_from", "repair")
WORDS: Mapping[Equal, str] = {
    "tokens": "training tokens",
    "total_tokens": "tokens with those of the original",
    "flops": "FLOPs of training",
}


class Control(Spec):
    """The recipe's distillation with one thing changed, which shows the effect of that thing."""

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name in tables, such as random-init."""
    init: Literal["student", "random"] | None = None
    """Initial weights, if other than the student's; random: new weights of the student's shape."""
    objective: Objective | None = None
    """kl: distillation; ce: conventional training on the text alone, without a teacher."""
    prune: Literal["random"] | None = None
    """random: start from a child of the same size whose channels, heads and neurons were chosen at random."""
    prune_from: Literal["original"] | None = None
    """original: start from a child of the same size that was pruned from the chain's original at once. Unless its
    length is set, it is trained on as many tokens as the student was in all steps."""
    repair: Literal["none"] | None = None
    """none: start from the same child without its repair."""
    trained: bool = True
    """Whether it is trained. false: what `prune`, `prune_from` or `repair` makes is measured as it is."""
    tokens: Quantity | None = None
    """Length in tokens, if other than the student's; give this, `steps` or `equal`."""
    steps: int | None = Field(None, ge=1)
    """Length in optimizer steps."""
    equal: Equal | None = None
    """Length that makes it equal to the student in something. tokens: all training after the original was first pruned,
    in all steps; total_tokens: that, the search's, the correction's and the original's own `pretraining`; flops: those
    of the student's, the search's and the correction's training, the teacher's forward passes included."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate, if other than the student's."""
    batch_size: int | None = Field(None, ge=1)
    """Sequences per optimizer step, if other than the student's."""
    seed: int | None = None
    """Seed, if other than the student's. With the same seed and batch, the control reads the same blocks in the same
    order, as far as both go."""
    in_steps: tuple[str, ...] | None = Field(None, min_length=1)
    """Labels of the steps of a chain in which the control is trained; default: the last."""

    @model_validator(mode="before")
    @classmethod
    def _knows_the_old_key(cls, values: object) -> object:
        if isinstance(values, dict) and "cut" in values:
            raise ValueError(f"the key cut is now called prune; write prune: {values['cut']}")
        return values

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        changes = [name for name in type(self).model_fields if name not in ("label", "in_steps", "trained")]
        if all(getattr(self, name) is None for name in changes):
            raise ValueError(f"the control changes nothing; give it one of {', '.join(changes)}")
        lengths = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{lengths[0]} and {lengths[1]} both set the length of the control; keep one of them")
        starts = [name for name in STARTS if getattr(self, name) is not None]
        if len(starts) > 1:
            raise ValueError(f"{starts[0]} and {starts[1]} both choose what the control starts from; keep one of them")
        if not self.trained:
            self._check_untrained(starts, [name for name in changes if getattr(self, name) is not None])
        if self.label in TAKEN:
            raise ValueError(f"the label {self.label!r} is taken by another model of the run; choose another")
        return self

    def _check_untrained(self, starts: list[str], given: list[str]) -> None:
        """Refuse a control that is not trained and says how, or is the student's own start."""
        if not starts:
            raise ValueError(f"trained: false measures another start; give the control one of {', '.join(STARTS)}")
        if training := [name for name in given if name not in starts]:
            raise ValueError(f"{training[0]} is about training, and the control has trained: false; remove one of them")

    @property
    def equality(self) -> Equal | None:
        """What the control's length makes equal; None if it is the student's, or is given."""
        is_given = self.tokens is not None or self.steps is not None
        return self.equal or ("tokens" if self.prune_from and not is_given else None)

    @property
    def has_own_length(self) -> bool:
        """Whether it may be trained for longer or shorter than the student."""
        return bool(self.tokens or self.steps or self.equality)

    @property
    def length(self) -> str:
        """Its length in words, where it is not simply the student's: `equal to the student in FLOPs of training`."""
        if self.equality:
            return f"equal to the student in {WORDS[self.equality]}"
        return f"{self.tokens:,} tokens" if self.tokens else f"{self.steps:,} steps" if self.steps else ""

    def beside(self, distill: DistillConfig, batch_size: int) -> DistillConfig:
        """The student's configuration, with the batch that was fitted to its length for a control of another length."""
        if not self.has_own_length:
            return distill
        made = distill.model_copy(update={"batch_size": batch_size})
        if "batch_size" not in distill.model_fields_set:  # nobody set it, so that a shorter control may lower it
            made.model_fields_set.discard("batch_size")
        return made

    def applied_to(self, distill: DistillConfig, *, tokens: int | None = None) -> DistillConfig:
        """The distillation's configuration with what the control changes. `tokens`: its length, if `equality` says."""
        changes: dict[str, Any] = {"init": self.init} if self.init else {}
        if self.objective:
            changes |= {
                "losses": OBJECTIVES[self.objective],
                "hidden": None if self.objective == "ce" else distill.hidden,
            }
        given = ("learning_rate", "batch_size", "seed")
        changes |= {name: value for name in given if (value := getattr(self, name)) is not None}
        if length := tokens or self.tokens:
            changes |= {"tokens": length, "steps": None}
        elif self.steps:
            changes |= {"tokens": None, "steps": self.steps}
        return distill.model_copy(update=changes)
