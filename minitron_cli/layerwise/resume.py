"""Saved state of a calibration pass, from which an interrupted pass continues."""

import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.checkpoint.reader import read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import InputError
from minitron_cli.layerwise.observer import Observer

FILE = "calibration.safetensors"


class SavedState:
    """One file with the state of the observers and the number of batches or layers they have seen.

    Both are written to one temporary file and renamed into place, so a kill can neither lose nor repeat a batch.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self._path = path
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def restore(self, observers: Iterable[Observer]) -> int:
        """Restore the observers from the file, if there is one. Returns the number of batches they have seen."""
        tensors = self.read()
        if "batches" not in tensors:  # none, or of a pass that held the model layer by layer
            return 0
        for observer in observers:
            observer.restore(under(observer.name, tensors))
        return int(tensors["batches"])

    def save_if_due(self, observers: Iterable[Observer], batches: int) -> None:
        """Save if `is_due`. Results do not depend on when a pass is saved."""
        if self.is_due():
            states = {f"{o.name}.{name}": tensor for o in observers for name, tensor in o.state().items()}
            self.write(states | {"batches": torch.tensor(batches)})

    def is_due(self) -> bool:
        """Whether the last save is `every_s` seconds old, or the process was asked to stop."""
        return progress.stop_requested() or time.monotonic() - self._saved_at >= self._every_s

    def read(self) -> dict[str, Tensor]:
        """Tensors written last, by name; none if there is no file or it is damaged."""
        if not self._path.exists():
            return {}
        try:
            return read_safetensors(self._path)
        except InputError as error:
            progress.warn(f"the saved calibration pass cannot be read and starts over: {error}")
            return {}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file in one step."""
        temporary = self._path.with_name(f"{io.TEMPORARY}{self._path.name}-{secrets.token_hex(4)}")
        write_safetensors(temporary, tensors)
        io.disk.replace(temporary, self._path)
        io.disk.sync_dir(self._path.parent)
        self._saved_at = time.monotonic()


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `name.`, by the rest of their names."""
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
