"""Value of a task for a model without a block of its layers (Sreenivas et al. 2024, sec. 4: Winogrande).

The loss need not agree: removing non-contiguous layers gives the better loss and the worse accuracy.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minitron_cli import progress
from minitron_cli.importance.layer_removal import LayerBlock, layer_blocks
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.layerwise.observer import decoder_layers
from minitron_cli.model.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_blocks(
    model: "PreTrainedModel", family: Family, length: int, evaluate: "Callable[[PreTrainedModel], float]"
) -> Iterator[tuple[LayerBlock, float]]:
    """Value of `evaluate` for the model without each contiguous block of `length` layers, from the bottom up.

    `evaluate` must not generate with a cache: bypassed layers do not write to it.
    """
    layers = decoder_layers(model, family)
    blocks_removed = layer_blocks(len(layers), [length])
    with progress.track(f"without {length} layers", total=len(blocks_removed), unit="blocks") as step:
        for block in blocks_removed:
            with bypassed(layers[block.start : block.stop]):
                yield block, evaluate(model)
            step()
