"""Students with masks, small enough to train within a test."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.model.families import family_of
from minitron_cli.model.runtime_tensors import disk_tensors
from minitron_cli.sparse.mask_file import MASKS, MaskFile, MaskSpec, new_mask_file
from minitron_cli.sparse.parameter_masks import ParameterMasks
from minitron_cli.sparse.pattern import Pattern


def is_linear(name: str) -> bool:
    return name.endswith("proj.weight")


def write_masks(directory: Path, tensors: Iterable[tuple[str, Tensor]], pattern: str = "2:4") -> MaskFile:
    """Masks of the stored tensors of linear layers, by magnitude along the last axis; sets what they lose to zero."""
    linear = {name: tensor for name, tensor in tensors if is_linear(name)}
    specs = {name: MaskSpec(tuple(t.shape), Pattern.parse(pattern), t.ndim - 1) for name, t in linear.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MASKS).unlink(missing_ok=True)
    with new_mask_file(directory / MASKS, specs) as file:
        for name, tensor in linear.items():
            kept = specs[name].pattern.keep(tensor.abs())
            tensor.masked_fill_(~kept, 0)
            file.put(name, kept)
    return MaskFile.open(directory / MASKS)


@torch.no_grad()
def mask_(model: Any, directory: Path, pattern: str = "2:4") -> ParameterMasks:
    """Mask the linear layers of a model in memory; its masks."""
    family = family_of(model.config)
    stored = dict(part for name, p in model.named_parameters() for part in disk_tensors(family, name, p.data))
    file = write_masks(directory, stored.items(), pattern)
    return ParameterMasks(file, family, {name: tuple(tensor.shape) for name, tensor in stored.items()})


def lost(masks: ParameterMasks, model: torch.nn.Module) -> dict[str, Tensor]:
    """What the masks lose of each parameter."""
    return {name: ~masks.kept(name, p.shape) for name, p in model.named_parameters() if masks.covers(name)}
