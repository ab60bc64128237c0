"""The ways to score a channel, a head or a neuron. Knows no tensor: a metric names what to look up in `Scores`."""

from typing import Literal, get_args

from minitron_cli.spec import Spec

Aggregation = Literal["mean", "l2", "var"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


class Activation(Spec):
    """Size of the channel's activations over the calibration set (Muralidharan et al. 2024, sec. 2.2)."""

    kind: Literal["activation"] = "activation"
    batch: Aggregation = "l2"
    """Aggregation over samples, second."""
    sequence: Aggregation = "mean"
    """Aggregation over the tokens of one sample, first; mean is the mean of absolute values."""
    neuron: Literal["activation", "pre_activation"] = "activation"
    """A neuron is seen where the next matrix reads it or, as the paper prints, before the activation function."""


class Magnitude(Spec):
    """Norm of the channel's weights: a baseline that needs no data."""

    kind: Literal["magnitude"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"
    """Norm of the rows and columns that belong to the channel."""


class Random(Spec):
    """A random order: the control that any other metric must beat."""

    kind: Literal["random"] = "random"
    seed: int = 0
    """Another seed is another order."""


Metric = Activation | Magnitude | Random
