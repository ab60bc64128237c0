"""Perplexity without each layer, from the hidden states of the pass that is running anyway.

Removing layer i changes nothing before it, so layer i's input goes straight into layer i + 1 and only the layers
after the cut run again: half the work of whole forwards, and no logits are held.
"""

# B batch, T token, D hidden, L layer, N token that counts

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli.errors import DataError
from minitron_cli.importance.observer import Tokens, decoder_layers, layer_input, layer_output
from minitron_cli.model.family import Family
from minitron_cli.model.nll import Head, head_of, token_nll
from minitron_cli.model.taps import taps

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

LOG_MAX = 700.0  # exp of more overflows; a model this bad has no perplexity worth telling apart


class Call(NamedTuple):
    """One decoder layer's call. Layers differ in mask (sliding windows), so each keeps its own arguments."""

    layer: "nn.Module"
    hidden_BTD: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerRemoval:
    """Change in perplexity when a single layer is removed (Muralidharan et al. 2024, sec. 2.2).

    Every token counts that has a predecessor in its own document.
    """

    name = "layer_removal"

    def __init__(self, model: "PreTrainedModel", family: Family, layers: int) -> None:
        self._family = family
        self._final_norm = model.get_submodule(_final_norm(family))
        self._head = head_of(model)
        self._calls: list[Call] = []
        self._nll_sum = torch.zeros(layers + 1, dtype=torch.float64)  # without layer 0, 1, ...; the whole model last
        self._tokens = 0

    def watch(self, model: "PreTrainedModel") -> "list[RemovableHandle]":
        return [
            layer.register_forward_pre_hook(self._see, with_kwargs=True)
            for layer in decoder_layers(model, self._family)
        ]

    def _see(self, layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self._calls.append(Call(layer, layer_input(args, kwargs), args[1:], rest))

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        counts = _continues_its_document(tokens.position_ids_BT)
        nll_sum = partial(_nll_sum, self._head, tokens, counts)
        ends = [nll_sum(self._final_norm(variant_BTD)) for variant_BTD in self._variants()]
        self._nll_sum += torch.stack([*ends, nll_sum(hidden_BTD)]).cpu()
        self._tokens += int(counts.sum())

    def _variants(self) -> list[Tensor]:
        """The last layer's output without layer 0, without layer 1, ..."""
        variants: list[Tensor] = []
        while self._calls:
            layer, hidden_BTD, args, kwargs = self._calls.pop(0)
            for i, variant_BTD in enumerate(variants):
                variants[i] = layer_output(layer(variant_BTD, *args, **kwargs))
            variants.append(hidden_BTD)
        return variants

    def state(self) -> dict[str, Tensor]:
        return {"nll_sum": self._nll_sum, "tokens": torch.tensor(self._tokens)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._nll_sum, self._tokens = state["nll_sum"], int(state["tokens"])

    def scores(self) -> dict[str, Tensor]:
        """The change, and from what to what: layer.nll is the mean nats per token without the layer."""
        if not self._tokens:
            raise DataError("no calibration token has a predecessor in its document: use longer texts or blocks")
        nll = self._nll_sum / self._tokens
        without_L, parent = nll[:-1], nll[-1]
        change_L = _perplexity(without_L) - _perplexity(parent)
        return {"layer.perplexity": change_L, "layer.nll": without_L, "parent.nll": parent}


def _final_norm(family: Family) -> str:
    return next(tap.module for tap in taps(family) if tap.axis == "hidden" and "{layer}" not in tap.module)


def _continues_its_document(position_ids_BT: Tensor) -> Tensor:
    """[B, T - 1] bool: whether the token after each one is of the same document."""
    return position_ids_BT.diff(dim=1) == 1


def _perplexity(nll: Tensor) -> Tensor:
    return nll.clamp(max=LOG_MAX).exp()


def _nll_sum(head: Head, tokens: Tokens, counts: Tensor, hidden_BTD: Tensor) -> Tensor:
    labels_N, hidden_ND = tokens.input_ids_BT[:, 1:][counts], hidden_BTD[:, :-1][counts]
    nll_N = token_nll(hidden_ND, head.weight_VD, labels_N, head.bias_V, head.softcap, head.scale)
    return nll_N.sum(dtype=torch.float64)
