"""Hidden states between two layers: in memory up to a budget, on disk beyond it. Knows no layer."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import io
from minitron_cli.checkpoint.safetensors_file import read_safetensors
from minitron_cli.checkpoint.sealed_file import replace_sealed

PREFIX = "hidden-"


class ActivationStore:
    """Tensors by name. Each is put once and taken once, then put again under the same name.

    Files of the last `save` stay on disk until the next one, even if their tensors were taken, so that a killed run
    finds all of them. Tensors are returned on the CPU.
    """

    def __init__(self, directory: Path, budget_bytes: int) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._files: dict[str, Path] = {}
        self._saved: frozenset[Path] = frozenset()

    def put(self, name: str, tensor: Tensor) -> None:
        """Store a tensor under a name that is free."""
        assert name not in self
        tensor = tensor.cpu()
        if self._held_bytes + tensor.nbytes <= self._budget_bytes:
            self._held[name] = tensor
            self._held_bytes += tensor.nbytes
        else:
            self._files[name] = self._write(name, tensor)

    def take(self, name: str) -> Tensor:
        """Remove and return a tensor."""
        path = self._files.pop(name, None)
        if (tensor := self._held.pop(name, None)) is not None:
            self._held_bytes -= tensor.nbytes
            return tensor
        assert path is not None
        tensor = read_safetensors(path)["hidden"]
        if path not in self._saved:
            io.disk.remove_file(path)
        return tensor

    def look_at(self, name: str) -> Tensor:
        """Tensor that `take` would return, without removing it."""
        return self._held[name] if name in self._held else read_safetensors(self._files[name])["hidden"]

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._files

    def _write(self, name: str, tensor: Tensor) -> Path:
        path = self._directory / f"{PREFIX}{name}-{secrets.token_hex(4)}.safetensors"
        replace_sealed(path, {"hidden": tensor})
        return path

    def save(self) -> Tensor:
        """Write all tensors to disk. Returns an index, [bytes] uint8, that `restore` takes."""
        for name, tensor in self._held.items():
            if name not in self._files:
                self._files[name] = self._write(name, tensor)
        names = {name: path.name for name, path in self._files.items()}
        return torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)

    def saved(self) -> None:
        """Remove files that only earlier saves needed; called once the index of the last `save` is stored."""
        self._saved = frozenset(self._files.values())
        for path in self._on_disk():
            if path not in self._saved:
                io.disk.remove_file(path)

    def restore(self, saved: Tensor) -> None:
        """Return to the state of a `save`, given its index."""
        names = json.loads(bytes(saved.tolist()))
        self._held, self._held_bytes = {}, 0
        self._files = {name: self._directory / file for name, file in names.items()}
        self.saved()

    def _on_disk(self) -> Iterator[Path]:
        return self._directory.glob(f"{PREFIX}*")
