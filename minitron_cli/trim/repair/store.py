"""What a pass found out about each layer, on disk until the child is written: solved matrices and norms' moments."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import io
from minitron_cli.checkpoint.reader import Checkpoint, TensorInfo, read_header, read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.trim.repair.gram import NormMoments

SOLVED, NORMS, READINGS, TOKENS = "solved", "norms", "readings", "tokens."


class Store:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put_solved(self, layer: int, columns: Mapping[str, Tensor]) -> None:
        """The kept columns of some matrices."""
        self._put(SOLVED, layer, columns)

    def put_norms(self, layer: int, norms: Mapping[str, NormMoments]) -> None:
        sums = {name: moments.sum_DD for name, moments in norms.items()}
        self._put(NORMS, layer, sums | {TOKENS + name: torch.tensor(m.tokens) for name, m in norms.items()})

    def solved(self) -> Checkpoint | None:
        """All solved matrices, to be read like a checkpoint's; None if there are none."""
        return self._open(SOLVED)

    def norms(self) -> Iterator[tuple[str, NormMoments]]:
        """Norm by norm, a layer's at a time."""
        for path in self._files(NORMS):
            found = read_safetensors(path)
            for name in found:
                if not name.startswith(TOKENS):
                    yield name, NormMoments(found[name], int(found[TOKENS + name]))

    def readings(self, label: str, of: Callable[[Tensor], Tensor]) -> Checkpoint | None:
        """`of` each norm's moments, made once, to be read like a checkpoint's tensors."""
        for i, (name, moments) in enumerate(self.norms()):
            self._put(f"{READINGS}-{label}", i, {name: of(moments.sum_DD)})
        return self._open(f"{READINGS}-{label}")

    def _open(self, kind: str) -> Checkpoint | None:
        tensors: dict[str, TensorInfo] = {}
        for path in self._files(kind):
            tensors |= read_header(path)
        return Checkpoint(self._directory, {}, tensors) if tensors else None

    def _files(self, kind: str) -> list[Path]:
        return sorted(self._directory.glob(f"{kind}-*.safetensors"))

    def _put(self, kind: str, layer: int, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        final = self._directory / f"{kind}-{layer:05d}.safetensors"
        temporary = final.with_name(f"{io.TEMPORARY}{final.name}-{secrets.token_hex(4)}")
        write_safetensors(temporary, tensors)
        io.disk.replace(temporary, final)
