"""Value of a task for a model without a block of its layers (Sreenivas et al. 2024, sec. 4: Winogrande).

The loss need not agree: removing non-contiguous layers gives the better loss and the worse accuracy.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minitron_cli import progress
from minitron_cli.artifacts.build import Remember
from minitron_cli.importance.layer_removal import layer_blocks
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.layerwise.observer import decoder_layers
from minitron_cli.model.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_blocks(
    model: "PreTrainedModel",
    family: Family,
    length: int,
    evaluate: "Callable[[PreTrainedModel], float]",
    remember: Remember,
) -> list[float]:
    """Value of `evaluate` for the model without each contiguous block of `length` layers, from the bottom up.

    `evaluate` must not generate with a cache: bypassed layers do not write to it. `remember(name, compute)` keeps each
    value, so that an interrupted run measures none again.
    """
    layers = decoder_layers(model, family)
    blocks_removed, values = layer_blocks(len(layers), [length]), []
    with progress.track(f"without {length} layers", total=len(blocks_removed), unit="blocks") as step:
        for block in blocks_removed:
            with bypassed(layers[block.start : block.stop]):
                name = f"block_task-{length}-{block.start:03d}"
                values.append(remember(name, lambda: {"value": evaluate(model)})["value"])
            step()
    return values
