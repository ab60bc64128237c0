"""One recorded call of a decoder layer, to be repeated with another input."""

# B batch, T token, D hidden

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from minitron_cli.layerwise.observer import layer_input, layer_output

if TYPE_CHECKING:
    from torch import nn


class LayerCall(NamedTuple):
    """Call of one decoder layer with its own arguments: layers differ in their masks (sliding windows)."""

    layer: "nn.Module"
    hidden_BTD: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def seen(cls, layer: "nn.Module", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "LayerCall":
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return cls(layer, layer_input(args, kwargs), args[1:], rest)

    def again(self, hidden_BTD: Tensor) -> Tensor:
        """Output of the layer for another input, [B, T, D]."""
        return layer_output(self.layer(hidden_BTD, *self.args, **self.kwargs))
