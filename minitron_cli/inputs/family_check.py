"""What a family's table would have to say of a checkpoint, whether its model type has one or not."""

from pathlib import Path
from typing import NamedTuple

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import FAMILIES, table_of
from minitron_cli.model.nearest_family import nearest
from minitron_cli.model.needed_table import NeededRow, needed_rows
from minitron_cli.model.shape import Shape
from minitron_cli.stacked_names import stored_shapes


class FamilyCheck(NamedTuple):
    """A checkpoint beside a table."""

    model_type: str
    family: str
    """Family of the table: the model type's own, else the nearest."""
    rows: tuple[NeededRow, ...]

    @property
    def fitting(self) -> int:
        """Number of tensors that the table has."""
        return sum(row.tensors for row in self.rows if row.state == "same")

    @property
    def tensors(self) -> int:
        """Number of tensors of the checkpoint."""
        return sum(row.tensors for row in self.rows if row.state != "not in the checkpoint")


def family_check(path: Path) -> FamilyCheck:
    """Compare a checkpoint directory with the table of its model type, or with the nearest; reads headers only.

    CheckpointError if no table has any of its tensors.
    """
    checkpoint = Checkpoint.open(path)
    config = hf.config_of(checkpoint)
    known = {config.model_type: table_of(config)} if config.model_type in FAMILIES else FAMILIES
    fit = nearest(known, config, checkpoint.shapes)
    if fit is None:
        raise CheckpointError(
            f"no table has a tensor of {path}, so there is none to begin with: write one as docs/extending.md says"
        )
    shape = Shape.of(known[fit.family], config)
    rows = needed_rows(shape.family, shape.sizes, checkpoint.shapes, stored_shapes(shape.tensors()))
    return FamilyCheck(config.model_type, fit.family, rows)
