"""A model that computes with gates: where all of an axis are 0 or 1, what the pruned child computes.

Neurons and heads are gated at the input of the matrix that reads them, layers in what they add to the stream. Hidden
channels are gated where they enter and leave the stream's norms, whose mean runs over the open ones only.
"""

# B batch, T token, D hidden, K features of a matrix's input

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli.layerwise.observer import decoder_layers, layer_input, layer_output
from minitron_cli.learned.gates import Gates, of_heads
from minitron_cli.model.family import Family
from minitron_cli.model.taps import taps

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

READ = ("head", "ffn")
"""Axes that are gated where a matrix reads them; others that are read so (`taps.READ`) have no gates."""


@contextmanager
def gated(model: "PreTrainedModel", family: Family, gates: Gates) -> Iterator[None]:
    """Context in which the model computes with the gates' values as they are at each call."""
    with ExitStack() as hooks:
        layers = decoder_layers(model, family)
        for tap in taps(family):
            is_by_layer = "{layer}" in tap.module
            for i in range(len(layers)) if is_by_layer else [None]:
                module = model.get_submodule(tap.module.format(layer=i))
                for handle in _hooks(module, tap.axis, i, gates, family):
                    hooks.callback(handle.remove)
        embedding = model.get_input_embeddings()
        hooks.callback(embedding.register_forward_hook(partial(_embedded, gates)).remove)
        for i, layer in enumerate(layers):
            hooks.callback(layer.register_forward_hook(partial(_layer, gates, i), with_kwargs=True).remove)
        yield


def _hooks(module: "nn.Module", axis: str, layer: int | None, gates: Gates, family: Family) -> Iterator[Any]:
    if axis == "hidden" or layer is None:
        yield module.register_forward_pre_hook(partial(_into_norm, gates, family.norm == "layer"))
        yield module.register_forward_hook(partial(_out_of_norm, gates))
    elif axis in READ:
        yield module.register_forward_pre_hook(partial(_read, gates, axis, layer))


def _read(gates: Gates, axis: str, layer: int, _: "nn.Module", args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Gate neurons or heads in the input of the matrix that reads them."""
    values = gates.values.get("ffn") if axis == "ffn" else of_heads(gates.values)
    if values is None:
        return None
    inputs_BTK, of_layer = args[0], values[layer]
    if axis == "head":  # [G, Q or 1] -> [K]: a gate for every channel of every head of the group
        per_group = inputs_BTK.shape[-1] // of_layer.shape[0]
        of_layer = of_layer.repeat_interleave(per_group // of_layer.shape[1], dim=1).flatten()
    return (inputs_BTK * of_layer, *args[1:])


def _embedded(gates: Gates, _: "nn.Module", args: tuple[Any, ...], output_BTD: Tensor) -> Tensor | None:
    z_D = gates.values.get("hidden")
    return None if z_D is None else output_BTD * z_D


def _into_norm(gates: Gates, is_layer_norm: bool, _: "nn.Module", args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Gate what a norm reads. Closed channels have the mean of the others where a layer norm subtracts it.

    Both are scaled so that the mean square over all channels is that over the open ones, to which a norm adds epsilon.
    """
    z_D = gates.values.get("hidden")
    if z_D is None:
        return None
    open_BTD = args[0] * z_D
    if is_layer_norm:
        open_BTD = open_BTD + (1 - z_D) * open_BTD.sum(-1, keepdim=True) / z_D.sum()
    return (open_BTD / _share(z_D).sqrt(), *args[1:])


def _out_of_norm(gates: Gates, norm: "nn.Module", args: tuple[Any, ...], output_BTD: Tensor) -> Tensor | None:
    """Undo the scale, and close the channels that have no weight."""
    z_D = gates.values.get("hidden")
    if z_D is None:
        return None
    bias_D = getattr(norm, "bias", None)
    bias_D = torch.zeros_like(z_D) if bias_D is None else bias_D
    return ((output_BTD - bias_D) * _share(z_D).sqrt() + bias_D) * (z_D > 0)


def _share(z_D: Tensor) -> Tensor:
    """Share of the open channels, as a mean square counts them."""
    return z_D.square().mean()


def _layer(gates: Gates, layer: int, _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Gate what a layer adds to the stream."""
    z_L = gates.values.get("layer")
    if z_L is None:
        return None
    gated_BTD = torch.lerp(layer_input(args, kwargs), layer_output(output), z_L[layer])
    return gated_BTD if isinstance(output, Tensor) else (gated_BTD, *output[1:])
