"""Where an interrupted calibration goes on: what the observers hold and the next batch, in one file."""

import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from minitron_cli import io, progress
from minitron_cli.checkpoint.reader import read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import InputError
from minitron_cli.importance.observer import Observer

FILE = "calibration.safetensors"


class SavedState:
    """State and position are renamed into place together, so a kill can neither lose nor repeat a batch."""

    def __init__(self, directory: Path, every_s: float) -> None:
        self._path = directory / FILE
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def restore(self, observers: Iterable[Observer]) -> int:
        """Fill the observers from the file, if there is one; the number of batches they have seen."""
        if not self._path.exists():
            return 0
        try:
            tensors = read_safetensors(self._path)
        except InputError as error:
            progress.warn(f"calibration starts afresh: {error}")
            return 0
        for observer in observers:
            prefix = f"{observer.name}."
            observer.restore({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        return int(tensors["batches"])

    def save_if_due(self, observers: Iterable[Observer], batches: int) -> None:
        """Save every so often (results do not depend on when), and before stopping on request."""
        if progress.stop_requested() or time.monotonic() - self._saved_at >= self._every_s:
            self._save(observers, batches)
            self._saved_at = time.monotonic()

    def _save(self, observers: Iterable[Observer], batches: int) -> None:
        tensors = {f"{o.name}.{name}": tensor for o in observers for name, tensor in o.state().items()}
        temporary = self._path.with_name(f"{io.TEMPORARY}{FILE}-{secrets.token_hex(4)}")
        write_safetensors(temporary, tensors | {"batches": torch.tensor(batches)})
        io.disk.replace(temporary, self._path)
        io.disk.sync_dir(self._path.parent)
