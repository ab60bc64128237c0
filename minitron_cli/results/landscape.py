"""Result of `minitron landscape`."""

from collections.abc import Mapping
from typing import ClassVar

from minitron_cli.results.base import Result
from minitron_cli.spec import Spec


class ModelLandscape(Spec):
    """What was measured around one model."""

    loss: float
    """Loss of the model itself, in nats per token."""
    dimension: int
    """Weights that were moved."""
    median_radius: float
    """Median distance at which the loss has risen by the cutoff, in the coordinates of the scale."""
    log_volume: float
    """Natural logarithm of the estimated volume of the basin."""
    effective_directions: float
    """Directions that carry the estimate, of all that were drawn."""
    is_trusted: bool
    """Whether these are enough. The volume is otherwise a lower bound that may be far too low."""
    sharpness: float
    """Rise of the loss after a step along the gradient."""

    @property
    def log_volume_per_weight(self) -> float:
        """Logarithm of the volume divided by the number of weights."""
        return self.log_volume / self.dimension


class LineLosses(Spec):
    """Loss on the straight line between two models."""

    start: str
    """Label of the model where the line starts."""
    end: str
    losses: tuple[float | None, ...]
    """Loss at evenly spaced points, both ends included; None where it is not finite."""
    barrier: float | None
    """Largest loss minus the mean of the ends; None if it is not finite."""


class LandscapeResult(Result):
    """Volumes, sharpness and lines of models of one shape."""

    schema_name: ClassVar[str] = "landscape/1"
    verb: ClassVar[str] = "minitron landscape"

    cutoff: float
    """Rise of the loss at which a basin ends."""
    directions: int
    scale: str
    """Length of a step in each weight: none, filter or curvature."""
    sharpness_radius: float
    tokens: int
    """Held-out tokens that the loss is measured on."""
    models: Mapping[str, ModelLandscape]
    """Label of each model -> what was measured around it."""
    lines: tuple[LineLosses, ...] = ()

    def log_ratio(self, label: str) -> float | None:
        """Logarithm of a model's volume over the first model's; None unless both estimates can be trusted."""
        first, one = next(iter(self.models.values())), self.models[label]
        if first is one or not (first.is_trusted and one.is_trusted):
            return None
        return one.log_volume - first.log_volume
