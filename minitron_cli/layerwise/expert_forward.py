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
    row_R: Tensor
    """Rows of the module's result to which the expert adds its output."""
    gate_RF: Tensor
    """Before the activation function."""
    neuron_RF: Tensor
    written_RD: Tensor
    """Output of the expert's second matrix, without its bias."""
    added_RD: Tensor
    """Output of the expert times the router's weight."""
    writer_DF: Tensor
    """The expert's second matrix."""


def each_expert(
    module: Any, hidden_ND: Tensor, index_NK: Tensor | None = None, weight_NK: Tensor | None = None
) -> Iterator[Routed]:
    """Activations of every expert that has tokens, in order, computed as the module computes them.

    Without `index_NK` and `weight_NK` the rows of `hidden_ND` are those of all tokens for each expert in turn, times
    the router's weight, as Llama 4 has it; a token that is not routed to an expert is a row of zeros.
    """
    if index_NK is None or weight_NK is None:
        yield from _each_weighted(module, hidden_ND)
        return
    flat = index_NK.flatten()
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(module.down_proj)).tolist()
    for expert, place_R in enumerate(order.split(counts)):
        if not len(place_R):
            continue
        token_R = place_R // index_NK.shape[1]
        first = "gate_up_proj" if module.has_gate else "up_proj"
        reader_FD, writer_DF = (_outputs_first(module, m[expert]) for m in (getattr(module, first), module.down_proj))
        gate_RF, neuron_RF = _activated(
            module, _biased(linear(hidden_ND[token_R], reader_FD), module, f"{first}_bias", expert)
        )
        written_RD = linear(neuron_RF, writer_DF)
        output_RD = _biased(written_RD, module, "down_proj_bias", expert)
        weighted_RD = output_RD * weight_NK.flatten()[place_R, None]
        yield Routed(expert, token_R, token_R, gate_RF, neuron_RF, written_RD, weighted_RD, writer_DF)


def _activated(module: Any, product_RF: Tensor) -> tuple[Tensor, Tensor]:
    """(before the activation function, neurons) of the first matrix's product, which has gates beside or between."""
    if not module.has_gate:
        return product_RF, module.act_fn(product_RF)
    neuron_RF = module._apply_gate(product_RF)
    return product_RF[:, : neuron_RF.shape[1]] if module.is_concatenated else product_RF[:, ::2], neuron_RF


def _each_weighted(module: Any, weighted_ND: Tensor) -> Iterator[Routed]:
    count = len(weighted_ND) // len(module.down_proj)
    for expert, row_ND in enumerate(weighted_ND.split(count)):
        token_R = row_ND.any(1).nonzero().squeeze(1)
        if not len(token_R):
            continue
        gate_RF, up_RF = (row_ND[token_R] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
        neuron_RF = up_RF * module.act_fn(gate_RF)
        written_RD = neuron_RF @ module.down_proj[expert]
        row_R, writer_DF = token_R + expert * count, module.down_proj[expert].T
        yield Routed(expert, token_R, row_R, gate_RF, neuron_RF, written_RD, written_RD, writer_DF)


def _outputs_first(module: Any, matrix: Tensor) -> Tensor:
    return matrix.T if module.is_transposed else matrix


def _biased(product: Tensor, module: Any, name: str, expert: int) -> Tensor:
    """A product with an expert's bias, added after rounding as the module does it."""
    return product + getattr(module, name)[expert] if module.has_bias else product
