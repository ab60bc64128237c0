"""The registry of layer observers: an observer is one file in this package and one name below."""

from collections.abc import Mapping

from minitron_cli.importance.activation import Activations
from minitron_cli.importance.block_importance import BlockImportance
from minitron_cli.importance.experts import Experts
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import LayerObserver, Part
from minitron_cli.model.family import Family

LAYER_OBSERVERS: list[type[LayerObserver]] = [Activations, BlockImportance, Experts]


def layer_observers(
    family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions
) -> list[LayerObserver]:
    """One observer of every registered kind, for a part of a model."""
    return [kind.of(family, sizes, part, options) for kind in LAYER_OBSERVERS]


def final_norm_observers(family: Family, sizes: Mapping[str, int], options: ObserverOptions) -> list[LayerObserver]:
    """Observers of the final norm alone, of the kinds that observe it."""
    after_layers = Part(range(0), True)
    return [kind.of(family, sizes, after_layers, options) for kind in LAYER_OBSERVERS if kind.sees_final_norm]


def join_parts(
    family: Family, sizes: Mapping[str, int], by_layer: list[list[LayerObserver]], last: list[LayerObserver]
) -> list[LayerObserver]:
    """Observers of the whole model, from those of each layer and those of the final norm."""
    found = []
    for i, kind in enumerate(LAYER_OBSERVERS):
        parts = [observers[i] for observers in by_layer] + [observer for observer in last if type(observer) is kind]
        found.append(kind.joined(family, sizes, parts))
    return found
