"""FLAP's score of heads and neurons (An et al. 2024): fluctuation of what a matrix reads, times its column's norm.

B batch, T token, N token of any sample, K input of a matrix, O output
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from minitron_cli.importance.running_moments import Moments, NamedMoments
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import Part, Tokens
from minitron_cli.model.family import Family
from minitron_cli.model.taps import taps
from minitron_cli.scores.metric import Flap

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


class Fluctuation:
    """Scores of heads and of neurons outside experts; `Experts` has those inside.

    Over all tokens of the loss mask together: a sample has no mean of its own. In the paper the variance is divided by
    n - 1, here by n, which is one factor for all channels.
    """

    name = "fluctuation"
    sees_final_norm: ClassVar[bool] = False

    def __init__(self, family: Family, sizes: Mapping[str, int], part: Part) -> None:
        self._sizes = sizes
        self._readers = {tap.axis: tap.module for tap in taps(family) if tap.side == "input"}
        self._layers = part.layers
        self._moments = NamedMoments()  # "ffn.3": over tokens, [K], of inputs times the norms of their columns

    @classmethod
    def of(cls, family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions) -> Self:
        """Observer of a part of a model."""
        return cls(family, sizes, part)

    @classmethod
    def joined(cls, family: Family, sizes: Mapping[str, int], parts: Sequence[Self]) -> Self:
        """Observer of the whole model, from those of its layers."""
        whole = cls(family, sizes, Part(range(sizes["layer"]), True))
        for part in parts:
            whole._moments.join(part._moments)
        return whole

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        return [
            model.get_submodule(module.format(layer=layer)).register_forward_pre_hook(
                partial(self._see, f"{axis}.{layer}", tokens.loss_mask_BT)
            )
            for axis, module in self._readers.items()
            for layer in self._layers
        ]

    def _see(self, name: str, counts_BT: Tensor | None, module: Any, args: tuple[Tensor, ...]) -> None:
        inputs_NK = args[0].flatten(0, -2)
        self._moments.add(
            name, fluctuation(inputs_NK, module.weight, None if counts_BT is None else counts_BT.flatten())
        )

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Nothing to do: each matrix's inputs are accumulated when it runs."""

    def state(self) -> dict[str, Tensor]:
        return self._moments.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._moments.restore(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._moments.merge(state)

    def scores(self) -> dict[str, Tensor]:
        return {Flap().key(axis): torch.stack([self._score(axis, i) for i in self._layers]) for axis in self._readers}

    def _score(self, axis: str, layer: int) -> Tensor:
        """Scores of an axis in a layer: the sum over the inputs that belong to each entry."""
        return (
            self._moments[f"{axis}.{layer}"].aggregate("var").unflatten(0, (self._sizes[axis], -1)).sum(1).float().cpu()
        )


def fluctuation(inputs_NK: Tensor, reader_OK: Tensor, counts_N: Tensor | None) -> Moments:
    """Moments over tokens [K], fp64, of a matrix's inputs times the norms of the columns that read them.

    With counts, 0 or 1 for each token, only over those of 1. Their variance is the mean square of what the matrix
    writes for an input less what it writes for the mean of that input.
    """
    weights_N1 = None if counts_N is None else counts_N.to(torch.float32).unsqueeze(-1)
    found = Moments.of(inputs_NK.float(), dim=0, weights=weights_N1)
    norm_K = torch.linalg.vector_norm(reader_OK, dim=0, dtype=torch.float32).double()
    return Moments(found.count, found.mean.double(), found.squares.double()).scaled(norm_K)
