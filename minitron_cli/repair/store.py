"""Intermediate results of a repair, on disk until the child is written: moments of norms, and fitted tensors."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import TensorInfo, read_header, read_safetensors
from minitron_cli.checkpoint.sealed_file import replace_sealed
from minitron_cli.repair.gram import NormMoments

NORMS, TOKENS, TOTAL, COMPLETE = "norms", "tokens.", "total", "complete"


class RepairStore:
    """Files in one directory, each renamed into place, so that a killed repair leaves whole files only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tensors: dict[str, dict[str, TensorInfo]] = {}

    def put_norms(self, layer: int, norms: Mapping[str, NormMoments]) -> None:
        """Keep the moments of a layer's norms; the final norm counts as one layer more."""
        sums = {name: moments.sum_DD for name, moments in norms.items()}
        self._put(f"{NORMS}-{layer:05d}", sums | {TOKENS + name: torch.tensor(m.tokens) for name, m in norms.items()})

    def norms(self) -> Iterator[tuple[str, NormMoments]]:
        """Norms with their moments, in the order of layers; one layer's are in memory at a time."""
        for path in sorted(self.directory.glob(f"{NORMS}-*.safetensors")):
            found = read_safetensors(path)
            for name in found:
                if not name.startswith(TOKENS):
                    yield name, NormMoments(found[name], int(found[TOKENS + name]))

    def norm(self, name: str) -> NormMoments:
        """Moments of one norm; KeyError if there are none."""
        for path in self.directory.glob(f"{NORMS}-*.safetensors"):
            if name in read_header(path):
                found = read_safetensors(path)
                return NormMoments(found[name], int(found[TOKENS + name]))
        raise KeyError(name)

    def total(self, compute: Callable[[], Tensor]) -> Tensor:
        """Moments of all norms together, computed at the first call."""
        path = self._path(TOTAL)
        if not path.exists():
            self._put(TOTAL, {TOTAL: compute()})
        return read_safetensors(path)[TOTAL]

    @property
    def is_complete(self) -> bool:
        """Whether every tensor has been fitted."""
        return self._path(COMPLETE).exists()

    def complete(self) -> None:
        """Note that every tensor has been fitted."""
        self._put(COMPLETE, {COMPLETE: torch.tensor(True)})

    def put(self, kind: str, name: str, tensor: Tensor) -> None:
        """Keep a tensor of a kind; a second one of the same name replaces the first."""
        found = self._found(kind)
        self._put(f"{kind}-{name}", {name: tensor})
        found |= read_header(self._path(f"{kind}-{name}"))

    def tensors(self, kind: str) -> Checkpoint | None:
        """All tensors of a kind, readable like a checkpoint's; None if there are none."""
        found = self._found(kind)
        return Checkpoint(self.directory, {}, dict(found)) if found else None

    def _found(self, kind: str) -> dict[str, TensorInfo]:
        if kind not in self._tensors:
            files = sorted(self.directory.glob(f"{kind}-*.safetensors"))
            self._tensors[kind] = {name: info for path in files for name, info in read_header(path).items()}
        return self._tensors[kind]

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def _put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            replace_sealed(self._path(name), tensors)
