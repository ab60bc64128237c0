"""FLAP's score of heads and neurons (An et al. 2024): fluctuation of what a matrix reads, times its column's norm.

B sample, T token, K input of a matrix, O output, L layer, H layer that has the axis, C entry of the axis
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minitron_cli.importance.running_moments import Moments, NamedMoments
from minitron_cli.scores.metric import Flap


class Fluctuation:
    """Scores of heads and of neurons outside experts, as far as an observer has shown what their readers read.

    Over all tokens together: a sample has no mean of its own. In the paper the variance is divided by n - 1, here by n,
    which is one factor for all channels.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._batch: dict[str, list[Moments]] = {}
        self._norms: dict[str, list[Tensor]] = {}
        self.moments = NamedMoments()  # "ffn": over tokens, [H, K], of inputs times the norms of their columns

    def begin_batch(self) -> None:
        """Forget a batch that did not come to its end."""
        self._batch.clear()

    def add(self, axis: str, inputs: Moments, reader_OK: Tensor) -> None:
        """Add what an axis's reader reads, layer after layer, from its moments over each sample's tokens [B, K]."""
        layers, norms = self._batch.setdefault(axis, []), self._norms.setdefault(axis, [])
        if len(norms) == len(layers):  # the first batch
            norms.append(column_norms(reader_OK))
        layers.append(inputs.pooled().scaled(norms[len(layers)]))

    def end_batch(self) -> None:
        """Accumulate the batch."""
        for axis, layers in self._batch.items():
            self.moments.add(axis, Moments.stack(layers))
        self._batch.clear()

    def join(self, layers: Sequence["Fluctuation"]) -> None:
        """Take over what was accumulated of each layer, in order."""
        for axis in dict.fromkeys(axis for layer in layers for axis in layer.moments):
            seen = [layer.moments[axis][0] for layer in layers if axis in layer.moments]
            self.moments.add(axis, Moments.stack(seen))

    def scores(self, layers: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Scores [layer, entry] of every axis that was shown: the sum over the inputs that belong to each entry.

        `layers` are those that have the axis, in order; the others' scores are zeros.
        """
        return {Flap().key(axis): self._of_layers(axis, layers[axis]) for axis in self.moments}

    def _of_layers(self, axis: str, layers: Sequence[int]) -> Tensor:
        variance_HK = self.moments[axis].aggregate("var")
        sums_HC = variance_HK.unflatten(1, (self._sizes[axis], -1)).sum(2).float().cpu()
        return sums_HC.new_zeros(self._sizes["layer"], sums_HC.shape[1]).index_copy(0, torch.tensor(layers), sums_HC)


def column_norms(matrix_OK: Tensor) -> Tensor:
    """L2 norm of each column, fp64 [K]."""
    return torch.linalg.vector_norm(matrix_OK, dim=0, dtype=torch.float32).double()
