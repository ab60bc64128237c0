"""Where an interrupted calibration goes on: what the observers hold and the next batch, in one file."""

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
    """State and position are renamed into place together, so a kill can neither lose nor repeat a batch."""

    def __init__(self, path: Path, every_s: float) -> None:
        self._path = path
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def restore(self, observers: Iterable[Observer]) -> int:
        """Fill the observers from the file, if there is one; the number of batches they have seen."""
        tensors = self.read()
        if "batches" not in tensors:  # none, or of a pass that held the model layer by layer
            return 0
        for observer in observers:
            observer.restore(under(observer.name, tensors))
        return int(tensors["batches"])

    def save_if_due(self, observers: Iterable[Observer], batches: int) -> None:
        """Save every so often (results do not depend on when), and before stopping on request."""
        if self.is_due():
            states = {f"{o.name}.{name}": tensor for o in observers for name, tensor in o.state().items()}
            self.write(states | {"batches": torch.tensor(batches)})

    def is_due(self) -> bool:
        return progress.stop_requested() or time.monotonic() - self._saved_at >= self._every_s

    def read(self) -> dict[str, Tensor]:
        """What was written last; nothing if there is no file, or a damaged one."""
        if not self._path.exists():
            return {}
        try:
            return read_safetensors(self._path)
        except InputError as error:
            progress.warn(f"calibration starts afresh: {error}")
            return {}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        temporary = self._path.with_name(f"{io.TEMPORARY}{self._path.name}-{secrets.token_hex(4)}")
        write_safetensors(temporary, tensors)
        io.disk.replace(temporary, self._path)
        io.disk.sync_dir(self._path.parent)
        self._saved_at = time.monotonic()


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors called `name.something`, by what that something is."""
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
