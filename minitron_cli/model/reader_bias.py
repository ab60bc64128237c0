"""Biases of the matrices that read heads and neurons, into which a repair may write. Follows from a family's table."""

from collections.abc import Iterable
from typing import NamedTuple

from minitron_cli.errors import CheckpointError
from minitron_cli.model.family import Family
from minitron_cli.model.taps import taps


class ReaderBias(NamedTuple):
    """Bias of the matrix that reads an axis."""

    weight: str
    """Template of the matrix."""
    bias: str
    """Template of its bias."""
    flag: str | None
    """Config flag that says that it is stored; None where it always is."""


def reader_biases(family: Family) -> dict[str, ReaderBias]:
    """Axis, head or ffn -> bias of its reader, where transformers loads one or can be told to by a flag."""
    readers = {tap.axis: tap.module for tap in taps(family) if tap.axis in ("head", "ffn")}
    found = {
        axis: ReaderBias(f"{m}.weight", f"{m}.bias", family.stored_if.get(f"{m}.bias")) for axis, m in readers.items()
    }
    return {axis: entry for axis, entry in found.items() if entry.bias in family.tensors}


def check_writable(family: Family, axes: Iterable[str]) -> None:
    """Raise CheckpointError where one of the axes has no reader with a bias."""
    for axis in sorted({*axes} - reader_biases(family).keys()):
        entries = "heads" if axis == "head" else "neurons"
        raise CheckpointError(
            f"--repair bias: transformers loads no bias of the matrix that reads {entries} of a {family.model_type} "
            "model: use --repair least_squares, which needs none"
        )
