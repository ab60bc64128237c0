"""The forward pass of a layer's experts run one at a time, so that each one can be observed."""

# N token of any sample, R token routed to one expert, K expert of a token, F neuron, D hidden

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import nn


class TemporaryForward:
    """Handle of a module whose forward function is replaced by `forward(module, *arguments)` until it is removed."""

    def __init__(self, module: "nn.Module", forward: partial[Tensor]) -> None:
        self._module = module
        module.forward = partial(forward, module)

    def remove(self) -> None:
        del self._module.forward


class Routed(NamedTuple):
    """Activations of one expert for the tokens that are routed to it."""

    expert: int
    token_R: Tensor
    gate_RF: Tensor
    """Before the activation function."""
    neuron_RF: Tensor
    added_RD: Tensor
    """Output of the expert times the router's weight."""


def each_expert(module: Any, hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Iterator[Routed]:
    """Activations of every expert that has tokens, in order, computed as the module computes them."""
    flat = index_NK.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(module.down_proj)).tolist()
    for expert, place_R in enumerate(order.split(counts)):
        if not len(place_R):
            continue
        token_R = place_R // index_NK.shape[1]
        both_RF = linear(hidden_ND[token_R], module.gate_up_proj[expert])
        neuron_RF = module._apply_gate(both_RF)
        weighted_RD = linear(neuron_RF, module.down_proj[expert]) * weight_NK.flatten()[place_R, None]
        yield Routed(expert, token_R, both_RF[:, : neuron_RF.shape[1]], neuron_RF, weighted_RD)
