"""Observers of a calibration pass: they hook a model's forward pass, accumulate every batch and return scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from minitron_cli.layerwise.bypass import return_tuples
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.model.family import Family
from minitron_cli.model.taps import layer_module, taps

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch


class Tokens(NamedTuple):
    """One batch on the model's device. Positions restart where a document starts."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    loss_mask_BT: Tensor | None = None
    """Tokens that are scored; None if all are."""

    @classmethod
    def of(cls, batch: "Batch", device: str | torch.device) -> "Tokens":
        loss_mask_BT = batch.loss_mask_BT
        return cls(
            batch.input_ids_BT.to(device),
            batch.position_ids_BT.to(device),
            None if loss_mask_BT is None else loss_mask_BT.to(device),
        )


class Part(NamedTuple):
    """Part of a model that runs while an observer watches."""

    layers: range
    with_final_norm: bool


class Handle(Protocol):
    """Hook that can be removed."""

    def remove(self) -> None:
        """Remove the hook."""
        ...


class Watcher(Protocol):
    """Observer of single batches."""

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> Sequence[Handle]:
        """Register hooks for one forward pass of these tokens."""
        ...

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Accumulate the batch, after the hooks were removed. `hidden_BTD` is the input of the LM head."""
        ...


class Observer(Watcher, Protocol):
    """Observer whose memory does not grow with the number of batches; between two batches `state` is all of it."""

    name: str
    """Prefix of its state in a saved pass."""

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated so far, by name. Later batches do not change these tensors."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Replace what was accumulated."""
        ...

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of another process, which watched the same part of the model over other samples."""
        ...

    def scores(self) -> dict[str, Tensor]:
        """Scores of the batches so far, under the names that `Scores` uses."""
        ...


class LayerObserver(Observer, Protocol):
    """Observer of decoder layers that can watch any part of a model, so that a pass may hold one layer at a time."""

    sees_final_norm: ClassVar[bool]
    """Whether it observes the final norm as well as layers."""

    @classmethod
    def of(cls, family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions) -> Self:
        """Observer of a part of a model with these axis sizes."""
        ...

    @classmethod
    def joined(cls, family: Family, sizes: Mapping[str, int], parts: Sequence[Self]) -> Self:
        """Observer of the whole model, from observers of its parts in the order of the layers, the final norm last."""
        ...


def final_norm(family: Family) -> str:
    """Name of the module whose output the LM head reads."""
    return next(tap.module for tap in taps(family) if tap.axis == "hidden" and "{layer}" not in tap.module)


def decoder_layers(model: "PreTrainedModel", family: Family) -> "list[nn.Module]":
    """Decoder layers of a model, in order."""
    layers = family.axis_sizes(model.config)["layer"]
    found = [model.get_submodule(layer_module(family).format(layer=i)) for i in range(layers)]
    if family.layers_return_tuples:
        return_tuples(found)
    return found


def layer_output(output: Any) -> Tensor:
    """Hidden states [B, T, D] in a decoder layer's return value: the value itself, or the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Hidden states [B, T, D] in the arguments of a decoder layer."""
    return args[0] if args else kwargs["hidden_states"]
