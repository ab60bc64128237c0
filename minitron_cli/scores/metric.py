"""Ways to score a channel, a head, a neuron or an expert. The union at the end is the registry.

A metric names the stored scores that it reads. An observer measures them (`importance/observers.py`), or, for weights,
`importance/magnitude.py`. Knows neither model nor observer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from minitron_cli import canonical_json
from minitron_cli.errors import ArtifactError, InputError
from minitron_cli.figures import Figure
from minitron_cli.model.axes import SCORED
from minitron_cli.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Aggregation = Literal["mean", "l2", "var"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
PRE_ACTIVATION = "pre_activation"
OUTPUT_NORM = "expert.output_norm"


class WidthMetric(Spec, ABC):
    """Base of a metric: a kind, and the scores that it reads."""

    axes: ClassVar[tuple[str, ...]] = SCORED
    """Axes whose entries it scores."""
    is_measured_once: ClassVar[bool] = False
    """Whether only `minitron importance` measures it, and pruning in rounds cannot measure it again."""

    @property
    @abstractmethod
    def figure(self) -> Figure:
        """Title and unit of the scores."""

    @abstractmethod
    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""

    def select(self, axis: str, scores: "Mapping[str, Tensor]") -> "Tensor":
        """Scores of an axis: [layer, channel], [layer, expert, channel], or [channel] where all layers share it.

        InputError if the metric has none for the axis; ArtifactError lists what was measured if its own were not.
        """
        if reason := self.refusal(axis):
            raise InputError(reason)
        name = self.key(axis)
        if name not in scores:
            known = ", ".join(names_of(axis, scores) or sorted(scores))
            raise ArtifactError(f"no scores {name!r}: choose among {known}, or measure it with `minitron importance`")
        return scores[name]

    def refusal(self, axis: str) -> str | None:
        """Reason why the metric cannot rank an axis, and what to do instead; None if it can."""
        if axis in {*self.axes, "kv_head", "layer"}:
            return None
        kind = getattr(self, "kind", "this metric")
        return f"{kind} does not score {axis}: prune {' and '.join(self.axes)}, or rank by activation or magnitude"


def names_of(axis: str, scores: "Mapping[str, Tensor]") -> list[str]:
    """Names of all stored scores of an axis, sorted."""
    return sorted(name for name in scores if name.startswith(f"{axis}."))


class Activation(WidthMetric):
    """Size of the channel's activations over the calibration set (Muralidharan et al. 2024, sec. 2.2)."""

    kind: Literal["activation"] = "activation"
    batch: Aggregation = "l2"
    """Aggregation over samples, applied second."""
    sequence: Aggregation = "mean"
    """Aggregation over the tokens of one sample, applied first; mean is the mean of absolute values."""
    neuron: Literal["activation", "pre_activation"] = "activation"
    """Where a neuron is observed: at the input of the next matrix or, as the paper prints, before the activation. Those
    that go with neurons of experts (of experts that all tokens use, of dense layers) always are at the input."""

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure(f"activation, {self.batch} over samples of {self.sequence} over tokens")

    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""
        if axis == "expert":
            return OUTPUT_NORM  # a token adds one vector to the residual stream: there is nothing to aggregate
        observed = f".{PRE_ACTIVATION}" if axis == "ffn" and self.neuron == PRE_ACTIVATION else ""
        return f"{axis}{observed}.batch={self.batch}.sequence={self.sequence}"


class Magnitude(WidthMetric):
    """Norm of the channel's weights: a baseline that needs no data."""

    kind: Literal["magnitude"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"
    """Norm of the rows and columns that belong to the channel."""

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure(f"weight magnitude ({self.norm})")

    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""
        return f"{axis}.magnitude={self.norm}"


class Random(WidthMetric):
    """A random order: the control that any other metric must beat."""

    kind: Literal["random"] = "random"
    seed: int = 0
    """Seed of the order."""

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure(f"random order {self.seed}")

    def key(self, axis: str) -> str:
        """Name that no measurement has: the order is drawn, not stored."""
        return f"{axis}.random"

    def select(self, axis: str, scores: "Mapping[str, Tensor]") -> "Tensor":
        """Uniform scores of the shape of the measured ones, drawn from a generator per layer, or per expert."""
        import torch

        names = names_of(axis, scores)
        shape = tuple(scores[names[0]].shape if names else super().select(axis, scores).shape)
        *owners, channels = shape
        rows = [torch.rand(channels, generator=self._generator(axis, row)) for row in range(math.prod(owners))]
        return torch.stack(rows).reshape(shape)

    def _generator(self, axis: str, row: int) -> "torch.Generator":
        import torch

        return torch.Generator().manual_seed(int(canonical_json.digest([self.seed, axis, row])[:15], 16))


class Flap(WidthMetric):
    """Fluctuation of the channel, weighted by what reads it (FLAP: An et al. 2024, WIFV, eq. 5).

    Variance over tokens of an input of the matrix that reads neurons or heads, times the squared norm of its column; a
    head's is the sum over its head_dim. This is the mean square of what the matrix no longer writes once the mean of
    the pruned input is in a bias. Hidden channels and experts have no score.
    """

    axes: ClassVar[tuple[str, ...]] = ("head", "ffn", "shared_ffn", "mlp_ffn")

    kind: Literal["flap"] = "flap"

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure("fluctuation times squared norm of the reader's column")

    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""
        return f"{axis}.flap"


class Learned(WidthMetric):
    """Mean of a gate that was trained on text to a target shape, with the weights frozen (Xia et al. 2023)."""

    axes: ClassVar[tuple[str, ...]] = ("head", "ffn", "hidden")
    is_measured_once: ClassVar[bool] = True

    kind: Literal["learned"] = "learned"

    @property
    def figure(self) -> Figure:
        """Title of the scores."""
        return Figure("mean of the learned gate")

    def key(self, axis: str) -> str:
        """Name under which the scores of an axis are stored."""
        return f"{axis}.learned"

    def select(self, axis: str, scores: "Mapping[str, Tensor]") -> "Tensor":
        """Means of an axis. ArtifactError names the command that learns them if it was not done."""
        if not self.refusal(axis) and self.key(axis) not in scores:
            raise ArtifactError(
                f"no masks of {axis} were learned: run `minitron importance learned.shape.{axis}=N`, with such a size "
                "for every axis that is to be pruned"
            )
        return super().select(axis, scores)


Metric = Activation | Magnitude | Random | Flap | Learned
