"""What a task thinks of a model without a block of its layers (Sreenivas et al. 2024, sec. 4: Winogrande).

The loss need not agree: a model without non-contiguous layers has the better loss and the worse accuracy.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minitron_cli import progress
from minitron_cli.importance.layer_removal import Cut, cuts_of
from minitron_cli.layerwise.bypass import passing
from minitron_cli.layerwise.observer import decoder_layers
from minitron_cli.model.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_blocks(
    model: "PreTrainedModel", family: Family, length: int, evaluate: "Callable[[PreTrainedModel], float]"
) -> Iterator[tuple[Cut, float]]:
    """What `evaluate` gives of the model without each run of `length` layers, from the bottom up.

    `evaluate` must not generate with a cache: the layers that are passed over write none.
    """
    layers = decoder_layers(model, family)
    cuts = cuts_of(len(layers), [length])
    with progress.track(f"without {length} layers", total=len(cuts), unit="blocks") as step:
        for cut in cuts:
            with passing(layers[cut.start : cut.stop]):
                yield cut, evaluate(model)
            step()
