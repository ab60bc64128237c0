"""Settings of masks that are learned on text. Importable without torch."""

from pydantic import Field

from minitron_cli.model.axes import Axis
from minitron_cli.spec import Quantity, Spec


class LearnedMasks(Spec):
    """Gates of heads, neurons, hidden channels and layers that are trained to a target shape (Xia et al. 2023)."""

    shape: dict[Axis, int] = Field(min_length=1)
    """Sizes of the axes to learn masks for, such as {ffn: 384, hidden: 144}: those of the child."""
    tokens: Quantity = 1_000_000
    """Tokens of training text that gates are trained on (0.4B in the paper, which trains the weights as well)."""
    batch_size: int = Field(8, ge=1)
    """Sequences of a step, which are run at once."""
    rate: float = Field(0.1, gt=0)
    """Learning rate of the gates' log alpha (Adam)."""
    multiplier_rate: float = Field(1.0, gt=0)
    """Learning rate of the Lagrange multipliers, which ascend along their gradient."""
    warmup: float = Field(0.5, ge=0, le=1)
    """Share of the steps over which the target goes from all entries to the shape, evenly."""
    seed: int = 0
    """Seed of the order of blocks and of the gates' noise."""
