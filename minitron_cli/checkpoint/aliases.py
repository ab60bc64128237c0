"""Short names of well-known models, read from `aliases.yaml` when the first one is asked for.

With an alias's dimensions `--dry-run` counts shapes without a network; a real run reads the checkpoint's own config.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, NamedTuple


class Alias(NamedTuple):
    """A model on the hub, and the dimensions that it was published with."""

    hub_id: str
    config: Mapping[str, Any]
    """Fields of its config.json that decide its shape."""
    pretraining: Mapping[str, Any] = MappingProxyType({})
    """`tokens` that it was trained on, and the `source` that says so; empty if that is not published."""


@cache
def aliases() -> Mapping[str, Alias]:
    """Every alias by its short name, in the order of the file."""
    from ruamel.yaml import YAML

    text = files(__package__).joinpath("aliases.yaml").read_text(encoding="utf-8")
    return {name: Alias(**fields) for name, fields in YAML(typ="safe", pure=True).load(text).items()}
