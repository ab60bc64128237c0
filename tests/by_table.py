"""A checkpoint under the names of its family's table, as the program reads it."""

from pathlib import Path

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape


def opened(directory: Path) -> Checkpoint:
    """The checkpoint of a directory; of tensors that hold all experts of a layer, the part of each."""
    found = Checkpoint.open(directory)
    config = hf.config_of(found)
    return found.named(Shape.of(family_of(config), config).tensors())
