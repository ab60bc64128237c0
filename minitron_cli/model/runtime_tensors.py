"""Parameters of a loaded model and the tensors on disk they are made of: transformers joins a layer's experts."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from minitron_cli.model.family import NAME_AXIS, Family, pattern

Read = Callable[[str], Tensor]
"""Reads a tensor on disk by its name."""


def runtime_tensor(family: Family, name: str, like: Tensor, read: Read, device: torch.device) -> Tensor:
    """Parameter of the loaded model by its name there; `like` has its shape and dtype. Parts are read one at a time."""
    for template, sources in family.runtime_names.items():
        if found := pattern(template).fullmatch(name):
            return _joined(sources, found.groupdict(), like, read, device)
    return read(name).to(device, like.dtype)


def source_template(family: Family, name: str) -> str:
    """Template of the tensors on disk that a parameter of the loaded model is made of; the first if they are several.

    CheckpointError if the family has no such parameter.
    """
    found = (sources[0] for template, sources in family.runtime_names.items() if pattern(template).fullmatch(name))
    return next(found, None) or family.match(name).template


def is_made_of(family: Family, name: str, tensors: Collection[str]) -> bool:
    """Whether a parameter of the loaded model holds any of these tensors on disk."""
    for template, sources in family.runtime_names.items():
        if found := pattern(template).fullmatch(name):
            parts = [pattern(_filled(source, found.groupdict())) for source in sources]
            return any(part.fullmatch(tensor) for part in parts for tensor in tensors)
    return name in tensors


def _filled(template: str, at: dict[str, str]) -> str:
    """Template with some of its axes replaced by positions."""
    for axis, place in at.items():
        template = template.replace(f"{{{axis}}}", place)
    return template


def _joined(sources: tuple[str, ...], at: dict[str, str], like: Tensor, read: Read, device: torch.device) -> Tensor:
    joined = torch.empty(like.shape, dtype=like.dtype, device=device)
    stacked = [axis for axis in NAME_AXIS.findall(sources[0]) if axis not in at]
    for i, entry in enumerate(joined if stacked else [joined]):
        for source, part in zip(sources, entry.chunk(len(sources)), strict=True):
            part.copy_(read(source.format(**at, **dict.fromkeys(stacked, i))))
    return joined


def disk_tensors(family: Family, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) on disk of a parameter of the loaded model: the reverse of `runtime_tensor`."""
    for template, sources in family.runtime_names.items():
        if found := pattern(template).fullmatch(name):
            yield from _parted(sources, found.groupdict(), tensor)
            return
    yield name, tensor


def _parted(sources: tuple[str, ...], at: dict[str, str], joined: Tensor) -> Iterator[tuple[str, Tensor]]:
    stacked = [axis for axis in NAME_AXIS.findall(sources[0]) if axis not in at]
    for i, entry in enumerate(joined if stacked else [joined]):
        for source, part in zip(sources, entry.chunk(len(sources)), strict=True):
            yield source.format(**at, **dict.fromkeys(stacked, i)), part


def experts_module(family: Family) -> str | None:
    """Module of the loaded model that holds a layer's experts, "model.layers.{layer}.mlp.experts"; None without any."""
    joined = (name for name, sources in family.runtime_names.items() if "{expert}" in sources[0])
    return next((name.rpartition(".")[0] for name in joined), None)
