"""FLAP's score of heads and neurons (An et al. 2024): fluctuation of what a matrix reads, times its column's norm.

B sample, T token, K input of a matrix, O output
"""

from collections.abc import Mapping

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
        self.moments = NamedMoments()  # "ffn.3": over tokens, [K], of inputs times the norms of their columns

    def add(self, axis: str, layer: int, inputs: Moments, reader_OK: Tensor) -> None:
        """Add the inputs of an axis's reader in a layer, from their moments over the tokens of each sample, [B, K]."""
        self.moments.add(f"{axis}.{layer}", inputs.pooled().scaled(column_norms(reader_OK)))

    def scores(self) -> dict[str, Tensor]:
        """Scores [layer, entry] of every axis that was shown, its layers in order."""
        layers: dict[str, list[int]] = {}
        for name in self.moments:
            axis, _, layer = name.partition(".")
            layers.setdefault(axis, []).append(int(layer))
        return {Flap().key(axis): torch.stack([self._score(axis, i) for i in sorted(layers[axis])]) for axis in layers}

    def _score(self, axis: str, layer: int) -> Tensor:
        """Scores of an axis in a layer: the sum over the inputs that belong to each entry."""
        variance_K = self.moments[f"{axis}.{layer}"].aggregate("var")
        return variance_K.unflatten(0, (self._sizes[axis], -1)).sum(1).float().cpu()


def column_norms(matrix_OK: Tensor) -> Tensor:
    """L2 norm of each column, fp64 [K]."""
    return torch.linalg.vector_norm(matrix_OK, dim=0, dtype=torch.float32).double()
