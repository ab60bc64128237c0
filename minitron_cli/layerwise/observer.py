"""What takes part in a calibration pass: it watches a model's forward, folds each batch away and gives scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

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
    """Which tokens are scored; None: all."""

    @classmethod
    def of(cls, batch: "Batch", device: str | torch.device) -> "Tokens":
        loss_mask_BT = batch.loss_mask_BT
        return cls(
            batch.input_ids_BT.to(device),
            batch.position_ids_BT.to(device),
            None if loss_mask_BT is None else loss_mask_BT.to(device),
        )


class Part(NamedTuple):
    """What of a model runs while an observer watches: these layers, then the final norm or not."""

    layers: range
    with_final_norm: bool


class Handle(Protocol):
    def remove(self) -> None: ...


class Watcher(Protocol):
    """Sees batches go by."""

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> Sequence[Handle]:
        """Hook onto the model for one forward pass, of these tokens."""
        ...

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Fold one batch away, hooks off. `hidden_BTD` is what the LM head would read."""
        ...


class Observer(Watcher, Protocol):
    """Its memory does not grow with the number of batches, and between two batches `state` is all of it."""

    name: str

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what another process saw, which watched the same part over other samples."""
        ...

    def scores(self) -> dict[str, Tensor]:
        """What the batches so far say, under the names that `Scores` uses."""
        ...


def final_norm(family: Family) -> str:
    """The module whose output the LM head reads."""
    return next(tap.module for tap in taps(family) if tap.axis == "hidden" and "{layer}" not in tap.module)


def decoder_layers(model: "PreTrainedModel", family: Family) -> "list[nn.Module]":
    layers = family.axis_sizes(model.config)["layer"]
    return [model.get_submodule(layer_module(family).format(layer=i)) for i in range(layers)]


def layer_output(output: Any) -> Tensor:
    """The hidden states that a decoder layer returns, alone or first in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a decoder layer is called with."""
    return args[0] if args else kwargs["hidden_states"]
