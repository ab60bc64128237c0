"""A model to work on: its files, its config, its family's table and its shape, checked against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.aliases import ALIASES
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.family import Family
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Parent:
    name: str
    path: Path
    fingerprint: str
    checkpoint: Checkpoint
    config: "PretrainedConfig"
    shape: Shape

    @property
    def family(self) -> Family:
        return self.shape.family


def open_parent(model: str | Path, *, offline: bool = False) -> Parent:
    """Find a model and check every tensor against its family's table. Reads headers, no weights."""
    source = hf.resolve(str(model), offline=offline)
    checkpoint = Checkpoint.open(source.path)
    config = hf.load_config(source.path)
    shape = Shape.of(family_of(config), config)
    shape.check(checkpoint.shapes)
    return Parent(source.name, source.path, source.fingerprint, checkpoint, config, shape)


def published_shape(model: str) -> Shape | None:
    """The shape of a model in the alias table, without a network; None for any other name."""
    if model not in ALIASES:
        return None
    config = hf.config_from_dict(dict(ALIASES[model].config), model)
    return Shape.of(family_of(config), config)
