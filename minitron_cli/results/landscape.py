"""Result of `minitron landscape`."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

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


class PlaneLosses(Spec):
    """Loss on the plane through three models, at w_1 + a (w_2 - w_1) + b (w_3 - w_1)."""

    models: tuple[str, str, str]
    """Labels, in the order of the corners (a, b) = (0, 0), (1, 0) and (0, 1)."""
    corners: tuple[tuple[float, float], ...]
    """Place of each model in an orthonormal basis of the plane, in the units of the scale."""
    shares: tuple[float, ...]
    """Values of a, and of b."""
    losses: tuple[tuple[float | None, ...], ...]
    """Row by row for each b, the loss for each a; None where it is not finite."""


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
    plane: PlaneLosses | None = Field(None, exclude_if=lambda plane: plane is None)

    def log_ratio(self, label: str) -> float | None:
        """Logarithm of a model's volume over the first model's; None unless both estimates can be trusted."""
        first, one = next(iter(self.models.values())), self.models[label]
        if first is one or not (first.is_trusted and one.is_trusted):
            return None
        return one.log_volume - first.log_volume
