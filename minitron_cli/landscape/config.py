"""Settings of `minitron landscape`. Importable without torch."""

from typing import ClassVar

from pydantic import Field

from minitron_cli.choices import DirectionScale, Subspace
from minitron_cli.spec import Spec


class LandscapeConfig(Spec):
    """Measurements around a model's weights, on fixed held-out text."""

    section: ClassVar[str] = "landscape"

    cutoff: float = Field(0.1, gt=0)
    """Rise of the loss, in nats per token, at which the basin ends."""
    directions: int = Field(100, ge=2)
    """Random directions in which the distance to that rise is measured."""
    blocks: int = Field(16, ge=1)
    """Held-out blocks on which the loss is measured, always the same."""
    scale: DirectionScale = "none"
    """Length of a step in each weight. none: one. filter: the root mean square of the row that the weight is in, so
    that models of other weight norms compare (Li et al. 2018); volumes are then in units of these lengths. curvature:
    one over the root of the mean squared gradient, which changes the directions and not the volume that is estimated.
    """
    subspace: Subspace = "all"
    """Weights that are moved: all; last, those of the last decoder layer; or kept, those that no mask of any of the
    models zeroes, by which a dense model and a sparse one compare. Zeros that a mask keeps are never moved."""
    sharpness_radius: float = Field(0.05, gt=0)
    """Length of the step along the gradient after which the loss is measured (Foret et al. 2021)."""
    line_points: int = Field(11, ge=2)
    """Points on the line between two models at which the loss is measured, both ends included."""
    plane: int | None = Field(None, ge=2, exclude_if=lambda points: points is None)
    """Points from one model to another at which the loss on the plane through the first three models is measured, with
    half as many beyond each side; null: no plane. Distances in it are in the units of `scale`."""
    seed: int = Field(0, ge=0)
    """Seed of the directions."""
