"""Model types whose files name the base model otherwise than transformers does in memory, as tables do.

Their tensors are read under the names in memory, and written under those in files.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")

BASE: Mapping[str, tuple[str, str]] = MappingProxyType({"nemotron_h": ("backbone.", "model.")})
"""Model type -> prefix in files, and in memory."""


def in_memory(config: Mapping[str, Any], tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors of a file by their names in memory."""
    stored, own = _prefixes(config)
    return {_renamed(name, stored, own): tensor for name, tensor in tensors.items()}


def in_files(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Name in memory -> name in a file."""
    stored, own = _prefixes(config)
    return {name: _renamed(name, own, stored) for name in names}


def _prefixes(config: Mapping[str, Any]) -> tuple[str, str]:
    kind = config.get("model_type")
    return BASE.get(kind, ("", "")) if isinstance(kind, str) else ("", "")


def _renamed(name: str, before: str, after: str) -> str:
    return after + name.removeprefix(before) if name.startswith(before) else name
