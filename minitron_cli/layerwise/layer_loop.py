"""Resumable loop over the decoder layers of a model that is run one layer at a time."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.resume import SavedState

LAYERS = "layers"
"""Name of the number of finished layers in a saved pass."""


class LayerTask(Protocol):
    """Work on every layer in turn."""

    def begin(self) -> None:
        """Put every batch in front of layer 0."""
        ...

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        """Continue after the first `layers` layers, with what `state` returned then."""
        ...

    def advance(self, layer: int) -> None:
        """Take every batch past one layer."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated so far, by name."""
        ...


def run_layers(
    task: LayerTask, stores: Mapping[str, ActivationStore], saved: SavedState, layers: int, *, resume: bool = True
) -> None:
    """Advance `task` through all layers, saving it after a layer whenever a save is due.

    With `resume`, a saved pass continues after its last saved layer. `stores` hold the hidden states between two
    layers; each is saved under its name in the same file as the task, so that both are always of the same layer.
    """
    found = saved.read() if resume else {}
    done = int(found[LAYERS]) if LAYERS in found else 0  # a file without it is of a pass over the whole model
    if done:
        for name, store in stores.items():
            store.restore(found[name])
        task.restore(done, found)
    else:
        for store in stores.values():
            store.saved()  # files that an earlier pass left behind
        task.begin()
    for layer in range(done, layers):
        task.advance(layer)
        if saved.is_due():
            _save(task, stores, saved, layer + 1)


def _save(task: LayerTask, stores: Mapping[str, ActivationStore], saved: SavedState, done: int) -> None:
    hidden = {name: store.save() for name, store in stores.items()}
    saved.write(task.state() | hidden | {LAYERS: torch.tensor(done)})
    for store in stores.values():
        store.saved()  # only now: until the file is written, the one before needs its hidden states
