"""Settings of a teacher's signals. Importable without torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from minitron_cli.spec import Quantity, Spec

MIN_TOP_K = 128


class Sampled(Spec):
    """Ids drawn from the teacher's distribution: the gradient is right on average, for about 50 bytes a token."""

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(50, ge=1, le=255)
    """Ids drawn at each position, of which those that differ are stored with how often they were drawn."""

    def __str__(self) -> str:
        return f"{self.draws} draws"


class TopK(Spec):
    """The most probable ids with their probabilities, and the rest of the vocabulary as one event."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(MIN_TOP_K, ge=1)
    """Ids stored at each position. Fewer than 128 leave out too much: up to 100 were worse than all (Muralidharan et
    al. 2024), so that they have to be allowed."""
    allow_small_k: bool = False
    """Allow k below 128."""

    @model_validator(mode="after")
    def _is_large_enough(self) -> "TopK":
        if self.k < MIN_TOP_K and not self.allow_small_k:
            raise ValueError(
                f"k {self.k} is below {MIN_TOP_K}, which leaves out too much of the distribution: raise it, use "
                "kind: sampled, or set allow_small_k: true"
            )
        return self

    def __str__(self) -> str:
        return f"top {self.k}"


SignalKind = Annotated[Sampled | TopK, Field(discriminator="kind")]


def passes(read: int, total: int) -> int:
    """Passes over `total` blocks in which so many are read; one that ends within its first tenth is not counted.

    Batches seldom fill an epoch, and draws that a few blocks repeat are not worth as much disk again.
    """
    return max(1, -(-(10 * read - total) // (10 * total)))


class TeachConfig(Spec):
    """One pass of the teacher over the training text, whose predictions are stored for any number of students."""

    section: ClassVar[str] = "teach"

    signals: SignalKind = Sampled()
    """What is stored of the teacher's distribution."""
    epochs: int | None = Field(None, ge=1)
    """Draws of their own for so many passes over the text, which cost disk and no time. Default: as many passes as
    `tokens` make."""
    tokens: Quantity | None = None
    """Length of the training that the signals are for: if it is shorter than the text, only the blocks that it reads
    are stored. Default: all of the text, once."""
    seed: int = 0
    """Seed of the draws, and of the order of blocks of that training."""
    temperature: float = Field(1.0, gt=0)
    """Divides the teacher's logits; that of the training's losses has to be the same."""
    eval_blocks: int | None = Field(64, ge=1)
    """Held-out blocks whose signals are stored too, evenly spaced, so that students are evaluated without the teacher;
    null: all."""
    batch_size: int = Field(8, ge=1)
    """Blocks that the teacher reads at a time."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision that the teacher computes in; auto: bf16 if the hardware supports it natively, else fp32."""

    @model_validator(mode="after")
    def _epochs_are_drawn(self) -> "TeachConfig":
        if isinstance(self.signals, TopK) and (self.epochs or 1) > 1:
            raise ValueError("top_k is the same in every pass: drop epochs, or use kind: sampled")
        return self
