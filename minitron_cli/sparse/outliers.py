"""The pass that measures each layer's outliers, by which amounts are chosen (`amounts`); the model stays dense."""

# O output, I input

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress, stopping
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.layerwise.runner import LayerwiseRunner, StoredWeights
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.model.shape import Shape
from minitron_cli.sparse.layer_pass import matrices
from minitron_cli.sparse.metrics import wanda
from minitron_cli.sparse.statistics import LayerInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch
    from minitron_cli.layerwise.activation_store import ActivationStore

SHARES = "outliers"


class OutlierPass:
    """The `LayerTask` that measures the share of outliers of every layer of a dense model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        shape: Shape,
        batches: "Sequence[Batch]",
        outlier: float,
        parent: Checkpoint,
        states: "ActivationStore",
        device: str,
        step: progress.Step,
    ) -> None:
        self.shares: list[float] = []
        """Of each finished layer."""
        self._shape, self._outlier, self._parent = shape, outlier, parent
        self._groups, self._samples = input_groups(shape), sum(len(batch.input_ids_BT) for batch in batches)
        weights = StoredWeights(model, shape.family, parent.read, device)
        self._runner = LayerwiseRunner(model, shape.family, batches, weights, states, step)

    def begin(self) -> None:
        """Embed every batch."""
        self._runner.embed()

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        """Continue behind some layers, whose shares are known."""
        self.shares = state[SHARES].tolist()
        self._runner.skip(layers)

    def state(self) -> dict[str, Tensor]:
        """Shares of the finished layers."""
        return {SHARES: torch.tensor(self.shares, dtype=torch.float64)}

    def advance(self, layer: int) -> None:
        """Run every batch through a layer, and count its outliers."""
        seen = LayerInputs(self._shape, self._groups, layer, needs="squares", fits=False, samples=self._samples)
        self._runner.through(layer, [seen])
        self.shares.append(outlier_share(lambda: self._scores(layer, seen), self._outlier))

    def _scores(self, layer: int, seen: LayerInputs) -> Iterable[Tensor]:
        for matrix in matrices(self._shape, self._groups, layer):
            stopping.raise_if_stopped()
            weight_OI = self._parent.read(matrix.name).to(self._runner.device)
            inputs = seen.of(matrix.group, matrix.expert)
            nothing = torch.zeros_like(weight_OI, dtype=torch.float32)  # no token came to the expert
            yield wanda.scores(weight_OI, inputs.sums()) if inputs else nothing


def outlier_share(scores: Callable[[], Iterable[Tensor]], outlier: float) -> float:
    """Share of entries above `outlier` times the mean of all entries of some matrices, which are read twice."""
    total, count = 0.0, 0
    for scores_OI in scores():
        total, count = total + float(scores_OI.sum(dtype=torch.float64)), count + scores_OI.numel()
    bound = outlier * total / count
    return sum(int((scores_OI > bound).sum()) for scores_OI in scores()) / count
