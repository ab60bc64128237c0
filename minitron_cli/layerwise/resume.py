"""Saved state of an interrupted calibration: the observers' state and the position, in one file."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import io, progress, stopping
from minitron_cli.checkpoint.sealed_file import first_damaged, read_sealed, replace_sealed
from minitron_cli.errors import InputError
from minitron_cli.layerwise.observer import Observer

FILE = "calibration.safetensors"


def discard_damaged(scratch: Path) -> None:
    """Remove what interrupted work left in a directory, unless every file is what was written."""
    if damaged := first_damaged(scratch):
        progress.warn(f"what was interrupted starts over: {damaged} is damaged")
        io.remove_tree(scratch)


class SavedState:
    """State and position are renamed into place together, so that a kill neither loses nor repeats a batch."""

    def __init__(self, path: Path, every_s: float) -> None:
        self._path = path
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def restore(self, observers: Iterable[Observer]) -> int:
        """Restore the observers from the file, if there is one. Returns the number of batches they have observed."""
        tensors = self.read()
        if "batches" not in tensors:  # no file, or that of a layer-by-layer pass
            return 0
        for observer in observers:
            observer.restore(under(observer.name, tensors))
        return int(tensors["batches"])

    def save_if_due(self, observers: Iterable[Observer], batches: int) -> None:
        """Save if the interval has passed or a stop was requested; results do not depend on when."""
        if self.is_due():
            states = {f"{o.name}.{name}": tensor for o in observers for name, tensor in o.state().items()}
            self.write(states | {"batches": torch.tensor(batches)})

    def is_due(self) -> bool:
        """Whether the interval has passed or a stop was requested."""
        return progress.stop_requested() or time.monotonic() - self._saved_at >= self._every_s

    def read(self) -> dict[str, Tensor]:
        """Tensors written last; none if there is no file or it is damaged."""
        if not self._path.exists():
            return {}
        try:
            return read_sealed(self._path)
        except InputError as error:
            progress.warn(f"calibration starts over: {error}")
            return {}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file atomically, also after a stop was requested."""
        with stopping.deferred():
            replace_sealed(self._path, tensors)
        io.disk.sync_dir(self._path.parent)
        self._saved_at = time.monotonic()


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named `name.<rest>`, by <rest>."""
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
