"""Masks of a loaded model's parameters, of which some join several stored tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.family import Family
from minitron_cli.model.runtime_tensors import disk_tensors, is_made_of, runtime_tensor
from minitron_cli.sparse.mask_file import AGAIN, MaskFile


@dataclass(frozen=True)
class ParameterMasks:
    """Which weights of a model's parameters its mask file keeps."""

    file: MaskFile
    family: Family
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every stored tensor, masked or not."""

    @classmethod
    def of(cls, model: SourceModel) -> "ParameterMasks | None":
        """Masks beside a model; None if it has none. CheckpointError if they are not of its tensors."""
        file = MaskFile.beside(model.path)
        if file is None:
            return None
        family, shapes = model.family, model.checkpoint.shapes
        tied = {*family.tied.keys(), *family.tied.values()} if model.shape.is_tied else set()
        for name, spec in file.specs.items():
            if shapes.get(name) != spec.shape:
                raise CheckpointError(f"{file.path} is of another model, which has {shown(name)}: {AGAIN}")
            if name in tied:  # the embedding would lose weights too
                raise CheckpointError(f"{file.path} masks {shown(name)}, which is tied: {AGAIN}")
        return cls(file, family, shapes)

    def covers(self, name: str) -> bool:
        """Whether any weight of a parameter is masked."""
        return is_made_of(self.family, name, self.file.specs)

    def kept(self, name: str, shape: torch.Size) -> Tensor:
        """Bool mask of a parameter of this shape, on the CPU."""
        like = torch.empty(shape, dtype=torch.bool, device="meta")
        return runtime_tensor(self.family, name, like, self._stored, torch.device("cpu"))

    def by_magnitude(self, name: str, weights: Tensor) -> Tensor:
        """Bool mask with the same pattern that keeps the largest of a parameter's `weights`, on their device."""
        parts = dict(disk_tensors(self.family, name, weights.abs()))
        like = torch.empty(weights.shape, dtype=torch.bool, device="meta")
        return runtime_tensor(self.family, name, like, lambda part: self.of_part(part, parts[part]), weights.device)

    def of_part(self, name: str, magnitudes: Tensor) -> Tensor:
        """Mask with the pattern of the stored tensor `name` that keeps the largest `magnitudes`."""
        spec = self.file.specs.get(name)
        return (
            torch.ones_like(magnitudes, dtype=torch.bool) if spec is None else spec.pattern.keep(magnitudes, spec.axis)
        )

    def _stored(self, name: str) -> Tensor:
        return self.file.read(name) if name in self.file else torch.ones(self.shapes[name], dtype=torch.bool)
